/** The least value of each operation: one nano less changes nothing, and with it nobody else pays. Then the gas table. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { after, before, beforeEach, test } from 'node:test';
import { EscrowBench, NOBODY, TON } from './support/escrow_bench.mjs';
import { EXIT, costs } from './support/sandbox.mjs';
import * as escrow from './support/escrow.mjs';

const { CLIENT, OPERATOR, STRANGER } = escrow;
const DAY = 86_400;
/** @type {EscrowBench} */
let bench;
before(async () => { bench = await EscrowBench.start(); });
beforeEach(() => bench.reset());
after(() => bench.gas.check());

/**
 * The operations, each with what comes before it and who sends it.
 * @type {Record<string, {given: () => Promise<unknown>, body: () => import('@ton/core').Cell, from?: typeof CLIENT}>}
 */
const OPERATIONS = {
    'TopUp': { given: () => bench.open(TON), body: () => escrow.topUp(TON) },
    'Settle, session key': { given: () => bench.open(TON), body: () => bench.voucher(TON / 2n) },
    'Settle, operator key': { given: () => bench.open(TON), body: () => bench.voucher(TON / 2n, { signer: OPERATOR }) },
    'RequestClose': { given: () => bench.open(TON), body: () => escrow.requestClose(), from: CLIENT },
    'Finalize': {
        given: async () => {
            await bench.open(TON);
            await bench.act(escrow.requestClose(), { from: CLIENT });
            bench.sandbox.advance(DAY);
        },
        body: () => escrow.finalize(),
    },
    'CoClose': { given: () => bench.open(TON), body: () => bench.terms(TON / 2n), from: CLIENT },
    'RetryOwed': {
        given: async () => {
            bench.configure({ payout: NOBODY });
            await bench.open(TON);
            const outcome = await bench.act(bench.voucher(TON / 2n));
            bench.gas.note('Fund comes back', costs(outcome, bench.address).gas[1] ?? 0n);
        },
        body: () => escrow.retryOwed(),
    },
    'Excesses': { given: () => bench.open(TON), body: () => escrow.excesses(8n) },
};

for (const [name, { given, body, from = STRANGER }] of Object.entries(OPERATIONS)) {
    test(`${name}: the least value is exact, and with it the escrow pays nothing of others'`, async () => {
        await given();
        const state = bench.sandbox.chain.snapshot();
        const fees = bench.storageFees;
        /** @param {bigint} value */
        const attempt = async (value) => {
            await bench.sandbox.chain.loadFrom(state);
            bench.storageFees = fees;
            return bench.act(body(), { from, value, note: name });
        };
        // What it carries for others, then at most 0.003 TON for gas and messages.
        const carried = name === 'TopUp' ? TON : 0n;
        let [refused, taken] = [carried, carried + 3_000_000n];
        assert.ok((await attempt(taken)).ok);
        while (taken - refused > 1n) {
            const middle = (refused + taken) / 2n;
            [refused, taken] = (await attempt(middle)).ok ? [refused, middle] : [middle, taken];
        }
        const before = await stateAfter(() => bench.sandbox.chain.loadFrom(state));
        const outcome = await attempt(refused);
        // Below what its own check costs, no code can say why.
        assert.ok([EXIT.lowValue, -14, null].includes(/** @type {any} */ (outcome.exit)), `exit ${outcome.exit}`);
        if (name !== 'Excesses') {
            assert.equal(outcome.exit, EXIT.lowValue);
        }
        assert.ok((await bench.sandbox.data(bench.address)).equals(before));
        assert.ok((await attempt(taken)).ok);
    });
}

/** @param {() => Promise<unknown>} restore */
async function stateAfter(restore) {
    await restore();
    return bench.sandbox.data(bench.address);
}

test('what a caller must attach covers what each operation burns', () => {
    const source = readFileSync(new URL('../src/client_escrow.tolk', import.meta.url), 'utf8');
    const asked = Object.fromEntries([...source.matchAll(/^const (\w+_GAS) = (\d+)$/gm)].map(([, name, gas]) => [name, Number(gas)]));
    const constants = {
        'TopUp, first': 'TOP_UP_GAS', 'TopUp': 'TOP_UP_GAS', 'Settle, session key': 'SETTLE_GAS',
        'Settle, operator key': 'SETTLE_GAS', 'RequestClose': 'REQUEST_CLOSE_GAS', 'Finalize': 'FINALIZE_GAS',
        'CoClose': 'CO_CLOSE_GAS', 'RetryOwed': 'RETRY_GAS', 'Fund comes back': 'BOUNCE_GAS',
    };
    for (const [operation, constant] of Object.entries(constants)) {
        const gas = bench.gas.committed()[operation];
        assert.ok(gas && gas * 1.05 < (asked[constant] ?? 0), `${operation} burns ${gas}, ${constant} is ${asked[constant]}`);
    }
});

test('no value below the least one changes anything, gas running out anywhere included', async () => {
    for (const { given, body, from = STRANGER } of Object.values(OPERATIONS).slice(0, -1)) {
        await bench.reset();
        await given();
        const data = await bench.sandbox.data(bench.address);
        for (let value = 0n; value < 420_000n; value += 30_011n) {
            await bench.act(body(), { from, value });
            assert.ok((await bench.sandbox.data(bench.address)).equals(data));
        }
    }
});
