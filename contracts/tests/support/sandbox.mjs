/**
 * One blockchain per test file, put back by a snapshot before each test, and messages from any address.
 *
 * Senders need no wallet: the sandbox delivers a message from whatever address it names, and what is sent back is
 * read from the transactions.
 */
import { readFileSync } from 'node:fs';
import { Address, Cell, beginCell, contractAddress, internal as internalMessage } from '@ton/core';
import { Blockchain } from '@ton/sandbox';
import { networkConfig } from '../../config.mjs';

/** Unix seconds at the start of every test. */
export const START = 1_795_000_000;
export const EXCESSES = 0xd53276db;
export const EXIT = /** @type {const} */ ({
    wrongSender: 101, badState: 102, lowValue: 103, badSignature: 104, badTerms: 105, stale: 106, tooEarly: 107,
    weakKey: 108, overLimit: 109, badProof: 110, badEvidence: 111, inFlight: 112, badAmount: 113, unknownOp: 0xffff,
});

/** @typedef {import('@ton/sandbox').BlockchainTransaction} Transaction */
/** @typedef {{from: Address, to: Address, value: bigint, op: number | null, queryId: bigint | null, body: Cell}} Sent */
/** @typedef {{code: Cell, data: Cell}} Init */
/**
 * What one message led to: the first transaction's exit code (null where no code ran), whether it failed in any phase,
 * the gas that it burned, and every internal message that followed.
 * @typedef {{exit: number | null, ok: boolean, gas: bigint, sent: Sent[], transactions: Transaction[]}} Outcome
 */

/**
 * @param {string} name of a committed contract
 * @returns {Cell} its code
 */
export function codeOf(name) {
    const [root] = Cell.fromBoc(readFileSync(new URL(`../../../cocoon/contracts/code/${name}.boc`, import.meta.url)));
    if (!root) {
        throw new Error(`${name}.boc is empty`);
    }
    return root;
}

/**
 * @param {number} number
 * @returns {Address} of nobody in particular, always the same for a number
 */
export function addressOf(number) {
    return new Address(0, beginCell().storeUint(number, 32).endCell().hash());
}

/**
 * @param {Init} init
 * @returns {Address}
 */
export function deployedAt(init) {
    return contractAddress(0, init);
}

export class Sandbox {
    /** @param {Blockchain} chain */
    constructor(chain) {
        this.chain = chain;
        this.fresh = chain.snapshot();
    }

    static async start() {
        const chain = await Blockchain.create({ config: networkConfig() });
        chain.now = START;
        return new Sandbox(chain);
    }

    /** Puts everything back to the start. */
    async reset() {
        await this.chain.loadFrom(this.fresh);
        this.chain.now = START;
    }

    get now() {
        return this.chain.now ?? START;
    }

    /** @param {number} seconds */
    advance(seconds) {
        this.chain.now = this.now + seconds;
    }

    /**
     * @param {Address} from
     * @param {Address} to
     * @param {bigint} value nano
     * @param {Cell} body
     * @param {{init?: Init | undefined, bounce?: boolean, bounced?: boolean}} [options]
     * @returns {Promise<Outcome>}
     */
    async send(from, to, value, body, options = {}) {
        const message = internalMessage({ to, value, body, bounce: options.bounce ?? true, init: options.init ?? null });
        if (message.info.type !== 'internal') {
            throw new Error('an internal message');
        }
        const info = { ...message.info, src: from, bounced: options.bounced ?? false, createdAt: this.now };
        const result = await this.chain.sendMessage({ ...message, info });
        return outcomeOf(result.transactions);
    }

    /**
     * @param {Address} address
     * @returns {Promise<bigint>} nano
     */
    async balance(address) {
        return (await this.chain.getContract(address)).balance;
    }

    /**
     * @param {Address} address of a deployed contract
     * @returns {Promise<Cell>} its data
     */
    async data(address) {
        const state = (await this.chain.getContract(address)).accountState;
        if (state?.type !== 'active' || !state.state.data) {
            throw new Error('not deployed');
        }
        return state.state.data;
    }

    /**
     * @param {Address} address
     * @param {string} method
     * @param {import('@ton/core').TupleItem[]} [stack]
     */
    async get(address, method, stack = []) {
        return (await this.chain.runGetMethod(address, method, stack)).stackReader;
    }
}

/**
 * @param {Transaction[]} transactions in the order in which they happened
 * @returns {Outcome}
 */
function outcomeOf(transactions) {
    const [first] = transactions;
    if (first?.description.type !== 'generic') {
        throw new Error('no transaction');
    }
    const compute = first.description.computePhase;
    const ran = compute.type === 'vm';
    const sent = transactions.flatMap((transaction) => [...transaction.outMessages.values()].flatMap(sentOf));
    return {
        exit: ran ? compute.exitCode : null,
        ok: ran && compute.success && first.description.actionPhase?.success === true && !first.description.aborted,
        gas: ran ? compute.gasUsed : 0n,
        sent,
        transactions,
    };
}

/**
 * @param {import('@ton/core').Message} message
 * @returns {Sent[]}
 */
function sentOf(message) {
    if (message.info.type !== 'internal') {
        return [];
    }
    const body = message.body.beginParse();
    return [{
        from: message.info.src,
        to: message.info.dest,
        value: message.info.value.coins,
        op: body.remainingBits >= 32 ? body.preloadUint(32) : null,
        queryId: body.remainingBits >= 96 ? body.clone().skip(32).loadUintBig(64) : null,
        body: message.body,
    }];
}

/**
 * Every gas figure of the transactions at one address, and what the chain took there for storage, in nano.
 * @param {Outcome} outcome
 * @param {Address} address
 */
export function costs(outcome, address) {
    let storage = 0n;
    /** @type {bigint[]} */
    const gas = [];
    for (const transaction of outcome.transactions) {
        const { description } = transaction;
        if (transaction.address === BigInt(`0x${address.hash.toString('hex')}`) && description.type === 'generic') {
            storage += description.storagePhase?.storageFeesCollected ?? 0n;
            gas.push(description.computePhase.type === 'vm' ? description.computePhase.gasUsed : 0n);
        }
    }
    return { storage, gas };
}
