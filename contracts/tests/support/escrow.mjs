/** The client escrow's cells: configuration, data, vouchers and the bodies of its messages. */
import { Address, Cell, beginCell } from '@ton/core';
import { sign } from '@ton/crypto';
import { GLOBAL_ID } from '../../config.mjs';
import { EXCESSES, addressOf, codeOf, deployedAt } from './sandbox.mjs';

export const OP = /** @type {const} */ ({
    topUp: 0x43e50001, settle: 0x43e50002, requestClose: 0x43e50003, finalize: 0x43e50004, coClose: 0x43e50005,
    retryOwed: 0x43e50006, refund: 0x43e51001, fund: 0x43e52001,
});
export const VOUCHER_TAG = 0x43564331;
export const TERMS_TAG = 0x43434331;
/** Nano that stay in an escrow whatever happens. */
export const RENT = 50_000_000n;
export const OPEN = 0;
export const CLOSING = 1;
export const CLOSED = 2;
export const SESSION = 0;
export const OPERATOR = 1;
const CODE = codeOf('client_escrow');

/**
 * @typedef {{client: Address, operator: Address, payout: Address, voucherKey: Buffer, operatorKey: Buffer,
 *   challengeS: number, epoch: number, allowMax: bigint, allowRate: bigint, salt: bigint}} Config
 * @typedef {{phase: number, deposited: bigint, settled: bigint, owed: bigint, allowAt: bigint, allowTime: number,
 *   closeRequestedAt: number, usageRoot: bigint, config: Cell}} Data
 * @typedef {{tag?: number, globalId?: number, escrow: Address, epoch: number, cumulative: bigint, usageRoot?: bigint}}
 *   Promised
 */

/** @param {Config} config */
export function configCell(config) {
    const parties = beginCell().storeAddress(config.payout).storeBuffer(config.voucherKey, 32)
        .storeBuffer(config.operatorKey, 32).endCell();
    return beginCell().storeAddress(config.client).storeAddress(config.operator).storeRef(parties)
        .storeUint(config.challengeS, 32).storeUint(config.epoch, 32).storeCoins(config.allowMax)
        .storeCoins(config.allowRate).storeRef(beginCell().storeUint(config.salt, 256)).endCell();
}

/** @param {Data} data */
export function dataCell(data) {
    return beginCell().storeUint(data.phase, 8).storeCoins(data.deposited).storeCoins(data.settled)
        .storeCoins(data.owed).storeCoins(data.allowAt).storeUint(data.allowTime, 32)
        .storeUint(data.closeRequestedAt, 32).storeUint(data.usageRoot, 256).storeRef(data.config).endCell();
}

/**
 * @param {Cell} cell
 * @returns {Data}
 */
export function readData(cell) {
    const slice = cell.beginParse();
    const data = {
        phase: slice.loadUint(8), deposited: slice.loadCoins(), settled: slice.loadCoins(), owed: slice.loadCoins(),
        allowAt: slice.loadCoins(), allowTime: slice.loadUint(32), closeRequestedAt: slice.loadUint(32),
        usageRoot: slice.loadUintBig(256), config: slice.loadRef(),
    };
    slice.endParse();
    return data;
}

/** @param {Config} config */
export function initOf(config) {
    const data = dataCell({
        phase: OPEN, deposited: 0n, settled: 0n, owed: 0n, allowAt: config.allowMax, allowTime: 0, closeRequestedAt: 0,
        usageRoot: 0n, config: configCell(config),
    });
    return { code: CODE, data };
}

/** @param {Config} config */
export function escrowAt(config) {
    return deployedAt(initOf(config));
}

/** @param {Promised} promised */
export function voucherCell({ tag = VOUCHER_TAG, globalId = GLOBAL_ID, escrow, epoch, cumulative, usageRoot = 0n }) {
    return beginCell().storeUint(tag, 32).storeInt(globalId, 32).storeAddress(escrow).storeUint(epoch, 32)
        .storeCoins(cumulative).storeUint(usageRoot, 256).endCell();
}

/** @param {Promised} promised */
export function termsCell({ tag = TERMS_TAG, globalId = GLOBAL_ID, escrow, epoch, cumulative }) {
    return beginCell().storeUint(tag, 32).storeInt(globalId, 32).storeAddress(escrow).storeUint(epoch, 32)
        .storeCoins(cumulative).endCell();
}

/**
 * @param {Cell} cell
 * @param {Buffer} secretKey
 */
export function signCell(cell, secretKey) {
    return sign(cell.hash(), secretKey);
}

/**
 * @param {number} op
 * @param {bigint} queryId
 */
function head(op, queryId) {
    return beginCell().storeUint(op, 32).storeUint(queryId, 64);
}

/**
 * @param {bigint} amount
 * @param {bigint} [queryId]
 */
export function topUp(amount, queryId = 1n) {
    return head(OP.topUp, queryId).storeCoins(amount).endCell();
}

/**
 * @param {number} signer
 * @param {Buffer} signature
 * @param {Cell} voucher
 * @param {bigint} [queryId]
 */
export function settle(signer, signature, voucher, queryId = 2n) {
    return head(OP.settle, queryId).storeUint(signer, 8).storeBuffer(signature, 64).storeRef(voucher).endCell();
}

/** @param {bigint} [queryId] */
export function requestClose(queryId = 3n) {
    return head(OP.requestClose, queryId).endCell();
}

/** @param {bigint} [queryId] */
export function finalize(queryId = 4n) {
    return head(OP.finalize, queryId).endCell();
}

/**
 * @param {Buffer} signature
 * @param {Cell} terms
 * @param {bigint} [queryId]
 */
export function coClose(signature, terms, queryId = 5n) {
    return head(OP.coClose, queryId).storeBuffer(signature, 64).storeRef(terms).endCell();
}

/** @param {bigint} [queryId] */
export function retryOwed(queryId = 6n) {
    return head(OP.retryOwed, queryId).endCell();
}

/**
 * @param {bigint} amount
 * @param {bigint} queryId
 */
export function fund(amount, queryId) {
    return head(OP.fund, queryId).storeCoins(amount).endCell();
}

/** @param {bigint} queryId */
export function excesses(queryId) {
    return head(EXCESSES, queryId).endCell();
}

/** Parties of most tests; keys come from the caller, so that each file marks its own. */
export const CLIENT = addressOf(1);
export const STRANGER = addressOf(2);
export const OPERATOR_WALLET = addressOf(3);
