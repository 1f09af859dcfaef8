// What the chain keeps on disk: one line per block in `blocks.jsonl`, all accounts now and then in `snapshot.json`.
// A restart reads the snapshot, then the lines after it. Neither file is ever half written: a line that a crash cut off
// is dropped, a snapshot takes its name only when complete.

import { randomBytes } from 'node:crypto';
import * as fs from 'node:fs';
import { join } from 'node:path';

const PRIVATE = 0o600;
const VERSION = 1;
const EMPTY_BLOCKS_KEPT = 10_000;
const REWRITE_MIN = 1_000;
const PIECE_BYTES = 1 << 20;

/** @typedef {{account: string, lt: string, hash: string, previous_lt: string, previous_hash: string, boc: string}} StoredTransaction */
/**
 * @typedef {{seqno: number, utime: number, start_lt: string, end_lt: string, total: string, offset_s: number,
 *     shard: [string, string], master: [string, string], shard_boc: string, master_boc: string,
 *     transactions: StoredTransaction[], accounts: Record<string, string | null>, queue: string[]}} StoredBlock
 *     hashes in hex, cells as base64; `accounts` are those that the block changed, `queue` the messages on their way
 */
/** @typedef {{version: number, global_id: number, utime: number, seqno: number, accounts: Record<string, string>}} Snapshot `utime` is that of the zero state */
/** @typedef {{at: number, length: number}} Place of a line */

/** The directory cannot be used: another process has it, or it was damaged. */
export class StoreError extends Error {}

export class Store {
    /** @param {string} directory created where missing @throws {StoreError} another process uses it */
    constructor(directory) {
        this.directory = directory;
        fs.mkdirSync(directory, { recursive: true, mode: 0o700 });
        this.#lock();
        this.descriptor = fs.openSync(this.path('blocks.jsonl'), 'a+', PRIVATE);
        this.end = fs.fstatSync(this.descriptor).size;
    }

    /** @param {string} name */
    path(name) {
        return join(this.directory, name);
    }

    /** @returns {Buffer} the seed of the liteserver's key, made once */
    key() {
        const path = this.path('liteserver.key');
        if (!fs.existsSync(path)) writeWhole(path, randomBytes(32));
        return fs.readFileSync(path);
    }

    /** @param {string} name @param {unknown} content written as JSON, whole or not at all */
    writeJson(name, content) {
        writeWhole(this.path(name), Buffer.from(`${JSON.stringify(content, null, 2)}\n`));
    }

    /** @param {number} globalId @returns {Snapshot | undefined} @throws {StoreError} it is not ours */
    snapshot(globalId) {
        const path = this.path('snapshot.json');
        if (!fs.existsSync(path)) return undefined;
        /** @type {Snapshot} */
        const snapshot = JSON.parse(fs.readFileSync(path, 'utf8'));
        if (snapshot.version !== VERSION || snapshot.global_id !== globalId) {
            throw new StoreError(`${path} is of another chain or version; move ${this.directory} away`);
        }
        return snapshot;
    }

    /** @param {Omit<Snapshot, 'version'>} snapshot */
    keepSnapshot(snapshot) {
        writeWhole(this.path('snapshot.json'), Buffer.from(JSON.stringify({ version: VERSION, ...snapshot })));
    }

    /** @param {StoredBlock} block @returns {Place} */
    append(block) {
        const line = Buffer.from(`${JSON.stringify(block)}\n`);
        const at = this.end;
        fs.writeSync(this.descriptor, line);
        this.end += line.length;
        return { at, length: line.length };
    }

    /** @param {Place} place @returns {StoredBlock} */
    read(place) {
        const line = Buffer.alloc(place.length);
        fs.readSync(this.descriptor, line, 0, place.length, place.at);
        return JSON.parse(line.toString());
    }

    /** Every block from the oldest; empty ones of long ago are forgotten here. @returns {Generator<{block: StoredBlock, place: Place}>} */
    *blocks() {
        this.#tidy();
        for (const { line, place } of this.#lines()) yield { block: JSON.parse(line.toString()), place };
    }

    close() {
        fs.closeSync(this.descriptor);
        fs.rmSync(this.path('pid'), { force: true });
    }

    /** Whole lines, each with its place; read in pieces, since the file may be longer than a string can be. @returns {Generator<{line: Buffer, place: Place}>} */
    *#lines() {
        const piece = Buffer.alloc(PIECE_BYTES);
        let rest = Buffer.alloc(0);
        let at = 0;
        for (let read = 0, length; (length = fs.readSync(this.descriptor, piece, 0, PIECE_BYTES, read)) > 0; read += length) {
            const bytes = Buffer.concat([rest, piece.subarray(0, length)]);
            let from = 0;
            for (let to; (to = bytes.indexOf('\n', from)) >= 0; from = to + 1) {
                yield { line: bytes.subarray(from, to), place: { at, length: to + 1 - from } };
                at += to + 1 - from;
            }
            rest = Buffer.from(bytes.subarray(from));
        }
    }

    #tidy() {
        const places = [];
        for (const { line, place } of this.#lines()) places.push({ place, empty: line.includes('"transactions":[]') });
        const old = places.length - EMPTY_BLOCKS_KEPT;
        const kept = places.filter(({ empty }, position) => !empty || position >= old);
        const last = places.at(-1)?.place ?? { at: 0, length: 0 };
        const whole = last.at + last.length === this.end;
        if (whole && places.length - kept.length < REWRITE_MIN) return;
        const path = this.path('blocks.jsonl');
        const fresh = fs.openSync(`${path}.new`, 'w', PRIVATE);
        for (const { place } of kept) {
            const line = Buffer.alloc(place.length);
            fs.readSync(this.descriptor, line, 0, place.length, place.at);
            fs.writeSync(fresh, line);
        }
        fs.closeSync(fresh);
        fs.renameSync(`${path}.new`, path);
        fs.closeSync(this.descriptor);
        this.descriptor = fs.openSync(path, 'a+', PRIVATE);
        this.end = fs.fstatSync(this.descriptor).size;
    }

    #lock() {
        const path = this.path('pid');
        const holder = fs.existsSync(path) ? Number(fs.readFileSync(path, 'utf8')) : 0;
        if (holder !== process.pid && isChain(holder)) {
            throw new StoreError(`a local chain (pid ${holder}) already runs in ${this.directory}`);
        }
        writeWhole(path, Buffer.from(`${process.pid}\n`));
    }
}

/** @param {number} pid @returns {boolean} whether a process of this number is a local chain, as far as can be told */
function isChain(pid) {
    if (!(pid > 0)) return false;
    try {
        process.kill(pid, 0);
    } catch {
        return false;
    }
    try {
        return fs.readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('localchain');
    } catch {
        return true;
    }
}

/** @param {string} path @param {Buffer} content readable by its owner alone */
function writeWhole(path, content) {
    fs.writeFileSync(`${path}.new`, content, { mode: PRIVATE });
    fs.renameSync(`${path}.new`, path);
}
