/** The gas table of docs/contracts.md says what the committed figures say. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { GasLog } from './support/gas.mjs';

const TEXT = readFileSync(new URL('../../docs/contracts.md', import.meta.url), 'utf8');

for (const contract of ['client_escrow', 'registry']) {
    test(`the gas table of ${contract} is current`, () => {
        const section = TEXT.split(`\n## ${contract}\n`)[1]?.split('\n## ')[0] ?? '';
        const rows = [...section.matchAll(/^\| ([^|]+) \| ([\d,]+) \|/gm)];
        const written = Object.fromEntries(rows.map(([, operation, gas]) => [operation, Number(gas?.replaceAll(',', ''))]));

        assert.deepEqual(written, new GasLog(contract).committed());
    });
}
