/** Messages and data of payout and payout_account: docs/contracts.md, cocoon/contracts/payout.py. */
import { beginCell } from '@ton/core';
import { advance, addressOf, codeOf, dataOf, send, ton } from './network.mjs';
import { Epoch, proofCell } from './merkle.mjs';

/** @typedef {import('@ton/core').Address} Address */
/** @typedef {import('@ton/core').Cell} Cell */
/** @typedef {import('./network.mjs').Treasury} Treasury */
/** @typedef {import('@ton/sandbox').Blockchain} Blockchain */
/** @typedef {{ operator: Address, feeTo: Address, feeBps: number, delayS: number, salt?: bigint }} Config */

export const RENT = ton('0.05');
export const ACCOUNT_RENT = ton('0.02');
/** More than any operation needs; the rest comes back. */
export const GAS = ton('0.1');
export const OP = {
    fund: 0x43e52001, postRoot: 0x43e52002, claim: 0x43e52003, pay: 0x43e52004, withdrawFee: 0x43e52005,
    anchor: 0x43e52006, payment: 0x43e52101, feePayment: 0x43e52102, anchorLog: 0x43e5a001,
    due: 0x43e53001, restore: 0x43e53002, done: 0x43e53003,
};

/** @param {number} op @param {bigint} [query] */
function body(op, query = 1n) {
    return beginCell().storeUint(op, 32).storeUint(query, 64);
}

/** @param {bigint} amount @param {bigint} [query] */
export const fund = (amount, query) => body(OP.fund, query).storeCoins(amount).endCell();

/** @param {number} epoch @param {Buffer} root @param {bigint} total */
export const postRoot = (epoch, root, total) =>
    body(OP.postRoot).storeUint(epoch, 32).storeBuffer(root).storeCoins(total).endCell();

/** @param {{ worker: Address, cumulative: bigint, proof: Cell, query?: bigint }} claimed */
export const claimBody = ({ worker, cumulative, proof, query }) =>
    body(OP.claim, query).storeAddress(worker).storeCoins(cumulative).storeRef(proof).endCell();

/** @param {Epoch} epoch @param {Address} worker @param {bigint} [query] */
export function claim(epoch, worker, query) {
    const { cumulative, proof } = epoch.claimOf(worker);
    return claimBody({ worker, cumulative, proof: proofCell(proof), ...(query === undefined ? {} : { query }) });
}

/** @param {{ worker: Address, amount: bigint, excessTo: Address, again?: boolean }} asked */
export const pay = ({ worker, amount, excessTo, again = false }) =>
    body(OP.pay).storeAddress(worker).storeCoins(amount).storeBit(again).storeAddress(excessTo).endCell();

/** @param {bigint} cumulative @param {Address} excessTo */
export const due = (cumulative, excessTo) => body(OP.due).storeCoins(cumulative).storeAddress(excessTo).endCell();

/** @param {bigint} amount */
export const restore = (amount) => body(OP.restore).storeCoins(amount).endCell();

export const done = () => body(OP.done).endCell();

/** @param {bigint} amount */
export const withdrawFee = (amount) => body(OP.withdrawFee).storeCoins(amount).endCell();

/** @param {Buffer} originHash @param {bigint} size @param {Buffer} root */
export const anchor = (originHash, size, root) =>
    body(OP.anchor).storeBuffer(originHash).storeUint(size, 64).storeBuffer(root).endCell();

/** @param {Config} config */
export function configCell({ operator, feeTo, feeBps, delayS, salt = 0n }) {
    return beginCell().storeAddress(operator).storeAddress(feeTo).storeUint(feeBps, 16).storeUint(delayS, 32)
        .storeUint(salt, 256).storeRef(codeOf('payout_account')).endCell();
}

