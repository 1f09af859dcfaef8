/** The registry's cells and messages. */
import { beginCell } from '@ton/core';
import { codeOf } from './sandbox.mjs';

export const OP = /** @type {const} */ ({ propose: 0x43e55001, cancel: 0x43e55002, apply: 0x43e55003 });

/**
 * @typedef {{owner: import('@ton/core').Address, policyDigest: bigint, manifestRoot: bigint, feeBps: number,
 *   delayS: number, operatorKey: Buffer, escrowCode: bigint, payoutCode: bigint, stakeCode: bigint}} Params
 * @typedef {{owner: import('@ton/core').Address, delayS: number, pendingAt: number,
 *   current: import('@ton/core').Cell, pending: import('@ton/core').Cell | null, salt: bigint}} Data
 */

/** @param {Params} params */
export function paramsCell(params) {
    const codes = beginCell().storeUint(params.escrowCode, 256).storeUint(params.payoutCode, 256)
        .storeUint(params.stakeCode, 256);
    return beginCell().storeAddress(params.owner).storeUint(params.policyDigest, 256)
        .storeUint(params.manifestRoot, 256).storeUint(params.feeBps, 16).storeUint(params.delayS, 32)
        .storeRef(beginCell().storeBuffer(params.operatorKey, 32)).storeRef(codes).endCell();
}

/** @param {Data} data */
export function dataCell(data) {
    return beginCell().storeAddress(data.owner).storeUint(data.delayS, 32).storeUint(data.pendingAt, 32)
        .storeRef(data.current).storeMaybeRef(data.pending).storeUint(data.salt, 256).endCell();
}

/**
 * @param {import('@ton/core').Cell} cell
 * @returns {Data}
 */
export function readData(cell) {
    const slice = cell.beginParse();
    const data = {
        owner: slice.loadAddress(), delayS: slice.loadUint(32), pendingAt: slice.loadUint(32),
        current: slice.loadRef(), pending: slice.loadMaybeRef(), salt: slice.loadUintBig(256),
    };
    slice.endParse();
    return data;
}

/**
 * @param {Params} params the first ones
 * @param {number} delayS of the registry
 * @param {bigint} salt
 */
export function initOf(params, delayS, salt) {
    const data = { owner: params.owner, delayS, pendingAt: 0, current: paramsCell(params), pending: null, salt };
    return { code: codeOf('registry'), data: dataCell(data) };
}

/**
 * @param {import('@ton/core').Cell} params
 * @param {bigint} [queryId]
 */
export function propose(params, queryId = 1n) {
    return beginCell().storeUint(OP.propose, 32).storeUint(queryId, 64).storeRef(params).endCell();
}

/** @param {bigint} [queryId] */
export function cancel(queryId = 2n) {
    return beginCell().storeUint(OP.cancel, 32).storeUint(queryId, 64).endCell();
}

/** @param {bigint} [queryId] */
export function apply(queryId = 3n) {
    return beginCell().storeUint(OP.apply, 32).storeUint(queryId, 64).endCell();
}
