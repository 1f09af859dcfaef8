// The local chain's parts; as a whole it is tested with a real client, in tests/integration/chain.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { appendFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { beginCell, Cell, Dictionary } from '@ton/core';
import { AdnlServer, sha256 } from '../localchain/adnl.mjs';
import { AugmentedTree, bitsOf } from '../localchain/augmented.mjs';
import { boc, merkleProof, merkleUpdate, pruned, withAll } from '../localchain/cells.mjs';
import { Faults } from '../localchain/faults.mjs';
import { LITE_API } from '../localchain/schema.mjs';
import { Store, StoreError } from '../localchain/store.mjs';
import { Reader, TlError } from '../localchain/tl.mjs';

const MAIN = fileURLToPath(new URL('../localchain/main.mjs', import.meta.url));

/** @param {import('node:test').TestContext} context */
function directory(context) {
    const path = mkdtempSync(join(tmpdir(), 'cocoon-localchain-'));
    context.after(() => rmSync(path, { recursive: true, force: true }));
    return path;
}

/** @param {number} number */
function key(number) {
    return sha256(Buffer.from(String(number)));
}

/** @param {import('@ton/core').Builder} builder @param {bigint} sum */
const storeSum = (builder, sum) => builder.storeCoins(sum);

/** @param {Cell | undefined} cell of an AugmentedTree with values of 32 bits @returns {Map<string, number>} as @ton/core reads it */
function read(cell) {
    if (!cell) return new Map();
    /** @type {import('@ton/core').DictionaryValue<number>} */
    const value = {
        serialize: () => undefined,
        parse: (slice) => {
            slice.loadCoins();
            return slice.loadUint(32);
        },
    };
    const found = Dictionary.loadDirect(Dictionary.Keys.Buffer(32), value, cell);
    return new Map([...found].map(([one, number]) => [one.toString('hex'), number]));
}

/** @param {number} number */
function value(number) {
    return beginCell().storeUint(number, 32).endCell();
}

test('constructor ids are those of the LiteAPI', () => {
    const id = (/** @type {string} */ name) => LITE_API.byName.get(name)?.id;
    assert.equal(id('liteServer.getMasterchainInfo'), 0x89b5e62e);
    assert.equal(id('liteServer.query'), 0x798c06df);
    assert.equal(id('tcp.ping'), 0x4d082b9a);
    assert.equal(id('liteServer.getAccountState'), 0x6b890e25);
});

test('what is written in TL is read again, optional fields and long strings too', () => {
    const shardblk = { workchain: 0, shard: -(2n ** 63n), seqno: 7, root_hash: key(1), file_hash: key(2) };
    const fields = { mode: 4, id: shardblk, shardblk, exit_code: -256, result: Buffer.alloc(70_000, 3) };
    const read = LITE_API.readBoxed(new Reader(LITE_API.boxed('liteServer.runMethodResult', fields)));
    assert.deepEqual(read, { name: 'liteServer.runMethodResult', fields });
    const cut = LITE_API.boxed('liteServer.runMethodResult', fields).subarray(0, 100);
    assert.throws(() => LITE_API.readBoxed(new Reader(cut)), TlError);
    assert.throws(() => LITE_API.readBoxed(new Reader(Buffer.alloc(8))), /unknown constructor/);
});

test('a bag of cells with several roots is read by others, whatever the bits', () => {
    const shared = beginCell().storeUint(5, 3).endCell();
    const roots = [0, 1, 7, 8, 9, 1023].map((length) => {
        const builder = beginCell().storeRef(shared);
        for (let i = 0; i < length; i += 1) builder.storeBit(i % 3 === 0);
        return builder.endCell();
    });
    const again = Cell.fromBoc(boc(...roots));
    assert.deepEqual(again.map((cell) => cell.hash().toString('hex')), roots.map((cell) => cell.hash().toString('hex')));
});

test('a proof has the hash of the whole and shows only what is kept', () => {
    const secret = beginCell().storeUint(1, 64).storeRef(beginCell().endCell()).endCell();
    const shown = beginCell().storeUint(2, 64).endCell();
    const root = beginCell().storeRef(secret).storeRef(shown).endCell();
    const proof = /** @type {Cell} */ (Cell.fromBoc(boc(merkleProof(root, [root, shown])))[0]);
    const body = /** @type {Cell} */ (proof.refs[0]);
    assert.ok(body.hash(0).equals(root.hash()));
    assert.equal(body.refs[0]?.isExotic, true);
    assert.equal(body.refs[1]?.beginParse().loadUint(64), 2);
    const update = merkleUpdate(secret, root);
    assert.equal(update.level(), 0);
    assert.ok(update.refs[1]?.hash(0).equals(root.hash()));
    assert.equal(pruned(root).level(), 1);
});

