/** Leaving: the challenge window, both orders of its race, the co-signed close, and what is refused afterwards. */
import assert from 'node:assert/strict';
import { before, beforeEach, test } from 'node:test';
import { ENOUGH, EscrowBench, NOBODY, NO_KEY, SESSION_PAIR, TON, amountsOf } from './support/escrow_bench.mjs';
import { EXIT, addressOf } from './support/sandbox.mjs';
import * as escrow from './support/escrow.mjs';

const { CLIENT, CLOSED, CLOSING, OPERATOR, OPERATOR_WALLET, RENT, STRANGER } = escrow;
const { fund, refund } = escrow.OP;
const DAY = 86_400;
/** @type {EscrowBench} */
let bench;
before(async () => { bench = await EscrowBench.start(); });
beforeEach(() => bench.reset());

/**
 * A message from the client that must succeed.
 * @param {import('@ton/core').Cell} body
 * @param {string} [note]
 */
async function byClient(body, note) {
    const outcome = await bench.act(body, { from: CLIENT, ...(note ? { note } : {}) });
    assert.ok(outcome.ok, `exit ${outcome.exit}`);
    return outcome;
}

/**
 * The refund, which is exact and alone.
 * @param {Awaited<ReturnType<EscrowBench['act']>>} outcome
 * @param {bigint} amount nano
 */
function refunded(outcome, amount) {
    assert.ok(outcome.ok, `exit ${outcome.exit}`);
    assert.deepEqual(amountsOf(outcome, refund, CLIENT), [{ value: amount, amount }]);
}

test('a client leaves alone: request, wait, and anybody ends it with the exact refund', async () => {
    await bench.open(10n * TON);
    await bench.act(bench.voucher(3n * TON + 1n));
    await byClient(escrow.requestClose(), 'RequestClose');
    let data = await bench.data();
    assert.deepEqual([data.phase, data.closeRequestedAt], [CLOSING, bench.sandbox.now]);

    bench.sandbox.advance(DAY - 1);
    await bench.refuse(EXIT.tooEarly, escrow.finalize(), { from: CLIENT });
    bench.sandbox.advance(1);
    const end = await bench.act(escrow.finalize(), { from: STRANGER, note: 'Finalize' });
    refunded(end, 7n * TON - 1n);
    data = await bench.data();
    assert.deepEqual([data.phase, data.deposited, data.settled], [CLOSED, 10n * TON, 3n * TON + 1n]);
    assert.equal(await bench.sandbox.balance(bench.address), RENT);
});

test('nobody but the client asks for a close, and only once', async () => {
    await bench.open(TON);
    for (const from of [STRANGER, OPERATOR_WALLET, bench.payout]) {
        await bench.refuse(EXIT.wrongSender, escrow.requestClose(), { from });
    }
    await bench.refuse(EXIT.badState, escrow.finalize());
    await byClient(escrow.requestClose());
    const { closeRequestedAt } = await bench.data();
    bench.sandbox.advance(100);
    await bench.refuse(EXIT.badState, escrow.requestClose(), { from: CLIENT });
    assert.equal((await bench.data()).closeRequestedAt, closeRequestedAt);
});

test('a voucher settles inside the window, to its last second, and not after', async () => {
    await bench.open(10n * TON);
    await byClient(escrow.requestClose());
    bench.sandbox.advance(DAY - 1);
    assert.ok((await bench.act(bench.voucher(TON))).ok);
    bench.sandbox.advance(1);
    await bench.refuse(EXIT.badState, bench.voucher(2n * TON));
    await bench.refuse(EXIT.badState, bench.voucher(2n * TON, { signer: OPERATOR }));

    refunded(await bench.act(escrow.finalize()), 9n * TON);
});

test('the race of a close and a settlement: either order pays both their due', async () => {
    await bench.open(10n * TON);
    const start = bench.sandbox.chain.snapshot();
    const { now } = bench.sandbox;
    for (const closeFirst of [true, false]) {
        await bench.sandbox.chain.loadFrom(start);
        bench.sandbox.chain.now = now;
        const close = () => byClient(escrow.requestClose());
        /** @type {bigint[]} */
        const settled = [];
        const settle = async () => {
            const outcome = await bench.act(bench.voucher(6n * TON));
            settled.push(...amountsOf(outcome, fund, bench.payout).map(({ amount }) => amount));
        };
        for (const step of closeFirst ? [close, settle] : [settle, close]) {
            await step();
        }
        assert.deepEqual(settled, [6n * TON]);
        bench.sandbox.advance(DAY);
        refunded(await bench.act(escrow.finalize()), 4n * TON);
    }
});

test('the race of the end and a settlement: whoever comes second is refused, and no nano is paid twice', async () => {
    await bench.open(10n * TON);
    await byClient(escrow.requestClose());
    bench.sandbox.advance(DAY);
    refunded(await bench.act(escrow.finalize()), 10n * TON);

    await bench.refuse(EXIT.badState, bench.voucher(6n * TON));
    await bench.refuse(EXIT.badState, bench.terms(6n * TON), { from: CLIENT });
    await bench.refuse(EXIT.badState, escrow.finalize());
    await bench.refuse(EXIT.badState, escrow.requestClose(), { from: CLIENT });
    assert.equal(await bench.sandbox.balance(bench.address), RENT);
});

test('no money enters an escrow that is closing or closed', async () => {
    await bench.open(TON);
    await byClient(escrow.requestClose());
    const back = await bench.refuse(EXIT.badState, escrow.topUp(TON), { value: 2n * TON });
    assert.ok(back.sent[0] && back.sent[0].value > 19n * TON / 10n);
    bench.sandbox.advance(DAY);
    await bench.act(escrow.finalize());
    await bench.refuse(EXIT.badState, escrow.topUp(TON), { value: 2n * TON });
});

