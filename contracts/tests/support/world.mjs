/**
 * All contracts together: two escrows, the payout contract that they settle to, three workers and one stake.
 *
 * Keeps its own account of who may have what, from what the parties signed and posted, and compares it with the chain
 * after every message. What the parties do is for tests to say.
 */
import assert from 'node:assert/strict';
import { beginCell } from '@ton/core';
import { keyPairFromSeed } from '@ton/crypto';
import { createShardAccount } from '@ton/sandbox';
import * as escrows from './escrow.mjs';
import { Epoch } from './merkle.mjs';
import { START_S, addressOf, advance, balanceOf, createNetwork, dataOf, handled, placeOf, refusingWallet, ton, valueOf } from './network.mjs';
import * as payouts from './payout.mjs';
import * as stakes from './stake.mjs';

/** @typedef {import('@ton/core').Address} Address */
/** @typedef {import('@ton/core').Cell} Cell */
/** @typedef {import('./network.mjs').Transaction} Transaction */
/** @typedef {{ config: escrows.Config, address: Address, init: { code: Cell, data: Cell }, client: Address, session: boolean, signed: bigint, refunded: bigint }} Escrow */
/** @typedef {{ address: Address, refuses: boolean, earned: bigint, promised: bigint, paid: bigint, lost: bigint }} Worker */

export const GAS = ton('0.2');
export const FEE_BPS = 1_000n;
export const DELAY_S = 600;
export const CHALLENGE_S = 86_400;
export const UNBOND_S = 1_000_000;
/** What a stake has before anybody says anything. */
export const FIRST_BOND = ton('7');
export const ALLOW_MAX = ton('3');
export const ALLOW_RATE = 20_000n;
export const SESSION_PAIR = keyPairFromSeed(Buffer.alloc(32, 0x61));
export const OPERATOR_PAIR = keyPairFromSeed(Buffer.alloc(32, 0x62));
const NO_KEY = Buffer.alloc(32);

/** A wallet that takes everything (SETCP0). @param {number} number */
function wallet(number) {
    return { code: beginCell().storeUint(0xff00, 16).endCell(), data: beginCell().storeUint(number, 32).endCell() };
}

export class World {
    /** @param {import('@ton/sandbox').Blockchain} chain */
    constructor(chain) {
        this.chain = chain;
        this.vectors = stakes.slashVectors();
        this.operator = addressOf(wallet(1));
        this.feeTo = addressOf(wallet(2));
        this.thief = addressOf(wallet(3));
        this.owner = addressOf(wallet(4));
        this.config = { operator: this.operator, feeTo: this.feeTo, feeBps: Number(FEE_BPS), delayS: DELAY_S };
        this.payoutInit = payouts.payoutInit(this.config);
        this.payout = addressOf(this.payoutInit);
        /** @type {Escrow[]} */
        this.escrows = [this.escrowOf(10, true), this.escrowOf(11, false)];
        /** @type {Worker[]} */
        this.workers = [refusingWallet(22), wallet(20), wallet(21)].map((init, at) => ({
            address: addressOf(init), refuses: at === 0, earned: 0n, promised: 0n, paid: 0n, lost: 0n,
        }));
        /** Every root that was ever accepted, by epoch. @type {Map<number, Epoch>} */
        this.epochs = new Map();
        this.donated = 0n;
        this.fees = 0n;
        this.bonded = FIRST_BOND;
        this.unbonded = 0n;
        this.slashed = false;
    }

    static async create() {
        const world = new World(await createNetwork());
        const wallets = [1, 2, 3, 4, 10, 11, 20, 21].map(wallet);
        for (const init of [...wallets, refusingWallet(22)]) {
            const address = addressOf(init);
            await world.chain.setShardAccount(address, createShardAccount({ address, ...init, balance: ton('1') }));
        }
        const { stake, stakedKey, operatorKey } = world.vectors;
        const init = stakes.stakeInit({
            owner: world.owner, operator: world.operator, stakedKey, operatorKey, unbondS: UNBOND_S, bountyBps: 2_000,
        });
        await world.chain.setShardAccount(stake, createShardAccount({ address: stake, ...init, balance: stakes.RENT }));
        await world.deliver(world.operator, world.payout, GAS, payouts.fund(0n), world.payoutInit);
        await world.deliver(world.owner, stake, FIRST_BOND + GAS, stakes.bond(FIRST_BOND));
        for (const escrow of world.escrows) {
            await world.topUp(escrow, ton('5'));
        }
        return world;
    }

