/** Top-ups: what they credit, what they refuse, and the rent. */
import assert from 'node:assert/strict';
import { before, beforeEach, test } from 'node:test';
import { beginCell } from '@ton/core';
import { EscrowBench, ENOUGH, NO_KEY, OPERATOR_PAIR, SESSION_PAIR, TON, amountsOf } from './support/escrow_bench.mjs';
import { EXCESSES, EXIT, addressOf } from './support/sandbox.mjs';
import * as escrow from './support/escrow.mjs';

const { CLIENT, RENT, STRANGER } = escrow;
const COINS_MAX = (1n << 120n) - 1n;
/** @type {EscrowBench} */
let bench;
before(async () => { bench = await EscrowBench.start(); });
beforeEach(() => bench.reset());

test('a first top-up deploys, credits exactly its amount, keeps the rent, and returns the rest', async () => {
    const outcome = await bench.open(3n * TON);

    const data = await bench.data();
    assert.equal(data.deposited, 3n * TON);
    assert.deepEqual([data.phase, data.settled, data.owed, data.closeRequestedAt], [escrow.OPEN, 0n, 0n, 0]);
    assert.equal(await bench.sandbox.balance(bench.address), 3n * TON + RENT);
    const [excess] = outcome.sent;
    assert.ok(excess && excess.op === EXCESSES && excess.to.equals(CLIENT) && excess.queryId === 1n);
    assert.ok(excess.value > ENOUGH - 2_000_000n);
});

test('anybody tops up, and every nano is credited', async () => {
    await bench.open(TON);
    await bench.act(escrow.topUp(1n), { from: STRANGER, note: 'TopUp' });
    const outcome = await bench.act(escrow.topUp(12_345_678_901n), { value: 12_345_678_901n + ENOUGH, note: 'TopUp' });

    assert.ok(outcome.ok);
    assert.equal((await bench.data()).deposited, TON + 1n + 12_345_678_901n);
});

test('a top-up needs its amount, its gas and the missing rent, to the nano', async () => {
    await bench.open(TON);
    const least = (await bench.sandbox.get(bench.address, 'top_up_value', [{ type: 'int', value: TON }])).readBigNumber();
    await bench.refuse(EXIT.lowValue, escrow.topUp(TON), { value: least - 1n });
    const outcome = await bench.act(escrow.topUp(TON), { value: least });

    assert.ok(outcome.ok);
    assert.ok((await bench.sandbox.balance(bench.address)) >= 2n * TON + RENT);
    assert.ok(least - TON < 1_000_000n);
});

test('rent that storage used up is asked for again', async () => {
    await bench.open(TON);
    bench.sandbox.advance(5 * 365 * 86_400);
    await bench.act(escrow.requestClose(), { from: STRANGER }); // refused, but the chain takes its storage fee
    const used = TON + RENT - (await bench.sandbox.balance(bench.address));
    assert.ok(used > 0n);
    const least = (await bench.sandbox.get(bench.address, 'top_up_value', [{ type: 'int', value: TON }])).readBigNumber();
    await bench.refuse(EXIT.lowValue, escrow.topUp(TON), { value: least - 1n });

    assert.ok((await bench.act(escrow.topUp(TON), { value: least })).ok);
    assert.ok((await bench.sandbox.balance(bench.address)) >= 2n * TON + RENT);
});

test('the rent lasts ten years and more, with data as large as it gets', async () => {
    bench.configure({ allowMax: COINS_MAX, allowRate: COINS_MAX });
    await bench.open(TON);
    await bench.act(bench.voucher(TON / 3n, { usageRoot: (1n << 256n) - 1n }));
    bench.sandbox.advance(10 * 365 * 86_400);
    const outcome = await bench.act(escrow.finalize(), { from: STRANGER });

    assert.equal(outcome.exit, EXIT.badState);
    assert.ok(bench.storageFees > 0n && bench.storageFees * 2n < RENT, `${bench.storageFees} nano in ten years`);
});

test('an amount of nothing, and one that no balance can carry, are refused', async () => {
    await bench.open(TON);
    await bench.refuse(EXIT.badAmount, escrow.topUp(0n));
    await bench.refuse(EXIT.badAmount, escrow.topUp(COINS_MAX)); // with what is there, above the highest amount
    await bench.refuse(EXIT.lowValue, escrow.topUp(COINS_MAX - TON));
});

