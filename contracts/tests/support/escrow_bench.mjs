/** An escrow on a sandbox, with its parties, whose books are checked after every message. */
import assert from 'node:assert/strict';
import { keyPairFromSeed } from '@ton/crypto';
import { GasLog } from './gas.mjs';
import { Sandbox, addressOf, costs } from './sandbox.mjs';
import * as escrow from './escrow.mjs';

const { CLIENT, OPERATOR_WALLET, RENT, STRANGER } = escrow;

/** Keys of tests: seeds of one repeated byte, for nothing else. */
export const SESSION_PAIR = keyPairFromSeed(Buffer.alloc(32, 0x51));
export const OPERATOR_PAIR = keyPairFromSeed(Buffer.alloc(32, 0x52));
export const NO_KEY = Buffer.alloc(32);
/** Nano attached where the figure does not matter; what is not used comes back. */
export const ENOUGH = 100_000_000n;
export const TON = 1_000_000_000n;
const DAY = 86_400;

export class EscrowBench {
    /**
     * @param {Sandbox} sandbox
     * @param {import('@ton/core').Address} payout that takes everything
     */
    constructor(sandbox, payout) {
        this.sandbox = sandbox;
        this.payout = payout;
        this.gas = new GasLog('client_escrow');
        this.storageFees = 0n;
        this.nextSalt = 1n;
        this.config = this.configOf({});
        this.init = escrow.initOf(this.config);
        this.address = escrow.escrowAt(this.config);
    }

    static async start() {
        const sandbox = await Sandbox.start();
        const payout = (await sandbox.chain.treasury('payout')).address;
        sandbox.fresh = sandbox.chain.snapshot();
        return new EscrowBench(sandbox, payout);
    }

    /** Before each test. */
    async reset() {
        await this.sandbox.reset();
        this.configure({});
    }

    /**
     * Another escrow, not yet deployed.
     * @param {Partial<escrow.Config>} changes
     */
    configure(changes) {
        this.nextSalt += 1n;
        this.config = this.configOf(changes);
        this.init = escrow.initOf(this.config);
        this.address = escrow.escrowAt(this.config);
        this.storageFees = 0n;
    }

    /**
     * @param {Partial<escrow.Config>} changes
     * @returns {escrow.Config}
     */
    configOf(changes) {
        return {
            client: CLIENT, operator: OPERATOR_WALLET, payout: this.payout, voucherKey: SESSION_PAIR.publicKey,
            operatorKey: OPERATOR_PAIR.publicKey, challengeS: DAY, epoch: 7, allowMax: 2n * TON, allowRate: 1000n,
            salt: this.nextSalt, ...changes,
        };
    }

    /** @returns {Promise<escrow.Data>} */
    async data() {
        return escrow.readData(await this.sandbox.data(this.address));
    }

    /** What the escrow owes its parties, in nano. */
    async obligations() {
        const { phase, deposited, settled, owed } = await this.data();
        return owed + (phase === escrow.CLOSED ? 0n : deposited - settled);
    }

    /**
     * Sends one message and checks that the escrow still has what it owes and its rent.
     * @param {import('@ton/core').Cell} body
     * @param {{from?: import('@ton/core').Address, value?: bigint, note?: string, init?: boolean, bounced?: boolean}} [how]
     */
    async act(body, { from = STRANGER, value = ENOUGH, note, init, bounced } = {}) {
        const options = { init: init ? this.init : undefined, bounced: bounced ?? false };
        const outcome = await this.sandbox.send(from, this.address, value, body, options);
        const { storage, gas } = costs(outcome, this.address);
        this.storageFees += storage;
        if (note && outcome.ok) {
            this.gas.note(note, gas[0] ?? 0n);
        }
        const contract = await this.sandbox.chain.getContract(this.address);
        if (contract.accountState?.type === 'active') {
            const balance = await this.sandbox.balance(this.address);
            const { deposited } = await this.data();
            // Before the first top-up there is no rent to keep.
            const kept = deposited === 0n ? 0n : (await this.obligations()) + RENT - this.storageFees;
            assert.ok(balance >= kept, `balance ${balance}, must keep ${kept}`);
        }
        return outcome;
    }

    /**
     * As `act`, of a message that must be refused: with this exit code, its value on the way back, and nothing changed.
     * @param {number} exit
     * @param {import('@ton/core').Cell} body
     * @param {Parameters<EscrowBench['act']>[1]} [how]
     */
    async refuse(exit, body, how = {}) {
        const before = await this.sandbox.data(this.address);
        const balance = await this.sandbox.balance(this.address);
        const outcome = await this.act(body, how);
        assert.equal(outcome.exit, exit);
        assert.ok((await this.sandbox.data(this.address)).equals(before));
        const { storage } = costs(outcome, this.address);
        assert.equal(await this.sandbox.balance(this.address), balance - storage);
        const [back] = outcome.sent;
        assert.ok(back && back.to.equals(how.from ?? STRANGER) && back.value > 0n, 'the value is sent back');
        return outcome;
    }

    /**
     * Deploys with a first top-up.
     * @param {bigint} amount nano
     */
    async open(amount) {
        const outcome = await this.act(escrow.topUp(amount), {
            from: CLIENT, value: amount + RENT + ENOUGH, init: true, note: 'TopUp, first',
        });
        assert.ok(outcome.ok, `exit ${outcome.exit}`);
        return outcome;
    }

    /**
     * The body of a settlement.
     * @param {bigint} cumulative nano
     * @param {Partial<escrow.Promised> & {signer?: number, secretKey?: Buffer}} [options]
     */
    voucher(cumulative, { signer = escrow.SESSION, secretKey, ...fields } = {}) {
        const cell = escrow.voucherCell({ escrow: this.address, epoch: this.config.epoch, cumulative, ...fields });
        const pair = signer === escrow.SESSION ? SESSION_PAIR : OPERATOR_PAIR;
        return escrow.settle(signer, escrow.signCell(cell, secretKey ?? pair.secretKey), cell);
    }

    /**
     * The body of a co-signed close.
     * @param {bigint} cumulative nano
     * @param {Partial<escrow.Promised> & {secretKey?: Buffer}} [options]
     */
    terms(cumulative, { secretKey = OPERATOR_PAIR.secretKey, ...fields } = {}) {
        const cell = escrow.termsCell({ escrow: this.address, epoch: this.config.epoch, cumulative, ...fields });
        return escrow.coClose(escrow.signCell(cell, secretKey), cell);
    }

    /** @returns {Promise<bigint>} */
    async allowance() {
        return (await this.sandbox.get(this.address, 'allowance')).readBigNumber();
    }
}

/**
 * The amounts of one kind of message in what followed.
 * @param {import('./sandbox.mjs').Outcome} outcome
 * @param {number} op
 * @param {import('@ton/core').Address} to
 */
export function amountsOf(outcome, op, to) {
    return outcome.sent.filter((sent) => sent.op === op && sent.to.equals(to)).map((sent) => ({
        value: sent.value, amount: sent.body.beginParse().skip(96).loadCoins(),
    }));
}

/** An address at which there is no contract: what is sent there bounces. */
export const NOBODY = addressOf(0xdead);
