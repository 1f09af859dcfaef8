/** RFC 6962 trees and the leaves of payouts, as cocoon/merkle.py and cocoon/contracts/payout.py have them. */
import { createHash } from 'node:crypto';
import { beginCell } from '@ton/core';

/** @typedef {import('@ton/core').Address} Address */
/** @typedef {import('@ton/core').Cell} Cell */
/** @typedef {{ worker: Address, cumulative: bigint }} Earnings */
/** @typedef {{ index: number, size: number, path: Buffer[] }} Proof */

const HASHES_PER_CELL = 3;

/** @param {Buffer[]} parts */
export function sha256(...parts) {
    const hash = createHash('sha256');
    for (const part of parts) {
        hash.update(part);
    }
    return hash.digest();
}

/** @param {Buffer} leaf */
export function leafHash(leaf) {
    return sha256(Buffer.of(0), leaf);
}

/** @param {Buffer} left @param {Buffer} right */
function nodeHash(left, right) {
    return sha256(Buffer.of(1), left, right);
}

/** @param {Earnings} earnings @returns {Buffer} `"CPL1" wc1 account32 cumulative16` */
export function payoutLeaf({ worker, cumulative }) {
    const amount = Buffer.from(cumulative.toString(16).padStart(32, '0'), 'hex');
    return Buffer.concat([Buffer.from('CPL1'), Buffer.of(worker.workChain & 0xff), worker.hash, amount]);
}

/** A tree over leaves. A level pairs the hashes of the one below; one without a partner goes up as it is. */
export class Tree {
    /** @param {Buffer[]} leaves */
    constructor(leaves) {
        /** @type {Buffer[][]} */
        this.levels = [leaves.map(leafHash)];
        for (let below = this.levels[0] ?? []; below.length > 1; below = this.levels.at(-1) ?? []) {
            /** @type {Buffer[]} */
            const level = [];
            for (let at = 0; at < below.length; at += 2) {
                const [left, right] = below.slice(at, at + 2);
                level.push(right === undefined ? /** @type {Buffer} */ (left) : nodeHash(/** @type {Buffer} */ (left), right));
            }
            this.levels.push(level);
        }
    }

    get root() {
        const root = this.levels.at(-1)?.[0];
        if (root === undefined) {
            throw new Error('a tree has a leaf');
        }
        return root;
    }

    /** @param {number} index @returns {Proof} */
    proof(index) {
        /** @type {Buffer[]} */
        const path = [];
        let at = index;
        for (const level of this.levels.slice(0, -1)) {
            const sibling = level[at ^ 1];
            if (sibling !== undefined) {
                path.push(sibling);
            }
            at >>= 1;
        }
        return { index, size: this.levels[0]?.length ?? 0, path };
    }
}

/** @param {Proof} proof @param {{ count?: number }} [forged] @returns {Cell} `index32 size32 count8`, then three hashes to a cell */
export function proofCell({ index, size, path }, forged = {}) {
    /** @type {Cell | null} */
    let below = null;
    const first = Math.max(0, Math.ceil(path.length / HASHES_PER_CELL) - 1);
    for (let group = first; group >= 0; group -= 1) {
        const builder = beginCell();
        if (group === 0) {
            builder.storeUint(index, 32).storeUint(size, 32).storeUint(forged.count ?? path.length, 8);
        }
        for (const hash of path.slice(group * HASHES_PER_CELL, (group + 1) * HASHES_PER_CELL)) {
            builder.storeBuffer(hash);
        }
        if (below !== null) {
            builder.storeRef(below);
        }
        below = builder.endCell();
    }
    return /** @type {Cell} */ (below);
}

/** An epoch: what each worker has earned in all, one leaf each, in the order of accounts. */
export class Epoch {
    /** @param {Earnings[]} earnings */
    constructor(earnings) {
        this.earnings = [...earnings].sort((one, other) => Buffer.compare(one.worker.hash, other.worker.hash));
        this.tree = new Tree(this.earnings.map(payoutLeaf));
        this.total = earnings.reduce((sum, { cumulative }) => sum + cumulative, 0n);
    }

    /** @param {Address} worker */
    claimOf(worker) {
        const index = this.earnings.findIndex((one) => one.worker.equals(worker));
        const earnings = this.earnings[index];
        if (earnings === undefined) {
            throw new Error('the epoch has no such worker');
        }
        return { ...earnings, proof: this.tree.proof(index) };
    }
}