test('the same terms deployed again after the end are the same closed escrow, and pay no voucher again', async () => {
    await bench.open(10n * TON);
    const voucher = bench.voucher(6n * TON);
    await bench.act(voucher);
    await byClient(escrow.requestClose());
    bench.sandbox.advance(DAY);
    await bench.act(escrow.finalize());

    const again = await bench.act(escrow.topUp(10n * TON), { from: CLIENT, value: 11n * TON, init: true });
    assert.equal(again.exit, EXIT.badState);
    assert.equal((await bench.act(voucher, { init: true })).exit, EXIT.badState);
    assert.equal((await bench.data()).phase, CLOSED);
});

test('a voucher of one escrow is refused by the next one of the same parties', async () => {
    await bench.open(10n * TON);
    const voucher = bench.voucher(6n * TON);
    bench.configure({});
    await bench.open(10n * TON);

    await bench.refuse(EXIT.badTerms, voucher);
    bench.configure({ epoch: 8 });
    await bench.open(10n * TON);
    await bench.refuse(EXIT.badTerms, voucher);
});

test('a co-signed close pays the operator what it agreed to, the client the rest, at once', async () => {
    await bench.open(10n * TON);
    await bench.act(bench.voucher(2n * TON));
    const outcome = await byClient(bench.terms(3n * TON), 'CoClose');

    assert.deepEqual(amountsOf(outcome, fund, bench.payout).map(({ amount }) => amount), [TON]);
    refunded(outcome, 7n * TON);
    const data = await bench.data();
    assert.deepEqual([data.phase, data.settled], [CLOSED, 3n * TON]);
    assert.equal(await bench.sandbox.balance(bench.address), RENT);
});

test('a co-signed close ends a window early, pays no more than the deposit, and may leave nothing to refund', async () => {
    await bench.open(10n * TON);
    await byClient(escrow.requestClose());
    const outcome = await byClient(bench.terms((1n << 120n) - 1n));
    assert.deepEqual(amountsOf(outcome, fund, bench.payout).map(({ amount }) => amount), [10n * TON]);
    assert.deepEqual(amountsOf(outcome, refund, CLIENT), []);

    bench.configure({});
    await bench.open(10n * TON);
    const nothing = await byClient(bench.terms(0n));
    assert.deepEqual(amountsOf(nothing, fund, bench.payout), []);
    refunded(nothing, 10n * TON);
});

test('a voucher that comes behind a co-signed close is refused inside the window, too, and nobody ends it twice', async () => {
    await bench.open(10n * TON);
    await byClient(escrow.requestClose());
    refunded(await byClient(bench.terms(3n * TON)), 7n * TON);

    await bench.refuse(EXIT.badState, bench.voucher(6n * TON));
    await bench.refuse(EXIT.badState, bench.voucher(6n * TON, { signer: OPERATOR }));
    await bench.refuse(EXIT.badState, bench.terms(6n * TON), { from: CLIENT });
    bench.sandbox.advance(DAY);
    await bench.refuse(EXIT.badState, escrow.finalize());
});

test('a co-signed close needs the client, the operator\'s key, and terms for this escrow that are not overtaken', async () => {
    await bench.open(10n * TON);
    await bench.act(bench.voucher(2n * TON));
    await bench.refuse(EXIT.wrongSender, bench.terms(3n * TON), { from: OPERATOR_WALLET });
    await bench.refuse(EXIT.wrongSender, bench.terms(3n * TON), { from: STRANGER });
    await bench.refuse(EXIT.badSignature, bench.terms(3n * TON, { secretKey: SESSION_PAIR.secretKey }), { from: CLIENT });
    for (const fields of [{ escrow: addressOf(9) }, { globalId: -239 }, { epoch: 6 }, { tag: escrow.VOUCHER_TAG }]) {
        await bench.refuse(EXIT.badTerms, bench.terms(3n * TON, fields), { from: CLIENT });
    }
    await bench.refuse(EXIT.stale, bench.terms(2n * TON - 1n), { from: CLIENT });

    bench.configure({ operatorKey: NO_KEY });
    await bench.open(TON);
    await bench.refuse(EXIT.badSignature, bench.terms(0n), { from: CLIENT });
});

test('a settlement that comes back after the end stays owed, and nobody else\'s money pays for it', async () => {
    bench.configure({ payout: NOBODY });
    await bench.open(10n * TON);
    refunded(await byClient(bench.terms(3n * TON)), 7n * TON);

    const data = await bench.data();
    assert.deepEqual([data.phase, data.owed], [CLOSED, 3n * TON]);
    assert.ok((await bench.act(escrow.retryOwed())).ok);
    assert.equal((await bench.data()).owed, 3n * TON);
    assert.ok((await bench.sandbox.balance(bench.address)) >= 3n * TON + RENT);
});

test('a settlement that came back is not refunded to the client', async () => {
    bench.configure({ payout: NOBODY });
    await bench.open(10n * TON);
    await bench.act(bench.voucher(4n * TON));
    await byClient(escrow.requestClose());
    bench.sandbox.advance(DAY);
    refunded(await bench.act(escrow.finalize()), 6n * TON);

    assert.equal((await bench.data()).owed, 4n * TON);
});

test('an escrow that was never funded closes, too', async () => {
    await bench.act(escrow.topUp(TON), { init: true, value: ENOUGH }); // refused, but deployed
    await byClient(escrow.requestClose());
    bench.sandbox.advance(DAY);
    const end = await bench.act(escrow.finalize());

    assert.ok(end.ok);
    assert.deepEqual(amountsOf(end, refund, CLIENT), []);
    assert.equal((await bench.data()).phase, CLOSED);
});
