/** Messages and data of worker_stake: docs/contracts.md, cocoon/contracts/stake.py. */
import { readFileSync } from 'node:fs';
import { Address, Cell, beginCell } from '@ton/core';
import { codeOf, ton } from './network.mjs';

/** @typedef {{ owner: Address, operator: Address, stakedKey: Buffer, operatorKey: Buffer, unbondS: number, bountyBps: number, salt?: bigint }} Config */
/** @typedef {{ name: string, kind: number, exit: number, evidence: Cell }} Case */

export const RENT = ton('0.05');
export const LIVE = 0;
export const SLASHED = 1;
export const EQUIVOCATION = 1;
export const OVER_USE = 2;
export const NOBODY = new Address(0, Buffer.alloc(32));
export const OP = {
    bond: 0x43e54001, requestUnbond: 0x43e54002, withdraw: 0x43e54003, slash: 0x43e54004,
    unbonded: 0x43e54101, bounty: 0x43e54102, burn: 0x43e54103,
};

/** @param {number} op */
function body(op) {
    return beginCell().storeUint(op, 32).storeUint(1, 64);
}

/** @param {bigint} amount */
export const bond = (amount) => body(OP.bond).storeCoins(amount).endCell();

/** @param {bigint} amount */
export const requestUnbond = (amount) => body(OP.requestUnbond).storeCoins(amount).endCell();

export const withdraw = () => body(OP.withdraw).endCell();

/** @param {{ kind: number, evidence: Cell }} shown */
export const slash = ({ kind, evidence }) => body(OP.slash).storeUint(kind, 8).storeRef(evidence).endCell();

/** @param {Config} config */
export function stakeInit({ owner, operator, stakedKey, operatorKey, unbondS, bountyBps, salt = 0n }) {
    const keys = beginCell().storeBuffer(stakedKey, 32).storeBuffer(operatorKey, 32).endCell();
    const config = beginCell().storeAddress(owner).storeAddress(operator).storeRef(keys).storeUint(unbondS, 32)
        .storeUint(bountyBps, 16).storeUint(salt, 256).endCell();
    const data = beginCell().storeUint(LIVE, 8).storeCoins(0).storeCoins(0).storeUint(0, 32).storeRef(config).endCell();
    return { code: codeOf('worker_stake'), data };
}

/** @param {Cell} data */
export function readStake(data) {
    const source = data.beginParse();
    return { state: source.loadUint(8), bond: source.loadCoins(), unbonding: source.loadCoins(), unbondAt: source.loadUint(32) };
}

/** What tests/slash_evidence.py made. */
export function slashVectors() {
    const file = JSON.parse(readFileSync(new URL('../../../tests/vectors/ton/slash.json', import.meta.url), 'utf8'));
    /** @type {Case[]} */
    const cases = file.cases.map((/** @type {{ name: string, kind: number, exit: number, evidence_boc_hex: string }} */ one) => ({
        name: one.name, kind: one.kind, exit: one.exit, evidence: Cell.fromHex(one.evidence_boc_hex),
    }));
    /** @param {string} name */
    const key = (name) => Buffer.from(file.keys[name].public_hex, 'hex');
    return {
        globalId: /** @type {number} */ (file.global_id),
        stake: new Address(0, Buffer.from(file.stake_hex, 'hex')),
        stakedKey: key('staked'),
        operatorKey: key('operator'),
        cases,
    };
}
