/** Vouchers: who may sign what, what they pay, the operator's allowance, and settlements that come back. */
import assert from 'node:assert/strict';
import { before, beforeEach, test } from 'node:test';
import { beginCell } from '@ton/core';
import { createShardAccount } from '@ton/sandbox';
import { GLOBAL_ID } from '../config.mjs';
import { ENOUGH, EscrowBench, NOBODY, NO_KEY, OPERATOR_PAIR, SESSION_PAIR, TON, amountsOf } from './support/escrow_bench.mjs';
import { gasFee } from './support/fees.mjs';
import { EXCESSES, EXIT, addressOf } from './support/sandbox.mjs';
import * as escrow from './support/escrow.mjs';

const { CLIENT, OPERATOR, RENT, SESSION, STRANGER } = escrow;
const { fund } = escrow.OP;
const COINS_MAX = (1n << 120n) - 1n;
/** @type {EscrowBench} */
let bench;
before(async () => { bench = await EscrowBench.start(); });
beforeEach(() => bench.reset());

/**
 * What a settlement paid.
 * @param {Awaited<ReturnType<EscrowBench['act']>>} outcome
 */
function paid(outcome) {
    assert.ok(outcome.ok, `exit ${outcome.exit}`);
    return amountsOf(outcome, fund, bench.config.payout).map(({ amount }) => amount);
}

test('a session voucher pays the payout contract the difference, whoever carries it', async () => {
    await bench.open(10n * TON);
    const first = await bench.act(bench.voucher(3n * TON, { usageRoot: 0xabcn }), { note: 'Settle, session key' });
    assert.deepEqual(paid(first), [3n * TON]);
    const second = await bench.act(bench.voucher(3n * TON + 1n, { usageRoot: 0xdefn }));
    assert.deepEqual(paid(second), [1n]);

    const data = await bench.data();
    assert.deepEqual([data.settled, data.usageRoot], [3n * TON + 1n, 0xdefn]);
    const [sent] = amountsOf(second, fund, bench.payout);
    assert.ok(sent && sent.value > sent.amount && sent.value < sent.amount + 2_000_000n);
    const excess = second.sent.find(({ op, to }) => op === EXCESSES && to.equals(STRANGER));
    assert.ok(excess && excess.value > ENOUGH - 5_000_000n);
    assert.equal(await bench.sandbox.balance(bench.address), 7n * TON - 1n + RENT);
});

test('a voucher above the deposit pays the deposit, and the rest after a top-up', async () => {
    await bench.open(TON);
    assert.deepEqual(paid(await bench.act(bench.voucher(5n * TON, { usageRoot: 1n }))), [TON]);
    assert.deepEqual(paid(await bench.act(bench.voucher(5n * TON, { usageRoot: 2n }))), []);
    assert.equal((await bench.data()).usageRoot, 1n);
    await bench.act(escrow.topUp(TON), { value: TON + ENOUGH });

    assert.deepEqual(paid(await bench.act(bench.voucher(5n * TON))), [TON]);
    assert.equal(await bench.sandbox.balance(bench.address), RENT);
});

test('a voucher is paid once, and no voucher below what was settled', async () => {
    await bench.open(10n * TON);
    await bench.act(bench.voucher(3n * TON));

    await bench.refuse(EXIT.stale, bench.voucher(3n * TON));
    await bench.refuse(EXIT.stale, bench.voucher(2n * TON));
    await bench.refuse(EXIT.stale, bench.voucher(0n));
    await bench.refuse(EXIT.stale, bench.voucher(3n * TON, { signer: OPERATOR }));
});

test('a voucher for another escrow, chain, epoch or purpose is refused', async () => {
    await bench.open(10n * TON);
    for (const fields of [
        { escrow: addressOf(9) }, { globalId: -239 }, { globalId: GLOBAL_ID - 1 }, { epoch: 6 }, { epoch: 8 },
        { tag: escrow.TERMS_TAG }, { tag: 0 },
    ]) {
        await bench.refuse(EXIT.badTerms, bench.voucher(TON, fields));
        await bench.refuse(EXIT.badTerms, bench.voucher(TON, { signer: OPERATOR, ...fields }));
    }
    const cell = escrow.termsCell({ escrow: bench.address, epoch: 7, cumulative: TON });
    await bench.refuse(9, escrow.settle(OPERATOR, escrow.signCell(cell, OPERATOR_PAIR.secretKey), cell));
});

