/**
 * Cells as the contracts read them, for codecs in other languages: `tests/vectors/ton/NAME.json`.
 *
 * Each case names a record and its fields in the words of `cocoon/contracts`: addresses raw, hashes and keys in hex,
 * numbers as decimal strings, cells as base64 bags. The keys are for tests, and say so.
 */
import { readFileSync } from 'node:fs';
import { Address, Cell, beginCell } from '@ton/core';
import { keyPairFromSeed } from '@ton/crypto';
import { GLOBAL_ID } from '../../config.mjs';
import * as escrow from './escrow.mjs';
import { claimBody, postRoot, withdrawFee, anchor, fund, configCell as payoutConfigCell, payoutInit, accountInit } from './payout.mjs';
import * as registry from './registry.mjs';
import { addressOf, codeOf, deployedAt } from './sandbox.mjs';

/** @typedef {string | number | {[name: string]: Value}} Value */
/**
 * `init`: the contract that is deployed with this data, and where.
 * @typedef {{record: string, fields: {[name: string]: Value}, boc: string, hash: string, code?: string,
 *   address?: string, seed?: string, signature?: string}} Case
 */

const COINS_MAX = (1n << 120n) - 1n;
const SEEDS = { session: '51'.repeat(32), operator: '52'.repeat(32) };
const SESSION = keyPairFromSeed(Buffer.from(SEEDS.session, 'hex'));
const OPERATOR = keyPairFromSeed(Buffer.from(SEEDS.operator, 'hex'));

/** @param {bigint} value */
const hex = (value) => value.toString(16).padStart(64, '0');
/** @param {Cell} cell */
const bag = (cell) => cell.toBoc({ idx: false, crc32: false }).toString('base64');

/**
 * @param {string} record
 * @param {{[name: string]: Value}} fields
 * @param {Cell} cell
 * @returns {Case}
 */
function caseOf(record, fields, cell) {
    return { record, fields, boc: bag(cell), hash: cell.hash().toString('hex') };
}

/**
 * @param {string} record
 * @param {{[name: string]: Value}} fields
 * @param {string} code
 * @param {{code: Cell, data: Cell}} init
 * @returns {Case}
 */
function deployment(record, fields, code, init) {
    return { ...caseOf(record, fields, init.data), code, address: deployedAt(init).toRawString() };
}

/** @type {escrow.Config} */
const ESCROW = {
    client: addressOf(1), operator: addressOf(3), payout: addressOf(4), voucherKey: SESSION.publicKey,
    operatorKey: OPERATOR.publicKey, challengeS: 86_400, epoch: 7, allowMax: 2_000_000_000n, allowRate: 1000n, salt: 5n,
};

/** @param {escrow.Config} config */
function escrowFields(config) {
    return {
        client: config.client.toRawString(), operator: config.operator.toRawString(),
        payout: config.payout.toRawString(), voucher_key: config.voucherKey.toString('hex'),
        operator_key: config.operatorKey.toString('hex'), challenge_s: config.challengeS, epoch: config.epoch,
        allow_max_nano: `${config.allowMax}`, allow_rate_nano: `${config.allowRate}`, salt: hex(config.salt),
    };
}

/** @param {escrow.Config} config @param {Partial<escrow.Data>} changes */
function escrowData(config, changes) {
    const data = {
        phase: 0, deposited: 0n, settled: 0n, owed: 0n, allowAt: config.allowMax, allowTime: 0, closeRequestedAt: 0,
        usageRoot: 0n, config: escrow.configCell(config), ...changes,
    };
    const fields = {
        phase: data.phase, deposited_nano: `${data.deposited}`, settled_nano: `${data.settled}`,
        owed_nano: `${data.owed}`, allow_at_nano: `${data.allowAt}`, allow_time: data.allowTime,
        close_requested_at: data.closeRequestedAt, usage_root: hex(data.usageRoot), config: escrowFields(config),
    };
    return { fields, cell: escrow.dataCell(data) };
}

