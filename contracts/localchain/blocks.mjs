// Blocks and states of a chain with one shard, in the form of block.tlb, and proofs of parts of them.
// Pure: cells in, cells out. What a real chain has and this one does not (signatures, validators, message queues,
// other workchains) is written as empty, in its place.

import { beginCell } from '@ton/core';
import { sha256 } from './adnl.mjs';
import { AugmentedTree, bitsOf } from './augmented.mjs';
import { boc, merkleProof, merkleUpdate, withAll } from './cells.mjs';

/** @typedef {import('@ton/core').Cell} Cell */
/** @typedef {import('@ton/core').Builder} Builder */
/** @typedef {{workchain: number, shard: bigint, seqno: number, root_hash: Buffer, file_hash: Buffer}} BlockId */
/** @typedef {{account: Buffer, lt: bigint, cell: Cell, fees: bigint, before: Buffer, after: Buffer}} BlockTransaction */
/** @typedef {{seqno: number, utime: number, startLt: bigint, endLt: bigint, globalId: number}} Position */
/** @typedef {{id: BlockId, root: Cell, data: Buffer}} Block */

export const BASECHAIN = 0;
export const MASTERCHAIN = -1;
export const SHARD = -(2n ** 63n);
const SHARD_UNSIGNED = 2n ** 63n;
const STATE_ACCOUNTS = 1; // positions among a state's references
const STATE_CUSTOM = 3;

/** @param {Builder} builder @param {bigint} nano */
function storeCurrency(builder, nano) {
    return builder.storeCoins(nano).storeBit(0);
}

/** @returns {AugmentedTree} ShardAccounts: HashmapAug 256 ShardAccount DepthBalanceInfo */
export function emptyAccounts() {
    return new AugmentedTree(256, (builder, nano) => storeCurrency(builder.storeUint(0, 5), nano));
}

/**
 * ShardStateUnsplit.
 * @param {number} workchain @param {Position} at @param {AugmentedTree} accounts @param {Cell} [custom] McStateExtra
 */
export function stateCell(workchain, at, accounts, custom) {
    const outMessageQueue = beginCell().storeBit(0).storeUint(0, 64).storeBit(0).storeBit(0).endCell();
    const totals = beginCell().storeUint(0, 64).storeUint(0, 64);
    storeCurrency(totals, accounts.sum);
    storeCurrency(totals, 0n).storeBit(0).storeBit(0);
    const state = beginCell().storeUint(0x9023afe2, 32).storeInt(at.globalId, 32);
    storeShard(state, workchain).storeUint(at.seqno, 32).storeUint(0, 32).storeUint(at.utime, 32);
    state.storeUint(at.endLt, 64).storeUint(0, 32).storeRef(outMessageQueue).storeBit(0);
    state.storeRef(accounts.store(beginCell()).endCell()).storeRef(totals.endCell()).storeMaybeRef(custom ?? null);
    return state.endCell();
}

/**
 * Block.
 * @param {number} workchain
 * @param {Position} at
 * @param {{previous: BlockId & {endLt: bigint}, master?: BlockId & {endLt: bigint}, before: Cell, after: Cell,
 *     totals: [bigint, bigint], transactions: BlockTransaction[], custom?: Cell}} parts `master` is the masterchain
 *     block that a shard's block refers to; `custom` is McBlockExtra
 * @returns {Block}
 */
export function makeBlock(workchain, at, parts) {
    const extra = beginCell().storeUint(0x4a33f6fd, 32);
    extra.storeRef(storeCurrency(beginCell().storeBit(0).storeCoins(0), 0n).endCell());
    extra.storeRef(storeCurrency(beginCell().storeBit(0), 0n).endCell());
    extra.storeRef(accountBlocks(parts.transactions).tree.store(beginCell()).endCell());
    extra.storeUint(0, 256).storeUint(0, 256).storeMaybeRef(parts.custom ?? null);
    const root = beginCell().storeUint(0x11ef55aa, 32).storeInt(at.globalId, 32);
    root.storeRef(blockInfo(workchain, at, parts.previous, parts.master));
    root.storeRef(valueFlow(...parts.totals)).storeRef(merkleUpdate(parts.before, parts.after));
    const cell = root.storeRef(extra.endCell()).endCell();
    const data = boc(cell);
    return { root: cell, data, id: blockId(workchain, at.seqno, cell.hash(0), sha256(data)) };
}

