/** An escrow together with the payout contract that it settles to: every nano that leaves one enters the other. */
import assert from 'node:assert/strict';
import { before, beforeEach, test } from 'node:test';
import { ENOUGH, EscrowBench, TON } from './support/escrow_bench.mjs';
import { fund, payoutInit, readPayout } from './support/payout.mjs';
import { EXCESSES, EXIT, addressOf, deployedAt } from './support/sandbox.mjs';
import * as escrow from './support/escrow.mjs';

const { CLIENT, OPERATOR, STRANGER } = escrow;
const TERMS = { operator: addressOf(3), feeTo: addressOf(8), feeBps: 500, delayS: 600, salt: 1n };
/** @type {EscrowBench} */
let bench;
before(async () => { bench = await EscrowBench.start(); });
beforeEach(() => bench.reset());

/**
 * A payout contract, deployed, and an escrow that settles to it.
 * @param {typeof TERMS} terms
 */
async function together(terms) {
    const init = payoutInit(terms);
    const payout = deployedAt(init);
    await bench.sandbox.send(STRANGER, payout, ENOUGH, fund(1n, 1n), { init });
    bench.configure({ payout });
    await bench.open(10n * TON);
    return payout;
}

test('what is settled is received, in every way out of an escrow', async () => {
    const payout = await together(TERMS);
    const first = await bench.act(bench.voucher(3n * TON));
    assert.ok(first.sent.some(({ op, to }) => op === EXCESSES && to.equals(bench.address)), 'what the payout did not need');
    await bench.act(bench.voucher(4n * TON, { signer: OPERATOR }));
    const end = await bench.act(bench.terms(9n * TON), { from: CLIENT });
    assert.ok(end.transactions.every(({ description }) => description.type !== 'generic' || description.computePhase.type !== 'vm' || description.computePhase.success));

    const { received } = readPayout(await bench.sandbox.data(payout));
    const { settled, owed } = await bench.data();
    assert.deepEqual([received, settled, owed], [9n * TON + 1n, 9n * TON, 0n]);
    assert.ok((await bench.sandbox.balance(payout)) >= received);
});

test('a payout contract that cannot take money costs the client nothing', async () => {
    const payout = await together({ ...TERMS, feeBps: 10_001 });
    const outcome = await bench.act(bench.voucher(3n * TON));
    const refusal = outcome.transactions.find(({ inMessage }) => inMessage?.info.dest?.toString() === payout.toString());
    assert.ok(refusal?.description.type === 'generic' && refusal.description.computePhase.type === 'vm');
    assert.equal(refusal.description.computePhase.exitCode, EXIT.badTerms);

    const { settled, owed } = await bench.data();
    assert.deepEqual([settled, owed], [3n * TON, 3n * TON]);
    assert.ok((await bench.act(escrow.retryOwed())).ok);
    assert.equal((await bench.data()).owed, 3n * TON);
});

test('the least value that settles is enough for the payout contract, too', async () => {
    const payout = await together(TERMS);
    await bench.act(bench.voucher(1n));
    const outcome = await bench.act(bench.voucher(2n), { value: 1_681_606n });

    assert.ok(outcome.ok);
    assert.equal(readPayout(await bench.sandbox.data(payout)).received, 3n);
});