    /** @param {number} number @param {boolean} session @returns {Escrow} */
    escrowOf(number, session) {
        const client = addressOf(wallet(number));
        const config = {
            client, operator: this.operator, payout: this.payout, epoch: 1, salt: BigInt(number),
            voucherKey: session ? SESSION_PAIR.publicKey : NO_KEY, operatorKey: session ? NO_KEY : OPERATOR_PAIR.publicKey,
            challengeS: CHALLENGE_S, allowMax: ALLOW_MAX, allowRate: ALLOW_RATE,
        };
        const init = escrows.initOf(config);
        return { config, address: addressOf(init), init, client, session, signed: 0n, refunded: 0n };
    }

    /**
     * Sends a message and enters what it led to.
     * @param {Address} from @param {Address} to @param {bigint} value @param {Cell} body
     * @param {{ code: Cell, data: Cell }} [init]
     * @returns {Promise<Transaction[]>}
     */
    async deliver(from, to, value, body, init) {
        const { transactions } = await this.chain.sendMessage({
            info: {
                type: 'internal', ihrDisabled: true, bounce: true, bounced: false, src: from, dest: to,
                value: { coins: value }, ihrFee: 0n, forwardFee: 0n, createdLt: 0n, createdAt: 0,
            },
            body, ...(init === undefined ? {} : { init }),
        });
        this.enter(transactions);
        return transactions;
    }

    /** @param {Transaction[]} transactions */
    enter(transactions) {
        for (const one of handled(transactions, escrows.OP.refund)) {
            const escrow = this.escrows.find(({ client }) => client.equals(placeOf(one)));
            assert.ok(escrow, 'a refund goes to a client');
            escrow.refunded += valueOf(one);
        }
        for (const one of handled(transactions, payouts.OP.payment)) {
            const worker = this.workers.find(({ address }) => address.equals(placeOf(one)));
            assert.ok(worker, 'a payment goes to a worker');
            const back = one.outMessages.values().some(({ info }) => info.type === 'internal' && info.bounced);
            if (back) {
                const restored = handled(transactions, payouts.OP.restore).map((message) => amountNamed(message));
                worker.lost += valueOf(one) - restored.reduce((sum, amount) => sum + amount, 0n);
            } else {
                worker.paid += valueOf(one);
            }
        }
        for (const one of handled(transactions, payouts.OP.feePayment)) {
            assert.ok(placeOf(one).equals(this.feeTo));
            this.fees += valueOf(one);
        }
        for (const one of handled(transactions, stakes.OP.unbonded)) {
            assert.ok(placeOf(one).equals(this.owner));
            this.unbonded += valueOf(one);
        }
        this.slashed ||= handled(transactions, stakes.OP.burn).length > 0;
    }

    get now() {
        return this.chain.now ?? START_S;
    }

    /** @param {number} seconds */
    wait(seconds) {
        advance(this.chain, seconds);
    }

    /** @param {Escrow} escrow @param {bigint} amount @param {bigint} [value] */
    topUp(escrow, amount, value = amount + GAS) {
        return this.deliver(escrow.client, escrow.address, value, escrows.topUp(amount), escrow.init);
    }

    /** @param {Escrow} escrow @param {bigint} cumulative @param {{ secretKey: Buffer }} pair */
    voucher(escrow, cumulative, pair) {
        const cell = escrows.voucherCell({ escrow: escrow.address, epoch: escrow.config.epoch, cumulative });
        return escrows.settle(escrow.session ? escrows.SESSION : escrows.OPERATOR, escrows.signCell(cell, pair.secretKey), cell);
    }

    /** @param {Escrow} escrow */
    async escrowData(escrow) {
        return escrows.readData(await dataOf(this.chain, escrow.address));
    }

    async payoutData() {
        return payouts.readPayout(await dataOf(this.chain, this.payout));
    }

    async stakeData() {
        return stakes.readStake(await dataOf(this.chain, this.vectors.stake));
    }