/** @returns {Case[]} */
function escrowCases() {
    const configs = [
        ESCROW,
        { ...ESCROW, voucherKey: Buffer.alloc(32), allowMax: 0n, allowRate: 0n, salt: 0n, epoch: 0, challengeS: 0 },
        {
            ...ESCROW, client: new Address(-1, addressOf(6).hash), allowMax: COINS_MAX, allowRate: COINS_MAX,
            salt: (1n << 256n) - 1n, epoch: 2 ** 32 - 1, challengeS: 2 ** 32 - 1,
        },
    ];
    const cases = configs.flatMap((config) => [
        caseOf('escrow.EscrowConfig', escrowFields(config), escrow.configCell(config)),
        deployment('escrow.EscrowData', escrowData(config, {}).fields, 'client_escrow', escrow.initOf(config)),
    ]);
    for (const changes of [
        { phase: 1, deposited: 10n, settled: 3n, owed: 1n, allowAt: 4n, allowTime: 5, closeRequestedAt: 6, usageRoot: 9n },
        { phase: 2, deposited: COINS_MAX, settled: COINS_MAX, owed: COINS_MAX, usageRoot: (1n << 256n) - 1n },
    ]) {
        const { fields, cell } = escrowData(ESCROW, changes);
        cases.push(caseOf('escrow.EscrowData', fields, cell));
    }
    return [...cases, ...promises(), ...escrowMessages()];
}

/** @returns {Case[]} vouchers and terms, signed */
function promises() {
    const at = escrow.escrowAt(ESCROW);
    const [session, operator] = [SESSION.secretKey, OPERATOR.secretKey];
    /** @type {Case[]} */
    const cases = [];
    for (const [cumulative, usageRoot] of /** @type {[bigint, bigint][]} */ ([[0n, 0n], [12_345n, 9n], [COINS_MAX, 1n << 255n]])) {
        const shared = { global_id: GLOBAL_ID, escrow: at.toRawString(), epoch: 7, cumulative_nano: `${cumulative}` };
        const promised = { escrow: at, epoch: 7, cumulative, usageRoot };
        const voucher = escrow.voucherCell(promised);
        const terms = escrow.termsCell(promised);
        for (const [seed, key] of /** @type {[string, Buffer][]} */ ([[SEEDS.session, session], [SEEDS.operator, operator]])) {
            const fields = { ...shared, usage_root: hex(usageRoot) };
            const signature = escrow.signCell(voucher, key).toString('hex');
            cases.push({ ...caseOf('escrow.Voucher', fields, voucher), seed, signature });
        }
        const signature = escrow.signCell(terms, operator).toString('hex');
        cases.push({ ...caseOf('escrow.CloseTerms', shared, terms), seed: SEEDS.operator, signature });
    }
    return cases;
}

/** @returns {Case[]} */
function escrowMessages() {
    const cell = escrow.voucherCell({ escrow: escrow.escrowAt(ESCROW), epoch: 7, cumulative: 5n });
    const signature = escrow.signCell(cell, SESSION.secretKey);
    const [query, text] = [(1n << 64n) - 1n, `${(1n << 64n) - 1n}`];
    const signed = { query_id: text, signature: signature.toString('hex') };
    return [
        caseOf('escrow.TopUp', { query_id: text, amount_nano: `${COINS_MAX}` }, escrow.topUp(COINS_MAX, query)),
        caseOf('escrow.TopUp', { query_id: '0', amount_nano: '1' }, escrow.topUp(1n, 0n)),
        ...[0, 1].map((signer) => caseOf('escrow.Settle', { ...signed, signer, voucher: bag(cell) }, escrow.settle(signer, signature, cell, query))),
        caseOf('escrow.RequestClose', { query_id: text }, escrow.requestClose(query)),
        caseOf('escrow.Finalize', { query_id: text }, escrow.finalize(query)),
        caseOf('escrow.CoClose', { ...signed, terms: bag(cell) }, escrow.coClose(signature, cell, query)),
        caseOf('escrow.RetryOwed', { query_id: text }, escrow.retryOwed(query)),
        caseOf('messages.Excesses', { query_id: text }, escrow.excesses(query)),
    ];
}