test('a signature by another key, of another voucher, or under a key that there is not, is refused', async () => {
    await bench.open(10n * TON);
    await bench.refuse(EXIT.badSignature, bench.voucher(TON, { secretKey: OPERATOR_PAIR.secretKey }));
    await bench.refuse(EXIT.badSignature, bench.voucher(TON, { signer: OPERATOR, secretKey: SESSION_PAIR.secretKey }));
    await bench.refuse(EXIT.badTerms, bench.voucher(TON, { signer: 2 }));
    const other = escrow.voucherCell({ escrow: bench.address, epoch: 7, cumulative: 2n * TON });
    const signed = escrow.voucherCell({ escrow: bench.address, epoch: 7, cumulative: TON });
    await bench.refuse(EXIT.badSignature, escrow.settle(SESSION, escrow.signCell(signed, SESSION_PAIR.secretKey), other));
    await bench.refuse(EXIT.badSignature, escrow.settle(SESSION, Buffer.alloc(64), signed));

    bench.configure({ voucherKey: NO_KEY });
    await bench.open(TON);
    await bench.refuse(EXIT.badSignature, bench.voucher(TON));
    await bench.refuse(EXIT.badSignature, bench.voucher(TON, { secretKey: OPERATOR_PAIR.secretKey }));
    bench.configure({ operatorKey: NO_KEY });
    await bench.open(TON);
    await bench.refuse(EXIT.badSignature, bench.voucher(TON, { signer: OPERATOR }));
    await bench.refuse(EXIT.badSignature, bench.terms(TON), { from: CLIENT });
});

test('where there is no key, what anybody can sign under a key of zeros is refused', async () => {
    // A point of order four: with s = 0 and R one of its multiples, each fits about a quarter of all messages.
    const crafted = ['00', '01', 'ec'].flatMap((first) => {
        const point = Buffer.alloc(32, first === 'ec' ? 0xff : 0);
        point[0] = Number.parseInt(first, 16);
        const [plus, minus] = [Buffer.from(point), Buffer.from(point)];
        plus[31] = (point[31] ?? 0) & 0x7f;
        minus[31] = (point[31] ?? 0) | 0x80;
        return [plus, minus].map((multiple) => Buffer.concat([multiple, Buffer.alloc(32)]));
    });
    bench.configure({ voucherKey: NO_KEY });
    await bench.open(TON);
    for (let cumulative = 1n; cumulative <= 8n; cumulative += 1n) {
        const cell = escrow.voucherCell({ escrow: bench.address, epoch: 7, cumulative });
        for (const signature of crafted) {
            await bench.refuse(EXIT.badSignature, escrow.settle(SESSION, signature, cell));
        }
    }
    bench.configure({ operatorKey: NO_KEY });
    await bench.open(TON);
    for (let cumulative = 1n; cumulative <= 8n; cumulative += 1n) {
        const cell = escrow.termsCell({ escrow: bench.address, epoch: 7, cumulative });
        for (const signature of crafted) {
            await bench.refuse(EXIT.badSignature, escrow.coClose(signature, cell), { from: CLIENT });
        }
    }
});

test('a voucher cell with anything more in it is refused', async () => {
    await bench.open(TON);
    const cell = escrow.voucherCell({ escrow: bench.address, epoch: 7, cumulative: 1n });
    for (const longer of [
        beginCell().storeSlice(cell.beginParse()).storeBit(1).endCell(),
        beginCell().storeSlice(cell.beginParse()).storeRef(cell).endCell(),
    ]) {
        await bench.refuse(9, escrow.settle(SESSION, escrow.signCell(longer, SESSION_PAIR.secretKey), longer));
    }
});

test('the operator takes its allowance and no more; the bucket fills to the nano and not above its size', async () => {
    bench.configure({ allowMax: TON, allowRate: 7n });
    await bench.open(10n * TON);
    assert.equal(await bench.allowance(), TON);
    const first = await bench.act(bench.voucher(9n * TON, { signer: OPERATOR }), { note: 'Settle, operator key' });
    assert.deepEqual(paid(first), [TON]);
    assert.deepEqual(paid(await bench.act(bench.voucher(9n * TON, { signer: OPERATOR }))), []);
    assert.equal(await bench.allowance(), 0n);

    bench.sandbox.advance(13);
    assert.equal(await bench.allowance(), 91n);
    assert.deepEqual(paid(await bench.act(bench.voucher(TON + 90n, { signer: OPERATOR }))), [90n]);
    bench.sandbox.advance(1);
    assert.deepEqual(paid(await bench.act(bench.voucher(9n * TON, { signer: OPERATOR }))), [8n]);
    bench.sandbox.advance(Number(TON) * 2);
    assert.equal(await bench.allowance(), TON);
    assert.equal((await bench.data()).settled, TON + 98n);
});

test('what the client signs itself does not use the allowance up', async () => {
    bench.configure({ allowMax: TON, allowRate: 0n });
    await bench.open(10n * TON);
    await bench.act(bench.voucher(5n * TON));

    assert.equal(await bench.allowance(), TON);
    assert.deepEqual(paid(await bench.act(bench.voucher(9n * TON, { signer: OPERATOR }))), [TON]);
    assert.deepEqual(paid(await bench.act(bench.voucher(9n * TON))), [3n * TON]);
});

test('an allowance of nothing pays nothing, and its largest figures do not overflow', async () => {
    bench.configure({ allowMax: 0n, allowRate: COINS_MAX });
    await bench.open(TON);
    assert.deepEqual(paid(await bench.act(bench.voucher(TON, { signer: OPERATOR }))), []);

    bench.configure({ allowMax: COINS_MAX, allowRate: COINS_MAX });
    await bench.open(TON);
    bench.sandbox.advance(2_000_000_000);
    assert.equal(await bench.allowance(), COINS_MAX);
    assert.deepEqual(paid(await bench.act(bench.voucher(COINS_MAX, { signer: OPERATOR }))), [TON]);
    assert.equal(await bench.allowance(), COINS_MAX - TON);
});