/** @param {Config} config */
export function payoutInit(config) {
    const roots = beginCell().storeUint(0, 32 + 256).storeCoins(0).storeUint(0, 32 + 256).storeCoins(0).storeUint(0, 32);
    const anchored = beginCell().storeUint(0, 32 + 256 + 64).storeUint(0, 256).storeUint(0, 256);
    const data = beginCell().storeCoins(0).storeCoins(0).storeCoins(0).storeRef(roots).storeRef(anchored)
        .storeRef(configCell(config)).endCell();
    return { code: codeOf('payout'), data };
}

/** @param {Address} payout @param {Address} worker */
export function accountInit(payout, worker) {
    const data = beginCell().storeAddress(payout).storeAddress(worker).storeCoins(0).storeCoins(0).storeCoins(0)
        .storeUint(0, 64).endCell();
    return { code: codeOf('payout_account'), data };
}

/** @param {Cell} data */
export function readPayout(data) {
    const source = data.beginParse();
    const [received, paid, feeWithdrawn] = [source.loadCoins(), source.loadCoins(), source.loadCoins()];
    const roots = source.loadRef().beginParse();
    const anchored = source.loadRef().beginParse();
    return {
        received, paid, feeWithdrawn,
        epoch: roots.loadUint(32), root: roots.loadBuffer(32), total: roots.loadCoins(),
        pendingEpoch: roots.loadUint(32), pendingRoot: roots.loadBuffer(32), pendingTotal: roots.loadCoins(),
        pendingAt: roots.loadUint(32),
        anchor: {
            count: anchored.loadUint(32), originHash: anchored.loadBuffer(32), size: anchored.loadUintBig(64),
            root: anchored.loadBuffer(32), acc: anchored.loadBuffer(32),
        },
    };
}

/** @param {Cell} data */
export function readAccount(data) {
    const source = data.beginParse();
    return {
        payout: source.loadAddress(), worker: source.loadAddress(), claimed: source.loadCoins(),
        owed: source.loadCoins(), inFlight: source.loadCoins(), inFlightQuery: source.loadUintBig(64),
    };
}

/** A deployed payout contract with its operator and people. */
export class Payouts {
    /** @param {Blockchain} chain @param {Config} config @param {Treasury} operator @param {Treasury} anyone */
    constructor(chain, config, operator, anyone) {
        this.chain = chain;
        this.config = config;
        this.operator = operator;
        this.anyone = anyone;
        this.init = payoutInit(config);
        this.address = addressOf(this.init);
        this.epochs = 0;
    }

    /** @param {Blockchain} chain @param {Partial<Config>} [config] @returns {Promise<Payouts>} with nothing received */
    static async deploy(chain, config = {}) {
        const operator = await chain.treasury('operator');
        const feeTo = await chain.treasury('fee_to');
        const terms = { operator: operator.address, feeTo: feeTo.address, feeBps: 1000, delayS: 600, ...config };
        const payouts = new Payouts(chain, terms, operator, await chain.treasury('anyone'));
        await send(payouts.anyone, { to: payouts.address, value: GAS, body: fund(0n), init: payouts.init });
        return payouts;
    }

    async state() {
        return readPayout(await dataOf(this.chain, this.address));
    }

    /** @param {Address} worker */
    accountAddress(worker) {
        return addressOf(accountInit(this.address, worker));
    }

    /** @param {Address} worker */
    async account(worker) {
        return readAccount(await dataOf(this.chain, this.accountAddress(worker)));
    }

    /** @param {Treasury} from @param {Cell} body @param {bigint} [value] */
    send(from, body, value = GAS) {
        return send(from, { to: this.address, value, body });
    }

    /** @param {bigint} amount */
    fund(amount) {
        return this.send(this.anyone, fund(amount), amount + GAS);
    }

    /** Posts an epoch's root and waits until it pays. @param {Epoch} epoch */
    async open(epoch) {
        this.epochs += 1;
        const transactions = await this.send(this.operator, postRoot(this.epochs, epoch.tree.root, epoch.total));
        advance(this.chain, this.config.delayS);
        return transactions;
    }
}
