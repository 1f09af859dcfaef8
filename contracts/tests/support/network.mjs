/** A sandbox with our prices, and what tests ask of it. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { Address, Cell, SendMode, beginCell, contractAddress, storeStateInit } from '@ton/core';
import { Blockchain } from '@ton/sandbox';
import { networkConfig } from '../../config.mjs';

/** @typedef {import('@ton/sandbox').SandboxContract<import('@ton/sandbox').TreasuryContract>} Treasury */
/** @typedef {import('@ton/sandbox').BlockchainTransaction} Transaction */
/** @typedef {import('@ton/core').StateInit} StateInit */
/** @typedef {{ to: Address, value: bigint, body?: Cell, init?: StateInit | undefined, bounce?: boolean }} Sent */

export const TON = 1_000_000_000n;
export const START_S = 1_800_000_000;
export const UNKNOWN_OP = 0xffff;
export const EXCESSES = 0xd53276db;

/** @param {string} name @returns {Cell} committed code */
export function codeOf(name) {
    const [code] = Cell.fromBoc(readFileSync(new URL(`../../../cocoon/contracts/code/${name}.boc`, import.meta.url)));
    assert.ok(code);
    return code;
}

/** @returns {Promise<Blockchain>} */
export async function createNetwork() {
    const chain = await Blockchain.create({ config: networkConfig() });
    chain.now = START_S;
    return chain;
}

/** @param {Blockchain} chain @param {number} seconds */
export function advance(chain, seconds) {
    chain.now = (chain.now ?? START_S) + seconds;
}

/** @param {string} text @returns {bigint} nano */
export function ton(text) {
    const [whole = '0', fraction = ''] = text.split('.');
    return BigInt(whole) * TON + BigInt(fraction.padEnd(9, '0'));
}

/** @param {{ code: Cell, data: Cell }} init */
export function addressOf(init) {
    return contractAddress(0, init);
}

/** @param {Treasury} from @param {Sent} message @returns {Promise<Transaction[]>} */
export async function send(from, { to, value, body = Cell.EMPTY, init, bounce = true }) {
    const result = await from.send({
        to, value, body, bounce, ...(init === undefined ? {} : { init }), sendMode: SendMode.PAY_GAS_SEPARATELY,
    });
    return result.transactions;
}

/** @param {Transaction[]} transactions @param {Address} address @returns {Transaction} the first one there */
export function transactionAt(transactions, address) {
    const found = transactions.find((one) => placeOf(one).equals(address));
    assert.ok(found, `nothing happened at ${address}`);
    return found;
}

/** @param {Transaction} transaction */
export function placeOf(transaction) {
    return new Address(0, Buffer.from(transaction.address.toString(16).padStart(64, '0'), 'hex'));
}

/** @param {Transaction} transaction @returns {number} exit code of the computation; -1 where none ran */
export function exitOf(transaction) {
    assert.equal(transaction.description.type, 'generic');
    if (transaction.description.type !== 'generic' || transaction.description.computePhase.type !== 'vm') {
        return -1;
    }
    const action = transaction.description.actionPhase;
    const exit = transaction.description.computePhase.exitCode;
    return exit === 0 && action && !action.success ? action.resultCode : exit;
}

/** @param {Transaction} transaction @returns {number} gas units */
export function gasOf(transaction) {
    assert.ok(transaction.description.type === 'generic' && transaction.description.computePhase.type === 'vm');
    return Number(transaction.description.computePhase.gasUsed);
}

/** @param {Transaction} transaction @returns {number} op of the message that it handled; 0 for none */
export function opOf(transaction) {
    const body = transaction.inMessage?.body;
    return body && body.bits.length >= 32 ? body.beginParse().loadUint(32) : 0;
}

/** @param {Transaction[]} transactions @param {number} op @returns {Transaction[]} those that handled such a message */
export function handled(transactions, op) {
    return transactions.filter((one) => opOf(one) === op);
}

/** @param {Transaction} transaction @returns {bigint} nano that came with the message */
export function valueOf(transaction) {
    const info = transaction.inMessage?.info;
    assert.ok(info?.type === 'internal');
    return info.value.coins;
}

/** @param {Blockchain} chain @param {Address} address @returns {Promise<Cell>} */
export async function dataOf(chain, address) {
    const { accountState } = await chain.getContract(address);
    assert.ok(accountState?.type === 'active' && accountState.state.data, `${address} is not deployed`);
    return accountState.state.data;
}

/** @param {Blockchain} chain @param {Address} address @returns {Promise<bigint>} nano */
export async function balanceOf(chain, address) {
    return (await chain.getContract(address)).balance;
}

/** @param {StateInit} init @returns {{ bits: number, cells: number }} of a state, every different cell once */
export function sizeOf(init) {
    const seen = new Set();
    let bits = 0;
    /** @param {Cell} cell */
    const walk = (cell) => {
        const hash = cell.hash().toString('hex');
        if (!seen.has(hash)) {
            seen.add(hash);
            bits += cell.bits.length;
            cell.refs.forEach(walk);
        }
    };
    walk(beginCell().store(storeStateInit(init)).endCell());
    return { bits, cells: seen.size };
}

/** A wallet whose code throws whatever it gets (SETCP0, THROW 7). @param {number} salt */
export function refusingWallet(salt) {
    const code = beginCell().storeUint(0xff00f207, 32).endCell();
    const data = beginCell().storeUint(salt, 32).endCell();
    return { code, data };
}