    /** The epoch that claims are judged by now. @returns {Promise<Epoch | undefined>} */
    async activeEpoch() {
        const { epoch, pendingEpoch, pendingAt } = await this.payoutData();
        return this.epochs.get(pendingEpoch !== 0 && this.now >= pendingAt ? pendingEpoch : epoch);
    }

    /** What the operator may promise to workers at most now. */
    async promisable() {
        const { received } = await this.payoutData();
        return received - (received * FEE_BPS) / 10_000n;
    }

    /** Posts a root; remembered if the contract takes it. @param {number} number @param {Epoch} epoch @param {bigint} total */
    async post(number, epoch, total) {
        await this.deliver(this.operator, this.payout, GAS, payouts.postRoot(number, epoch.tree.root, total));
        const { pendingEpoch, pendingRoot } = await this.payoutData();
        if (pendingEpoch === number && pendingRoot.equals(epoch.tree.root)) {
            this.epochs.set(number, epoch);
            for (const { worker: address, cumulative } of epoch.earnings) {
                const worker = this.workers.find((one) => one.address.equals(address));
                if (worker && cumulative > worker.promised) {
                    worker.promised = cumulative;
                }
            }
        }
    }

    /** Whatever was said so far, nobody has more than its due and everybody's due is there. */
    async check() {
        let settled = 0n;
        let owed = 0n;
        for (const escrow of this.escrows) {
            const data = await this.escrowData(escrow);
            settled += data.settled;
            owed += data.owed;
            await this.checkEscrow(escrow, data);
        }
        await this.checkPayout(settled, owed);
        for (const worker of this.workers) {
            assert.ok(worker.paid <= worker.promised, 'a worker has more than any root promised');
        }
        const stake = await this.stakeData();
        assert.ok((await balanceOf(this.chain, this.vectors.stake)) >= stake.bond + stake.unbonding, 'stake is missing');
        const left = stake.bond + stake.unbonding + this.unbonded;
        assert.ok(this.slashed || stake.state === stakes.SLASHED ? left <= this.bonded : left === this.bonded, 'stake went elsewhere');
    }

    /** @param {Escrow} escrow @param {escrows.Data} data */
    async checkEscrow(escrow, data) {
        const closed = data.phase === escrows.CLOSED;
        const until = data.phase === escrows.OPEN ? this.now : data.closeRequestedAt;
        const most = escrow.session ? escrow.signed : ALLOW_MAX + ALLOW_RATE * BigInt(until - START_S);
        assert.ok(data.settled <= data.deposited, 'more was settled than deposited');
        assert.ok(data.settled <= most, 'more was settled than the client agreed to');
        assert.equal(escrow.refunded, closed ? data.deposited - data.settled : 0n);
        const belongs = data.owed + (closed ? 0n : data.deposited - data.settled);
        assert.ok((await balanceOf(this.chain, escrow.address)) >= belongs, 'a deposit is missing');
    }

    /** @param {bigint} settled @param {bigint} owed */
    async checkPayout(settled, owed) {
        const { received, paid, feeWithdrawn, total, pendingTotal, pendingAt } = await this.payoutData();
        const feeMax = (received * FEE_BPS) / 10_000n;
        assert.equal(received + owed, settled + this.donated);
        assert.equal(feeWithdrawn, this.fees);
        assert.ok(feeWithdrawn <= feeMax, 'the fee is beyond its share');
        assert.ok(total <= received - feeMax && pendingTotal <= received - feeMax, 'more was promised than came in');
        const active = pendingTotal > total && this.now >= pendingAt ? pendingTotal : total;
        assert.ok(paid <= active, 'more was paid than the active root promises');
        const lost = this.workers.reduce((sum, worker) => sum + worker.lost, 0n);
        assert.equal(paid, this.workers.reduce((sum, worker) => sum + worker.paid, lost));
        assert.ok((await balanceOf(this.chain, this.payout)) >= received - paid - feeWithdrawn, 'earnings are missing');
    }
}

/** @param {Transaction} transaction @returns {bigint} nano that a message behind op and query id names */
function amountNamed(transaction) {
    return transaction.inMessage?.body.beginParse().skip(96).loadCoins() ?? 0n;
}