test('the allowance stops filling at a request to close', async () => {
    bench.configure({ allowMax: TON, allowRate: 5n });
    await bench.open(10n * TON);
    await bench.act(bench.voucher(9n * TON, { signer: OPERATOR }));
    bench.sandbox.advance(10);
    await bench.act(escrow.requestClose(), { from: CLIENT });
    bench.sandbox.advance(1000);

    assert.equal(await bench.allowance(), 50n);
    assert.deepEqual(paid(await bench.act(bench.voucher(9n * TON, { signer: OPERATOR }))), [50n]);
    bench.sandbox.advance(1000);
    assert.equal(await bench.allowance(), 0n);
    assert.deepEqual(paid(await bench.act(bench.voucher(9n * TON, { signer: OPERATOR }))), []);
});

test('a settlement that no payout contract takes is owed, costs the client nothing, and is sent again', async () => {
    bench.configure({ payout: NOBODY });
    await bench.open(10n * TON);
    const outcome = await bench.act(bench.voucher(4n * TON), { note: 'Settle, session key' });
    assert.deepEqual(paid(outcome), [4n * TON]);
    const bounce = outcome.transactions.find(({ inMessage }) => inMessage?.info.type === 'internal' && inMessage.info.bounced);
    assert.ok(bounce?.description.type === 'generic' && bounce.description.computePhase.type === 'vm');
    bench.gas.note('Fund comes back', bounce.description.computePhase.gasUsed);
    let data = await bench.data();
    assert.deepEqual([data.settled, data.owed], [4n * TON, 4n * TON]);
    await bench.refuse(EXIT.stale, bench.voucher(4n * TON));

    await bench.act(escrow.retryOwed());
    assert.equal((await bench.data()).owed, 4n * TON);
    await appear(NOBODY);
    const again = await bench.act(escrow.retryOwed(), { note: 'RetryOwed' });
    assert.deepEqual(paid(again), [4n * TON]);
    data = await bench.data();
    assert.deepEqual([data.settled, data.owed], [4n * TON, 0n]);
    await bench.refuse(EXIT.badState, escrow.retryOwed());
    assert.ok((await bench.sandbox.balance(NOBODY)) >= 4n * TON);
});

test('a payout contract that burns what it can before it refuses loses of its own, not of the client', async () => {
    bench.configure({ payout: addressOf(0xb) });
    await appear(addressOf(0xb), burner());
    await bench.open(10n * TON);
    await bench.act(bench.voucher(TON / 100n));

    const data = await bench.data();
    assert.equal(data.settled, TON / 100n);
    assert.ok(data.owed < TON / 100n);
    bench.sandbox.advance(86_400);
    await bench.act(escrow.requestClose(), { from: CLIENT });
    bench.sandbox.advance(86_400);
    const outcome = await bench.act(escrow.finalize());
    assert.deepEqual(amountsOf(outcome, escrow.OP.refund, CLIENT), [
        { value: 10n * TON - TON / 100n, amount: 10n * TON - TON / 100n },
    ]);
});

test('what looks like a settlement coming back is owed only as far as it brought money, and only from there', async () => {
    await bench.open(TON);
    const forged = beginCell().storeUint(0xffffffff, 32).storeSlice(escrow.fund(TON / 2n, 1n).beginParse()).endCell();
    await bench.act(forged, { from: STRANGER, bounced: true, value: TON });
    assert.equal((await bench.data()).owed, 0n);
    await bench.act(forged, { from: bench.payout, bounced: true, value: TON / 4n });

    const { owed } = await bench.data();
    assert.ok(owed > 0n && owed < TON / 4n);
    const other = beginCell().storeUint(0xffffffff, 32).storeUint(EXCESSES, 32).storeUint(1, 64).endCell();
    await bench.act(other, { from: bench.payout, bounced: true, value: TON });
    assert.equal((await bench.data()).owed, owed);
    // What came back does not pay for entering it: nothing of what is owed already does.
    await bench.act(forged, { from: bench.payout, bounced: true, value: gasFee(4000) - 1n });
    assert.equal((await bench.data()).owed, owed);
});

/**
 * A contract appears where there was none: one that takes everything, unless told otherwise.
 * @param {import('@ton/core').Address} address
 * @param {import('@ton/core').Cell} [code] SETCP 0 and an end
 */
async function appear(address, code = beginCell().storeUint(0xff00, 16).endCell()) {
    const account = createShardAccount({ address, code, data: beginCell().endCell(), balance: TON });
    await bench.sandbox.chain.setShardAccount(address, account);
}

/** Code that runs in a circle until its gas is gone: SETCP 0, then AGAINEND of nothing. */
function burner() {
    return beginCell().storeUint(0xff00, 16).storeUint(0xeb, 8).endCell();
}