/** @param {number} workchain @param {number} seqno @param {Buffer} rootHash @param {Buffer} fileHash @returns {BlockId} */
export function blockId(workchain, seqno, rootHash, fileHash) {
    return { workchain, shard: SHARD, seqno, root_hash: rootHash, file_hash: fileHash };
}

/** ShardHashes with our one shard: HashmapE 32 ^(BinTree ShardDescr). @param {BlockId} id @param {Position} at */
export function shardHashes(id, at) {
    const leaf = beginCell().storeBit(0).storeUint(0xb, 4).storeUint(id.seqno, 32).storeUint(at.seqno, 32);
    leaf.storeUint(at.startLt, 64).storeUint(at.endLt, 64).storeBuffer(id.root_hash).storeBuffer(id.file_hash);
    leaf.storeUint(0, 5).storeUint(0, 3).storeUint(0, 32).storeUint(SHARD_UNSIGNED, 64).storeUint(0, 32);
    storeCurrency(leaf.storeUint(at.utime, 32).storeBit(0), 0n);
    storeCurrency(leaf, 0n);
    // The one key is workchain 0: hml_same with 32 zero bits.
    return beginCell().storeUint(0b110, 3).storeUint(32, 6).storeRef(leaf.endCell()).endCell();
}

/** McStateExtra. @param {Cell} shards @param {Buffer} configAddress @param {Cell} config @param {bigint} total */
export function masterStateExtra(shards, configAddress, config, total) {
    const info = beginCell().storeUint(0, 16).storeUint(0, 65).storeBit(0).storeUint(0, 65).storeBit(0).storeBit(0);
    const extra = beginCell().storeUint(0xcc26, 16).storeBit(1).storeRef(shards).storeBuffer(configAddress);
    return storeCurrency(extra.storeRef(config).storeRef(info.endCell()), total).endCell();
}

/** McBlockExtra. @param {Cell} shards */
export function masterBlockExtra(shards) {
    const extra = beginCell().storeUint(0xcca5, 16).storeBit(0).storeBit(1).storeRef(shards).storeBit(0);
    storeCurrency(extra, 0n);
    storeCurrency(extra, 0n);
    return extra.storeRef(beginCell().storeBit(0).storeBit(0).storeBit(0).endCell()).endCell();
}

/** Proof of a block's header and of the states before and after it. @param {Cell} block */
export function proveHeader(block) {
    const [info, , update] = /** @type {[Cell, Cell, Cell]} */ (block.refs);
    return merkleProof(block, [block, ...withAll(info), update]);
}

/** @param {Cell} state of the shard @param {AugmentedTree} accounts of that state @param {Buffer} account */
export function proveAccount(state, accounts, account) {
    const dictionary = /** @type {Cell} */ (state.refs[STATE_ACCOUNTS]);
    return merkleProof(state, [state, dictionary, ...accounts.path(bitsOf(account))]);
}

/** Proof of the shard's latest block, as the masterchain knows it. @param {Cell} state of the masterchain */
export function proveShards(state) {
    const custom = /** @type {Cell} */ (state.refs[STATE_CUSTOM]);
    const shards = /** @type {Cell} */ (custom.refs[0]);
    return merkleProof(state, [state, ...plain(state, [STATE_CUSTOM]), custom, ...withAll(shards), ...plain(custom, [0, 1])]);
}