test('amounts near 2^119 are credited, settled and refunded exactly', async () => {
    const huge = (1n << 119n) + 1n;
    await bench.open(huge);
    const half = await bench.act(bench.voucher(1n << 118n));
    assert.deepEqual(amountsOf(half, escrow.OP.fund, bench.payout).map(({ amount }) => amount), [1n << 118n]);
    const all = await bench.act(bench.voucher(COINS_MAX)); // far above the deposit

    assert.ok(all.ok);
    const data = await bench.data();
    assert.deepEqual([data.deposited, data.settled], [huge, huge]);
    assert.equal(await bench.sandbox.balance(bench.address), RENT);
});

const WEAK = [
    '0100000000000000000000000000000000000000000000000000000000000000',
    '0100000000000000000000000000000000000000000000000000000000000080',
    'ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f',
    'edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f',
    'eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f',
    'edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff',
    '0000000000000000000000000000000000000000000000000000000000000080',
    '26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05',
    '26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85',
    'c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a',
    'c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa',
];

test('no escrow takes money under a key that proves nothing, in either place', async () => {
    for (const weak of WEAK) {
        for (const place of [{ voucherKey: Buffer.from(weak, 'hex') }, { operatorKey: Buffer.from(weak, 'hex') }]) {
            bench.configure(place);
            const outcome = await bench.act(escrow.topUp(TON), { value: 2n * TON, init: true, from: CLIENT });
            assert.equal(outcome.exit, EXIT.weakKey, weak);
            assert.ok(outcome.sent[0]?.to.equals(CLIENT) && outcome.sent[0].value > 19n * TON / 10n);
        }
    }
});

test('no escrow takes money without a key, or with one key in both places', async () => {
    for (const keys of [
        { voucherKey: NO_KEY, operatorKey: NO_KEY },
        { voucherKey: SESSION_PAIR.publicKey, operatorKey: SESSION_PAIR.publicKey },
    ]) {
        bench.configure(keys);
        const outcome = await bench.act(escrow.topUp(TON), { value: 2n * TON, init: true, from: CLIENT });
        assert.equal(outcome.exit, EXIT.weakKey);
    }
    for (const keys of [{ voucherKey: NO_KEY }, { operatorKey: NO_KEY }, { operatorKey: OPERATOR_PAIR.publicKey }]) {
        bench.configure(keys);
        assert.ok((await bench.open(TON)).ok);
    }
});

test('plain transfers, comments and unknown operations go back', async () => {
    await bench.open(TON);
    for (const body of [
        beginCell().endCell(),
        beginCell().storeUint(0, 32).storeStringTail('for the escrow').endCell(),
        beginCell().storeUint(0x43e50007, 32).storeUint(1, 64).endCell(),
        beginCell().storeUint(escrow.OP.fund, 32).storeUint(1, 64).storeCoins(TON).endCell(),
        beginCell().storeUint(0xff, 8).endCell(),
    ]) {
        await bench.refuse(EXIT.unknownOp, body, { value: TON });
    }
});

test('a body that is cut short or goes on is refused', async () => {
    await bench.open(TON);
    const whole = escrow.topUp(TON / 100n).beginParse();
    const short = beginCell().storeBits(whole.loadBits(whole.remainingBits - 8)).endCell();
    const long = beginCell().storeSlice(escrow.topUp(TON / 100n).beginParse()).storeUint(0, 1).endCell();
    for (const body of [short, long, beginCell().storeUint(escrow.OP.requestClose, 32).endCell()]) {
        await bench.refuse(9, body, { from: CLIENT });
    }
});

test('what comes back from a payout contract as excess is kept, and goes to whoever calls next', async () => {
    await bench.open(TON);
    const excess = beginCell().storeUint(EXCESSES, 32).storeUint(9, 64).endCell();
    assert.ok((await bench.act(excess, { from: bench.payout, value: TON, note: 'Excesses' })).ok);
    const outcome = await bench.act(escrow.topUp(1n), { from: addressOf(77) });

    const [back] = outcome.sent;
    assert.ok(back && back.to.equals(addressOf(77)) && back.value > TON);
    assert.equal((await bench.data()).deposited, TON + 1n);
});
