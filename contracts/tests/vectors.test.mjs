/** The vectors under `tests/vectors/ton` are what these contracts read; Python's codecs are held to them, too. */
import assert from 'node:assert/strict';
import { mkdirSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { Cell } from '@ton/core';
import { signVerify, keyPairFromSeed } from '@ton/crypto';
import { committed, pathOf, vectors } from './support/vectors.mjs';

const NOTE = 'Cells of the contracts in contracts/src, written by contracts/tests. The seeds are for tests only.';

for (const [name, cases] of Object.entries(vectors())) {
    test(`${name}.json is what the contracts' tests make`, () => {
        if (process.env['CONTRACTS_WRITE'] === '1') {
            mkdirSync(new URL('.', pathOf(name)), { recursive: true });
            writeFileSync(pathOf(name), `${JSON.stringify({ note: NOTE, cases }, null, 1)}\n`);
        }
        assert.deepEqual(committed(name), cases);
    });

    test(`${name}.json: every bag has the hash that stands beside it, and every signature verifies`, () => {
        for (const { record, boc, hash, seed, signature } of committed(name)) {
            const cell = Cell.fromBase64(boc);
            assert.equal(cell.hash().toString('hex'), hash, record);
            if (seed && signature) {
                const { publicKey } = keyPairFromSeed(Buffer.from(seed, 'hex'));
                assert.ok(signVerify(cell.hash(), Buffer.from(signature, 'hex'), publicKey), record);
            }
        }
    });
}
