/** What is committed under cocoon/contracts/code is what the sources make. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Cell } from '@ton/core';
import { build, differences } from '../build.mjs';

const files = await build();

test('the committed code is what the sources make, byte for byte', async () => {
    assert.deepEqual(await differences(files), []);
});

test('a changed, a missing and a leftover file are named', async () => {
    const [name] = [...files.keys()].filter((file) => file.endsWith('.boc'));
    assert.ok(name);
    const content = files.get(name);
    assert.ok(content);
    const changed = new Map([...files, [name, Buffer.concat([content, Buffer.of(0)])]]);
    const missing = new Map([...files, ['absent.boc', content]]);
    const leftover = new Map([...files].filter(([file]) => file !== name));

    assert.deepEqual(await differences(changed), [name]);
    assert.deepEqual(await differences(missing), ['absent.boc']);
    assert.deepEqual(await differences(leftover), [name]);
});

test('hashes.json has the hash of each root cell', async () => {
    const hashes = JSON.parse((files.get('hashes.json') ?? '').toString());
    for (const [file, content] of files) {
        if (file.endsWith('.boc')) {
            const [root] = Cell.fromBoc(content);
            assert.equal(hashes[file.replace('.boc', '')], root?.hash().toString('hex'));
        }
    }
});
