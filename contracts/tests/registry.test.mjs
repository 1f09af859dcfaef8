/** The registry: only the owner proposes, nobody applies early, and what cannot be read never waits. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { after, before, beforeEach, test } from 'node:test';
import { beginCell } from '@ton/core';
import { keyPairFromSeed } from '@ton/crypto';
import { gasFee } from './support/fees.mjs';
import { GasLog } from './support/gas.mjs';
import * as registry from './support/registry.mjs';
import { EXCESSES, EXIT, Sandbox, addressOf, deployedAt } from './support/sandbox.mjs';

const OWNER = addressOf(101);
const HEIR = addressOf(102);
const STRANGER = addressOf(103);
const DELAY_S = 3600;
const ENOUGH = 200_000_000n;
const RENT = 50_000_000n;
const KEY = keyPairFromSeed(Buffer.alloc(32, 0x53)).publicKey;
/** @type {registry.Params} */
const FIRST = {
    owner: OWNER, policyDigest: 1n, manifestRoot: 2n, feeBps: 500, delayS: 60, operatorKey: KEY,
    escrowCode: 3n, payoutCode: 4n, stakeCode: 5n,
};
const NEXT = { ...FIRST, policyDigest: 11n, delayS: 1 };
const INIT = registry.initOf(FIRST, DELAY_S, 6n);
const ADDRESS = deployedAt(INIT);
const gas = new GasLog('registry');

/** @type {Sandbox} */
let sandbox;
before(async () => {
    sandbox = await Sandbox.start();
    await sandbox.send(OWNER, ADDRESS, ENOUGH, registry.propose(registry.paramsCell(FIRST)), { init: INIT });
    await sandbox.send(OWNER, ADDRESS, ENOUGH, registry.cancel());
    sandbox.fresh = sandbox.chain.snapshot();
});
beforeEach(() => sandbox.reset());
after(() => gas.check());

async function data() {
    return registry.readData(await sandbox.data(ADDRESS));
}

/**
 * A message that is taken.
 * @param {import('@ton/core').Cell} body
 * @param {import('@ton/core').Address} from
 * @param {string} [note]
 */
async function act(body, from, note) {
    const outcome = await sandbox.send(from, ADDRESS, ENOUGH, body);
    assert.ok(outcome.ok, `exit ${outcome.exit}`);
    assert.ok(outcome.sent[0]?.op === EXCESSES && outcome.sent[0].to.equals(from));
    assert.equal(await sandbox.balance(ADDRESS), RENT);
    if (note) {
        gas.note(note, outcome.gas);
    }
}

/**
 * A message that is refused and changes nothing.
 * @param {number} exit
 * @param {import('@ton/core').Cell} body
 * @param {import('@ton/core').Address} from
 * @param {bigint} [value]
 */
async function refuse(exit, body, from, value = ENOUGH) {
    const before = await sandbox.data(ADDRESS);
    const outcome = await sandbox.send(from, ADDRESS, value, body);
    assert.equal(outcome.exit, exit);
    assert.ok((await sandbox.data(ADDRESS)).equals(before));
    assert.ok(outcome.sent[0]?.to.equals(from));
}

test('what the owner proposes waits in public, and anybody applies it when its time has come', async () => {
    const next = registry.paramsCell(NEXT);
    await act(registry.propose(next), OWNER, 'Propose');
    let now = await data();
    assert.ok(now.pending?.equals(next) && now.current.equals(registry.paramsCell(FIRST)));
    assert.equal(now.pendingAt, sandbox.now);
    assert.ok((await sandbox.get(ADDRESS, 'pending')).readCellOpt()?.equals(next));

    sandbox.advance(DELAY_S - 1);
    await refuse(EXIT.tooEarly, registry.apply(), OWNER);
    sandbox.advance(1);
    await act(registry.apply(), STRANGER, 'Apply');
    now = await data();
    assert.ok(now.current.equals(next));
    assert.deepEqual([now.pending, now.pendingAt, now.delayS], [null, 0, DELAY_S]);
    assert.ok((await sandbox.get(ADDRESS, 'current')).readCell().equals(next));
    assert.equal((await sandbox.get(ADDRESS, 'pending')).readCellOpt(), null);
    await refuse(EXIT.badState, registry.apply(), STRANGER);
});

test('a second proposal replaces the first and waits from its own beginning', async () => {
    await act(registry.propose(registry.paramsCell(NEXT)), OWNER);
    sandbox.advance(DELAY_S - 1);
    const other = registry.paramsCell({ ...FIRST, feeBps: 1 });
    await act(registry.propose(other), OWNER);
    sandbox.advance(DELAY_S - 1);
    await refuse(EXIT.tooEarly, registry.apply(), STRANGER);
    sandbox.advance(1);
    await act(registry.apply(), STRANGER);

    assert.ok((await data()).current.equals(other));
});

