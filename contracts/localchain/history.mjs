// The blocks that there are: facts about each in memory, whole ones from the store, states of the latest only.

import { Cell, Dictionary, loadTransaction } from '@ton/core';
import { bitsOf } from './augmented.mjs';
import { BASECHAIN, blockId, emptyAccounts, MASTERCHAIN, masterStateExtra, shardHashes, stateCell } from './blocks.mjs';

const WHOLE_BLOCKS_MAX = 256;
const STATES_MAX = 1_024;
const EMPTY_BLOCKS_MAX = 20_000;

/** @typedef {import('./blocks.mjs').BlockId} BlockId */
/** @typedef {import('./blocks.mjs').Position} Position */
/** @typedef {import('./blocks.mjs').BlockTransaction} BlockTransaction */
/** @typedef {import('./store.mjs').StoredBlock} StoredBlock */
/** @typedef {import('./store.mjs').Place} Place */
/** @typedef {{account: Buffer, lt: bigint, hash: Buffer, previousLt: bigint, previousHash: Buffer, seqno: number}} TransactionFacts */
/** @typedef {Position & {shard: BlockId, master: BlockId, total: bigint, transactions: TransactionFacts[], place: Place}} BlockFacts */
/** @typedef {{shard: Cell, shardData: Buffer, master: Cell, masterData: Buffer, transactions: BlockTransaction[]}} WholeBlock */
/** @typedef {{accounts: import('./augmented.mjs').AugmentedTree, shard: Cell, master: Cell}} States of both chains after a block */

export class History {
    /** @param {import('./store.mjs').Store} store @param {Cell} config @param {number} globalId */
    constructor(store, config, globalId) {
        this.store = store;
        this.config = config;
        this.configAddress = configAddress(config);
        this.globalId = globalId;
        /** @type {Map<number, BlockFacts>} */
        this.facts = new Map();
        /** @type {Map<string, TransactionFacts>} */
        this.transactions = new Map();
        /** @type {Map<number, WholeBlock>} */
        this.whole = new Map();
        /** @type {Map<number, States>} */
        this.states = new Map();
    }

    /** @param {StoredBlock} block @param {Place} place @returns {BlockFacts} */
    add(block, place) {
        const { seqno, utime } = block;
        const facts = {
            seqno,
            utime,
            startLt: BigInt(block.start_lt),
            endLt: BigInt(block.end_lt),
            globalId: this.globalId,
            shard: blockId(BASECHAIN, seqno, fromHex(block.shard[0]), fromHex(block.shard[1])),
            master: blockId(MASTERCHAIN, seqno, fromHex(block.master[0]), fromHex(block.master[1])),
            total: BigInt(block.total),
            place,
            transactions: block.transactions.map((one) => ({
                account: fromHex(one.account),
                lt: BigInt(one.lt),
                hash: fromHex(one.hash),
                previousLt: BigInt(one.previous_lt),
                previousHash: fromHex(one.previous_hash),
                seqno,
            })),
        };
        this.facts.set(seqno, facts);
        for (const one of facts.transactions) this.transactions.set(transactionKey(one.account, one.lt), one);
        const old = this.facts.get(seqno - EMPTY_BLOCKS_MAX);
        if (old && old.transactions.length === 0) this.facts.delete(old.seqno);
        return facts;
    }

    /** @param {Buffer} account @param {bigint} lt @returns {TransactionFacts | undefined} */
    transaction(account, lt) {
        return this.transactions.get(transactionKey(account, lt));
    }

    /** @param {BlockFacts} facts @returns {WholeBlock} */
    block(facts) {
        const known = this.whole.get(facts.seqno);
        if (known) return known;
        const stored = this.store.read(facts.place);
        const shardData = Buffer.from(stored.shard_boc, 'base64');
        const masterData = Buffer.from(stored.master_boc, 'base64');
        const whole = {
            shardData,
            masterData,
            shard: rootOf(shardData),
            master: rootOf(masterData),
            transactions: stored.transactions.map((one) => blockTransaction(fromHex(one.account), Cell.fromBase64(one.boc))),
        };
        this.keepBlock(facts.seqno, whole);
        return whole;
    }

    /** @param {number} seqno @param {WholeBlock} whole */
    keepBlock(seqno, whole) {
        this.whole.set(seqno, whole);
        forget(this.whole, WHOLE_BLOCKS_MAX);
    }

    /** @param {number} seqno @param {States} states */
    keepStates(seqno, states) {
        this.states.set(seqno, states);
        forget(this.states, STATES_MAX);
    }

    /** ShardHashes as of a block. @param {BlockFacts} facts */
    shards(facts) {
        return shardHashes(facts.shard, facts);
    }

    /** @param {Position} at @param {import('./augmented.mjs').AugmentedTree} accounts */
    shardState(at, accounts) {
        return stateCell(BASECHAIN, at, accounts);
    }

    /** @param {Position} at @param {Cell} shards @param {bigint} total */
    masterState(at, shards, total) {
        const extra = masterStateExtra(shards, this.configAddress, this.config, total);
        return stateCell(MASTERCHAIN, at, emptyAccounts(), extra);
    }
}

/** @param {Buffer} account @param {Cell} cell @returns {BlockTransaction} */
export function blockTransaction(account, cell) {
    const { lt, totalFees, stateUpdate } = loadTransaction(cell.beginParse());
    return { account, lt, cell, fees: totalFees.coins, before: stateUpdate.oldHash, after: stateUpdate.newHash };
}

/**
 * Accounts after changes, as a block's line has them.
 * @param {import('./augmented.mjs').AugmentedTree} accounts
 * @param {Record<string, string | null>} changes ShardAccounts by account in hex, null where nothing is left
 * @param {(account: Cell) => bigint | undefined} balanceOf
 */
export function applyChanges(accounts, changes, balanceOf) {
    let result = accounts;
    for (const [account, text] of Object.entries(changes)) {
        const key = bitsOf(fromHex(account));
        const cell = text === null ? undefined : Cell.fromBase64(text);
        const balance = cell && balanceOf(cell);
        result = cell && balance !== undefined ? result.set(key, balance, cell) : result.delete(key);
    }
    return result;
}

/** @param {Cell} config @returns {Buffer} of the config contract in the masterchain, as param 0 has it */
function configAddress(config) {
    const params = config.beginParse().loadDictDirect(Dictionary.Keys.Int(32), Dictionary.Values.Cell());
    const address = params.get(0);
    if (!address) throw new Error('the configuration has no param 0');
    return address.beginParse().loadBuffer(32);
}

/** @param {string} text */
export function fromHex(text) {
    return Buffer.from(text, 'hex');
}

/** @param {Buffer} account @param {bigint} lt */
function transactionKey(account, lt) {
    return `${account.toString('hex')}:${lt}`;
}

/** @param {Buffer} bytes */
function rootOf(bytes) {
    return /** @type {Cell} */ (Cell.fromBoc(bytes)[0]);
}

/** @param {Map<number, unknown>} map oldest first @param {number} max */
function forget(map, max) {
    for (const key of map.keys()) {
        if (map.size <= max) return;
        map.delete(key);
    }
}
