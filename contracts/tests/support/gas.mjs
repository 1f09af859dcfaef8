/**
 * What operations burn, in units of gas, against what is committed in `tests/gas/CONTRACT.json`.
 *
 * Units do not depend on the machine or on prices, so a difference is a change of the code or of the compiler.
 * `CONTRACTS_WRITE=1` writes the file anew; the difference is then reviewed like any other.
 */
import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';

/** Of the committed figure; a signature's or an amount's length may move it a little. */
const TOLERANCE = 0.01;

export class GasLog {
    /** @param {string} contract */
    constructor(contract) {
        this.path = new URL(`../gas/${contract}.json`, import.meta.url);
        /** @type {Record<string, number>} */
        this.seen = {};
    }

    /**
     * Keeps the highest figure of an operation.
     * @param {string} operation
     * @param {bigint} gas
     */
    note(operation, gas) {
        this.seen[operation] = Math.max(this.seen[operation] ?? 0, Number(gas));
    }

    /** @returns {Record<string, number>} */
    committed() {
        return JSON.parse(readFileSync(this.path, 'utf8'));
    }

    /** Compares all that was noted with what is committed, both ways. */
    check() {
        const sorted = Object.fromEntries(Object.entries(this.seen).sort(([a], [b]) => (a < b ? -1 : 1)));
        if (process.env['CONTRACTS_WRITE'] === '1') {
            writeFileSync(this.path, `${JSON.stringify(sorted, null, 2)}\n`);
        }
        const committed = this.committed();
        assert.deepEqual(Object.keys(sorted), Object.keys(committed));
        for (const [operation, gas] of Object.entries(committed)) {
            const now = sorted[operation] ?? 0;
            assert.ok(Math.abs(now - gas) <= gas * TOLERANCE, `${operation}: ${now} gas, committed ${gas}`);
        }
    }
}