test('the owner takes a proposal back', async () => {
    await refuse(EXIT.badState, registry.cancel(), OWNER);
    await act(registry.propose(registry.paramsCell(NEXT)), OWNER);
    await refuse(EXIT.wrongSender, registry.cancel(), STRANGER);
    await act(registry.cancel(), OWNER, 'Cancel');
    sandbox.advance(DELAY_S);

    await refuse(EXIT.badState, registry.apply(), OWNER);
    const now = await data();
    assert.ok(now.current.equals(registry.paramsCell(FIRST)));
    assert.equal(now.pendingAt, 0);
});

test('nobody else proposes, and a handover counts from the moment it is applied', async () => {
    await refuse(EXIT.wrongSender, registry.propose(registry.paramsCell(NEXT)), STRANGER);
    await act(registry.propose(registry.paramsCell({ ...FIRST, owner: HEIR })), OWNER);
    await refuse(EXIT.wrongSender, registry.propose(registry.paramsCell(NEXT)), HEIR);
    sandbox.advance(DELAY_S);
    await act(registry.apply(), STRANGER);

    await refuse(EXIT.wrongSender, registry.propose(registry.paramsCell(NEXT)), OWNER);
    await act(registry.propose(registry.paramsCell({ ...NEXT, owner: HEIR })), HEIR);
});

test('parameters that cannot be read, or with a key that proves nothing, are not proposed', async () => {
    const whole = registry.paramsCell(NEXT).beginParse();
    const codes = whole.clone();
    const keys = codes.loadRef();
    const short = beginCell().storeBits(whole.clone().loadBits(whole.remainingBits - 1)).storeRef(keys).storeRef(codes.loadRef());
    const swapped = beginCell().storeBits(whole.clone().loadBits(whole.remainingBits))
        .storeRef(registry.paramsCell(NEXT).refs[1] ?? beginCell()).storeRef(keys);
    const long = beginCell().storeSlice(whole.clone()).storeBit(1);
    const codeless = beginCell().storeBits(whole.clone().loadBits(whole.remainingBits)).storeRef(keys).storeRef(beginCell());
    for (const cell of [short, swapped, codeless, long, beginCell()].map((builder) => builder.endCell())) {
        await refuse(9, registry.propose(cell), OWNER);
    }
    for (const weak of [Buffer.alloc(32), Buffer.concat([Buffer.of(1), Buffer.alloc(31)])]) {
        await refuse(EXIT.weakKey, registry.propose(registry.paramsCell({ ...NEXT, operatorKey: weak })), OWNER);
    }
});

test('too little value, plain transfers and unknown operations are refused', async () => {
    await act(registry.propose(registry.paramsCell(NEXT)), OWNER);
    sandbox.advance(DELAY_S);
    const least = gasFee(9000);
    await refuse(EXIT.lowValue, registry.propose(registry.paramsCell(FIRST)), OWNER, least - 1n);
    await refuse(EXIT.lowValue, registry.cancel(), OWNER, least - 1n);
    await refuse(EXIT.lowValue, registry.apply(), STRANGER, least - 1n);
    for (const body of [beginCell().endCell(), beginCell().storeUint(0, 32).endCell(), beginCell().storeUint(0x43e55004, 32).storeUint(1, 64).endCell()]) {
        await refuse(EXIT.unknownOp, body, OWNER);
    }
    await refuse(9, beginCell().storeSlice(registry.cancel().beginParse()).storeBit(0).endCell(), OWNER);
    for (const [body, from] of /** @type {const} */ ([
        [registry.apply(), STRANGER], [registry.propose(registry.paramsCell(FIRST)), OWNER], [registry.cancel(), OWNER],
    ])) {
        assert.ok((await sandbox.send(from, ADDRESS, least, body)).ok);
    }
});

test('a registry whose rent is used up in part obeys as before, and keeps what it is sent', async () => {
    sandbox.advance(10 * 365 * 86_400);
    const outcome = await sandbox.send(OWNER, ADDRESS, 1_000_000n, registry.propose(registry.paramsCell(NEXT)));

    assert.ok(outcome.ok);
    assert.ok((await sandbox.balance(ADDRESS)) < RENT);
    assert.ok((await data()).pending?.equals(registry.paramsCell(NEXT)));
});

test('what a caller must attach covers what each operation burns', () => {
    const source = readFileSync(new URL('../src/registry.tolk', import.meta.url), 'utf8');
    const asked = Number(/^const GAS_MAX = (\d+)$/m.exec(source)?.[1]);
    for (const [operation, burnt] of Object.entries(gas.committed())) {
        assert.ok(burnt * 1.05 < asked, `${operation} burns ${burnt}, asked are ${asked}`);
    }
});