test('an augmented tree is a map, with a form that depends on nothing but its content', () => {
    let state = 12_345;
    const random = () => (state = (state * 1_103_515_245 + 12_345) % 2 ** 31);
    let tree = new AugmentedTree(256, storeSum);
    /** @type {Map<string, number>} */
    const model = new Map();
    for (let step = 0; step < 600; step += 1) {
        const one = key(random() % 60);
        const number = random() % 1000;
        if (random() % 3 === 0) {
            tree = tree.delete(bitsOf(one));
            model.delete(one.toString('hex'));
        } else {
            tree = tree.set(bitsOf(one), BigInt(number), value(number));
            model.set(one.toString('hex'), number);
        }
        if (step % 50 === 0 || step === 599) assert.deepEqual(read(tree.cell), model);
    }
    let fresh = new AugmentedTree(256, storeSum);
    for (const [hex, number] of [...model].reverse()) {
        fresh = fresh.set(bitsOf(Buffer.from(hex, 'hex')), BigInt(number), value(number));
    }
    assert.ok(model.size > 10);
    assert.equal(tree.sum, [...model.values()].reduce((sum, number) => sum + BigInt(number), 0n));
    assert.equal(fresh.cell?.hash().toString('hex'), tree.cell?.hash().toString('hex'));
    assert.equal([...tree.entries()].length, model.size);
});

test('a path shows its key and prunes the others', () => {
    let tree = new AugmentedTree(256, storeSum);
    for (let number = 0; number < 50; number += 1) tree = tree.set(bitsOf(key(number)), 1n, value(number));
    const root = /** @type {Cell} */ (tree.cell);
    const proof = merkleProof(root, tree.path(bitsOf(key(7)))).refs[0];
    assert.equal(tree.get(bitsOf(key(7)))?.beginParse().loadUint(32), 7);
    assert.equal(tree.get(bitsOf(key(99))), undefined);
    assert.ok(proof?.hash(0).equals(root.hash()));
    assert.ok(withAll(/** @type {Cell} */ (proof)).length < 30);
});

test('a stranger on the liteserver port is sent away, and the server goes on', async () => {
    const server = new AdnlServer(Buffer.alloc(32, 1), async () => undefined);
    const port = await server.listen('127.0.0.1', 0);
    try {
        for (const bytes of [Buffer.alloc(256), Buffer.from('GET / HTTP/1.1\r\n'.repeat(20))]) {
            const socket = connect(port, '127.0.0.1').on('error', () => undefined);
            socket.resume().write(bytes);
            await once(socket, 'close');
        }
        assert.equal(server.server.listening, true);
    } finally {
        server.close();
    }
});

test('a line that a crash cut off is dropped, and what is not ours is refused', (context) => {
    const path = directory(context);
    const block = (/** @type {number} */ seqno) => /** @type {any} */ ({ seqno, transactions: [] });
    const first = new Store(path);
    const place = first.append(block(1));
    first.append(block(2));
    first.close();
    appendFileSync(join(path, 'blocks.jsonl'), '{"seqno":3,"tra');
    const second = new Store(path);
    assert.deepEqual([...second.blocks()].map(({ block: { seqno } }) => seqno), [1, 2]);
    assert.equal(second.read(place).seqno, 1);
    assert.equal(second.read(second.append(block(3))).seqno, 3);
    assert.deepEqual([...second.blocks()].map(({ block: { seqno } }) => seqno), [1, 2, 3]);
    assert.equal(second.key().length, 32);
    writeFileSync(join(path, 'snapshot.json'), JSON.stringify({ version: 1, global_id: -239 }));
    assert.throws(() => second.snapshot(-3), StoreError);
    second.close();
});

test('empty blocks of long ago are forgotten, those with transactions never', (context) => {
    const path = directory(context);
    const store = new Store(path);
    const lines = Array.from({ length: 11_200 }, (_, seqno) => {
        return `${JSON.stringify({ seqno, transactions: seqno % 100 === 7 ? [{ boc: '' }] : [] })}\n`;
    });
    appendFileSync(join(path, 'blocks.jsonl'), lines.join(''));
    const kept = [...store.blocks()].map(({ block: { seqno }, place }) => ({ seqno, place }));
    assert.deepEqual(kept.filter(({ seqno }) => seqno < 1_200).map(({ seqno }) => seqno), [...Array(12).keys()].map((i) => i * 100 + 7));
    assert.equal(kept.length, 10_012);
    const middle = kept[5_000];
    assert.equal(middle && store.read(middle.place).seqno, middle?.seqno);
    store.close();
});

test('a fault that cannot be is refused, and nothing is set', () => {
    const faults = new Faults();
    assert.throws(() => faults.set({ drop: 1, nonsense: 1 }), /no fault nonsense/);
    assert.throws(() => faults.set({ drop: 1, lie_about: 'EQ' }), /raw address/);
    assert.equal(faults.drop, 0);
    faults.set({ drop: 2, halt: true });
    assert.deepEqual([faults.strikes('drop'), faults.strikes('drop'), faults.strikes('drop')], [true, true, false]);
    faults.clear();
    assert.equal(faults.halt, false);
});

test('the process ends with its standard input, and keeps what it had', async (context) => {
    const path = directory(context);
    const child = spawn(process.execPath, [MAIN, '--state', path, '--until-stdin-ends'], {
        stdio: ['pipe', 'pipe', 'inherit'],
    });
    await once(child.stdout, 'data');
    child.stdin.end();
    const [status] = await once(child, 'exit');
    assert.equal(status, 0);
    assert.ok(JSON.parse(readFileSync(join(path, 'snapshot.json'), 'utf8')).seqno >= 0);
});