/** @returns {Case[]} */
function registryCases() {
    const params = {
        owner: addressOf(7), policyDigest: 1n, manifestRoot: (1n << 256n) - 1n, feeBps: 500, delayS: 60,
        operatorKey: OPERATOR.publicKey, escrowCode: 3n, payoutCode: 4n, stakeCode: 5n,
    };
    const fields = {
        owner: params.owner.toRawString(), policy_digest: hex(1n), manifest_root: hex((1n << 256n) - 1n), fee_bps: 500,
        delay_s: 60, operator_key: OPERATOR.publicKey.toString('hex'), escrow_code: hex(3n), payout_code: hex(4n),
        stake_code: hex(5n),
    };
    const current = registry.paramsCell(params);
    const pending = { owner: params.owner, delayS: 3600, pendingAt: 9, current, pending: current, salt: 8n };
    const data = { owner: fields.owner, delay_s: 3600, current: fields, salt: hex(8n) };
    return [
        caseOf('registry.NetworkParameters', fields, current),
        deployment('registry.RegistryData', { ...data, pending_at: 0, pending: '' }, 'registry', registry.initOf(params, 3600, 8n)),
        caseOf('registry.RegistryData', { ...data, pending_at: 9, pending: bag(current) }, registry.dataCell(pending)),
        caseOf('registry.Propose', { query_id: '1', parameters: bag(current) }, registry.propose(current, 1n)),
        caseOf('registry.Cancel', { query_id: '2' }, registry.cancel(2n)),
        caseOf('registry.Apply', { query_id: '3' }, registry.apply(3n)),
    ];
}

/** @returns {Case[]} */
function payoutCases() {
    const config = { operator: addressOf(3), feeTo: addressOf(8), feeBps: 500, delayS: 600, salt: 5n };
    const [payout, worker] = [deployedAt(payoutInit(config)), addressOf(9)];
    const [root, other] = [Buffer.alloc(32, 0xab), Buffer.alloc(32, 0xcd)];
    const fields = {
        operator: config.operator.toRawString(), fee_to: config.feeTo.toRawString(), fee_bps: 500, delay_s: 600,
        salt: hex(5n), account_code: bag(codeOf('payout_account')),
    };
    const none = hex(0n);
    const roots = {
        epoch: 0, root: none, total_nano: '0', pending_epoch: 0, pending_root: none, pending_total_nano: '0', pending_at: 0,
    };
    const anchored = { count: 0, origin_hash: none, size: 0, root: none, acc: none };
    const data = { received_nano: '0', paid_nano: '0', fee_withdrawn_nano: '0', roots, anchor: anchored, config: fields };
    const account = {
        payout: payout.toRawString(), worker: worker.toRawString(), claimed_nano: '0', owed_nano: '0',
        in_flight_nano: '0', in_flight_query: '0',
    };
    const proof = beginCell().storeUint(1, 32).storeUint(2, 32).storeUint(1, 8).storeBuffer(root).endCell();
    const named = { query_id: '1', worker: worker.toRawString(), cumulative_nano: '7', proof: bag(proof) };
    return [
        caseOf('payout.PayoutConfig', fields, payoutConfigCell(config)),
        deployment('payout.PayoutData', data, 'payout', payoutInit(config)),
        deployment('payout.PayoutAccountData', account, 'payout_account', accountInit(payout, worker)),
        caseOf('payout.Fund', { query_id: '1', amount_nano: '7' }, fund(7n, 1n)),
        caseOf('payout.PostRoot', { query_id: '1', epoch: 3, root: root.toString('hex'), total_nano: '9' }, postRoot(3, root, 9n)),
        caseOf('payout.Claim', named, claimBody({ worker, cumulative: 7n, proof, query: 1n })),
        caseOf('payout.WithdrawFee', { query_id: '1', amount_nano: '7' }, withdrawFee(7n)),
        caseOf('payout.PostAnchor', { query_id: '1', origin_hash: root.toString('hex'), size: '77', root: other.toString('hex') }, anchor(root, 77n, other)),
    ];
}

/** @returns {Record<string, Case[]>} every file, by name */
export function vectors() {
    return { escrow: escrowCases(), payout: payoutCases(), registry: registryCases() };
}

/** @param {string} name */
export function pathOf(name) {
    return new URL(`../../../tests/vectors/ton/${name}.json`, import.meta.url);
}

/**
 * @param {string} name
 * @returns {Case[]} what is committed
 */
export function committed(name) {
    return JSON.parse(readFileSync(pathOf(name), 'utf8')).cases;
}
