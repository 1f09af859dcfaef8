// Bags of cells with several roots, and the exotic cells of Merkle proofs.
// @ton/core writes one root only. Sources: TVM whitepaper 3.1; crypto/tl/boc.tlb (serialized_boc#b5ee9c72).

import { BitBuilder, Cell } from '@ton/core';

const PRUNED = 1;
const MERKLE_PROOF = 3;
const MERKLE_UPDATE = 4;

/** @param {...Cell} roots @returns {Buffer} */
export function boc(...roots) {
    const order = ordered(roots);
    /** @type {Map<string, number>} */
    const index = new Map(order.map((cell, position) => [keyOf(cell), position]));
    const size = bytesFor(order.length);
    const cells = order.map((cell) => cellBytes(cell, index, size));
    const total = cells.reduce((sum, bytes) => sum + bytes.length, 0);
    const offset = bytesFor(total);
    const head = [0xb5, 0xee, 0x9c, 0x72, size, offset];
    const counts = [order.length, roots.length, 0].map((value) => unsigned(value, size));
    const positions = roots.map((root) => unsigned(index.get(keyOf(root)) ?? 0, size));
    return Buffer.concat([Buffer.from(head), ...counts, unsigned(total, offset), ...positions, ...cells]);
}

/** @param {Cell} cell of level 0 @returns {Cell} a branch of level 1 that stands for it */
export function pruned(cell) {
    return exotic((bits) => {
        bits.writeUint(PRUNED, 8);
        bits.writeUint(1, 8);
        bits.writeBuffer(cell.hash(0));
        bits.writeUint(cell.depth(0), 16);
    });
}

/**
 * @param {Cell} root
 * @param {Iterable<Cell>} kept what the proof shows, the root among it; everything else is pruned
 * @returns {Cell}
 */
export function merkleProof(root, kept) {
    const keys = new Set([...kept].map(keyOf));
    const body = prune(root, keys);
    return exotic((bits) => {
        bits.writeUint(MERKLE_PROOF, 8);
        bits.writeBuffer(body.hash(0));
        bits.writeUint(body.depth(0), 16);
    }, [body]);
}

/** @param {Cell} before @param {Cell} after @returns {Cell} an update that names both states and shows neither */
export function merkleUpdate(before, after) {
    return exotic((bits) => {
        bits.writeUint(MERKLE_UPDATE, 8);
        bits.writeBuffer(before.hash(0));
        bits.writeBuffer(after.hash(0));
        bits.writeUint(before.depth(0), 16);
        bits.writeUint(after.depth(0), 16);
    }, [pruned(before), pruned(after)]);
}

/** @param {Cell} cell @returns {Cell[]} the cell and all below it */
export function withAll(cell) {
    return [cell, ...cell.refs.flatMap(withAll)];
}

/** @param {Cell} cell @param {Set<string>} kept @returns {Cell} */
function prune(cell, kept) {
    if (!kept.has(keyOf(cell))) return pruned(cell);
    if (cell.isExotic || cell.refs.length === 0) return cell;
    return new Cell({ bits: cell.bits, refs: cell.refs.map((ref) => prune(ref, kept)) });
}

/** @param {(bits: BitBuilder) => void} fill @param {Cell[]} refs */
function exotic(fill, refs = []) {
    const bits = new BitBuilder();
    fill(bits);
    return new Cell({ exotic: true, bits: bits.build(), refs });
}

/** @param {Cell} cell */
function keyOf(cell) {
    return cell.hash(3).toString('latin1');
}

/** @param {Cell[]} roots @returns {Cell[]} every cell once, before all that it refers to */
function ordered(roots) {
    /** @type {Cell[]} */
    const order = [];
    const seen = new Set();
    /** @param {Cell} cell */
    const visit = (cell) => {
        if (seen.has(keyOf(cell))) return;
        seen.add(keyOf(cell));
        for (const ref of [...cell.refs].reverse()) visit(ref);
        order.push(cell);
    };
    for (const root of [...roots].reverse()) visit(root);
    return order.reverse();
}

/** @param {Cell} cell @param {Map<string, number>} index @param {number} size */
function cellBytes(cell, index, size) {
    const length = cell.bits.length;
    const bits = new BitBuilder(1024);
    bits.writeBits(cell.bits);
    if (length % 8 !== 0) {
        bits.writeBit(1);
        bits.writeUint(0, (8 - ((length + 1) % 8)) % 8);
    }
    const data = bits.buffer();
    const descriptors = [
        cell.refs.length + (cell.isExotic ? 8 : 0) + 32 * cell.mask.value,
        Math.floor(length / 8) + Math.ceil(length / 8),
    ];
    const refs = cell.refs.map((ref) => unsigned(index.get(keyOf(ref)) ?? 0, size));
    return Buffer.concat([Buffer.from(descriptors), data, ...refs]);
}

/** @param {number} value @param {number} size in bytes */
function unsigned(value, size) {
    const bytes = Buffer.alloc(size);
    bytes.writeUIntBE(value, 0, size);
    return bytes;
}

/** @param {number} value */
function bytesFor(value) {
    if (value < 1 << 8) return 1;
    if (value < 1 << 16) return 2;
    return value < 1 << 24 ? 3 : 4;
}