/** Proof of which transactions a block has; themselves they are not shown. @param {Cell} block @param {BlockTransaction[]} transactions */
export function proveTransactions(block, transactions) {
    const [info, flow, update, extra] = /** @type {[Cell, Cell, Cell, Cell]} */ (block.refs);
    const { tree, inner } = accountBlocks(transactions);
    const shown = [block, ...withAll(info), ...withAll(flow), update, extra, ...extra.refs, ...tree.cells()];
    return merkleProof(block, [...shown, ...inner]);
}

/** @param {Cell} cell @param {number[]} omitted @returns {Cell[]} what it refers to, with all below */
function plain(cell, omitted) {
    return cell.refs.filter((_, position) => !omitted.includes(position)).flatMap(withAll);
}

/**
 * ShardAccountBlocks.
 * @param {BlockTransaction[]} transactions in the order of their logical times
 * @returns {{tree: AugmentedTree, inner: Cell[]}} with the cells of the accounts' own trees and of their hash updates
 */
function accountBlocks(transactions) {
    /** @type {Map<string, BlockTransaction[]>} */
    const byAccount = new Map();
    for (const one of transactions) {
        const key = bitsOf(one.account);
        byAccount.set(key, [...(byAccount.get(key) ?? []), one]);
    }
    let tree = new AugmentedTree(256, storeCurrency);
    /** @type {Cell[]} */
    const inner = [];
    for (const [key, list] of byAccount) {
        const [first, last] = [list[0], list.at(-1)];
        if (!first || !last) continue;
        let own = new AugmentedTree(64, storeCurrency);
        for (const { lt, fees, cell } of list) {
            own = own.set(lt.toString(2).padStart(64, '0'), fees, beginCell().storeRef(cell).endCell());
        }
        const update = beginCell().storeUint(0x72, 8).storeBuffer(first.before).storeBuffer(last.after).endCell();
        inner.push(...own.cells(), update);
        const block = beginCell().storeUint(5, 4).storeBuffer(first.account);
        if (own.cell) block.storeSlice(own.cell.beginParse());
        tree = tree.set(key, own.sum, block.storeRef(update).endCell());
    }
    return { tree, inner };
}

/** @param {number} workchain @param {Position} at @param {BlockId & {endLt: bigint}} previous @param {(BlockId & {endLt: bigint}) | undefined} master */
function blockInfo(workchain, at, previous, master) {
    const info = beginCell().storeUint(0x9bc7a987, 32).storeUint(0, 32).storeBit(master !== undefined);
    info.storeUint(0, 7).storeUint(0, 8).storeUint(at.seqno, 32).storeUint(0, 32);
    storeShard(info, workchain).storeUint(at.utime, 32).storeUint(at.startLt, 64).storeUint(at.endLt, 64);
    info.storeUint(0, 32).storeUint(0, 32).storeUint(0, 32).storeUint(0, 32);
    if (master) info.storeRef(reference(master));
    return info.storeRef(reference(previous)).endCell();
}

/** ExtBlkRef. @param {BlockId & {endLt: bigint}} id */
function reference(id) {
    const cell = beginCell().storeUint(id.endLt, 64).storeUint(id.seqno, 32);
    return cell.storeBuffer(id.root_hash).storeBuffer(id.file_hash).endCell();
}

/** @param {bigint} before @param {bigint} after total balance of all accounts */
function valueFlow(before, after) {
    const flow = beginCell();
    for (const nano of [before, after, 0n, 0n]) storeCurrency(flow, nano);
    const rest = beginCell();
    for (let i = 0; i < 4; i += 1) storeCurrency(rest, 0n);
    const value = beginCell().storeUint(0xb8e48dfb, 32).storeRef(flow.endCell());
    return storeCurrency(value, 0n).storeRef(rest.endCell()).endCell();
}

/** ShardIdent of the whole workchain. @param {Builder} builder @param {number} workchain */
function storeShard(builder, workchain) {
    return builder.storeUint(0, 2).storeUint(0, 6).storeInt(workchain, 32).storeUint(0, 64);
}
