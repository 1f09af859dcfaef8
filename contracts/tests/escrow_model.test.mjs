/** Any sequence of operations by anybody, against a model of the books: the same is taken, refused and paid. */
import assert from 'node:assert/strict';
import { before, beforeEach, test } from 'node:test';
import { EscrowBench, TON, amountsOf } from './support/escrow_bench.mjs';
import { EXIT } from './support/sandbox.mjs';
import * as escrow from './support/escrow.mjs';

const { CLIENT, CLOSED, CLOSING, OPEN, OPERATOR, SESSION, STRANGER } = escrow;
const STEPS = 60;
const WINDOW_S = 1000;
/** @type {EscrowBench} */
let bench;
before(async () => { bench = await EscrowBench.start(); });
beforeEach(() => bench.reset());

/** What PROTOCOL §6 says about an escrow, without a chain. */
class Model {
    /** @param {escrow.Config} config @param {number} now */
    constructor(config, now) {
        this.config = config;
        this.phase = OPEN;
        this.deposited = 0n;
        this.settled = 0n;
        this.refunded = 0n;
        this.filled = config.allowMax;
        this.filledAt = now;
        this.requestedAt = 0;
    }

    /** @param {number} now */
    allowance(now) {
        const until = this.phase === OPEN ? now : this.requestedAt;
        const fill = this.filled + this.config.allowRate * BigInt(until - this.filledAt);
        return { until, nano: fill < this.config.allowMax ? fill : this.config.allowMax };
    }

    /** @param {bigint} amount */
    topUp(amount) {
        if (this.phase !== OPEN) {
            return EXIT.badState;
        }
        this.deposited += amount;
        return 0;
    }

    /** @param {bigint} cumulative @param {number} signer @param {number} now */
    settle(cumulative, signer, now) {
        if (this.phase === CLOSED || (this.phase === CLOSING && now >= this.requestedAt + this.config.challengeS)) {
            return EXIT.badState;
        }
        if (cumulative <= this.settled) {
            return EXIT.stale;
        }
        let due = (cumulative < this.deposited ? cumulative : this.deposited) - this.settled;
        if (signer === OPERATOR) {
            const { until, nano } = this.allowance(now);
            due = due < nano ? due : nano;
            [this.filled, this.filledAt] = [nano - due, until];
        }
        this.settled += due;
        return 0;
    }

    /** @param {boolean} client @param {number} now */
    requestClose(client, now) {
        if (!client) {
            return EXIT.wrongSender;
        }
        if (this.phase !== OPEN) {
            return EXIT.badState;
        }
        [this.phase, this.requestedAt] = [CLOSING, now];
        return 0;
    }

    /** @param {number} now */
    finalize(now) {
        if (this.phase !== CLOSING) {
            return EXIT.badState;
        }
        if (now < this.requestedAt + this.config.challengeS) {
            return EXIT.tooEarly;
        }
        [this.phase, this.refunded] = [CLOSED, this.deposited - this.settled];
        return 0;
    }

    /** @param {bigint} cumulative @param {boolean} client */
    coClose(cumulative, client) {
        if (!client) {
            return EXIT.wrongSender;
        }
        if (this.phase === CLOSED) {
            return EXIT.badState;
        }
        if (cumulative < this.settled) {
            return EXIT.stale;
        }
        this.settled = cumulative < this.deposited ? cumulative : this.deposited;
        [this.phase, this.refunded] = [CLOSED, this.deposited - this.settled];
        return 0;
    }
}

/**
 * Numbers that only look random: the same for a seed (mulberry32).
 * @param {number} seed
 */
function numbers(seed) {
    let state = seed;
    /** @param {number} below */
    return (below) => {
        state = (state + 0x6d2b79f5) | 0;
        let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
        mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
        return ((mixed ^ (mixed >>> 14)) >>> 0) % below;
    };
}

/**
 * One step, on the chain and in the model.
 * @param {(below: number) => number} next
 * @param {Model} model
 */
async function step(next, model) {
    const cumulative = BigInt(next(8)) * TON / 3n + BigInt(next(3));
    const from = next(3) === 0 ? STRANGER : CLIENT;
    const signer = next(2) === 0 ? SESSION : OPERATOR;
    const { now } = bench.sandbox;
    const kind = next(40);
    if (kind < 12) {
        const amount = BigInt(1 + next(1_000_000_000));
        return { outcome: await bench.act(escrow.topUp(amount), { value: 2n * TON }), expected: model.topUp(amount) };
    }
    if (kind < 35) {
        return { outcome: await bench.act(bench.voucher(cumulative, { signer })), expected: model.settle(cumulative, signer, now) };
    }
    if (kind < 36) {
        return { outcome: await bench.act(escrow.requestClose(), { from }), expected: model.requestClose(from === CLIENT, now) };
    }
    if (kind < 39) {
        return { outcome: await bench.act(escrow.finalize(), { from }), expected: model.finalize(now) };
    }
    const expected = model.coClose(cumulative, from === CLIENT);
    return { outcome: await bench.act(bench.terms(cumulative), { from }), expected };
}

for (const seed of [1, 2, 3, 4]) {
    test(`the books agree with the model after every step (seed ${seed})`, async () => {
        const next = numbers(seed);
        bench.configure({ challengeS: WINDOW_S, allowMax: TON / 2n, allowRate: 1_000_003n });
        await bench.open(TON);
        const model = new Model(bench.config, bench.sandbox.now);
        model.topUp(TON);
        let [paid, refunded] = [0n, 0n];
        for (let count = 0; count < STEPS; count += 1) {
            const { outcome, expected } = await step(next, model);
            assert.equal(outcome.exit, expected, `step ${count}`);
            paid += amountsOf(outcome, escrow.OP.fund, bench.payout).reduce((sum, { amount }) => sum + amount, 0n);
            refunded += amountsOf(outcome, escrow.OP.refund, CLIENT).reduce((sum, { value }) => sum + value, 0n);
            const data = await bench.data();
            assert.deepEqual([data.phase, data.deposited, data.settled], [model.phase, model.deposited, model.settled]);
            assert.deepEqual([paid, refunded], [model.settled, model.refunded]);
            bench.sandbox.advance(next(200));
        }
        assert.equal(paid + refunded, model.phase === CLOSED ? model.deposited : model.settled);
    });
}
