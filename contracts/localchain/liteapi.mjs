// The LiteAPI: what a liteserver answers about the chain, with the proofs that clients check.
// Error codes are those of ton-blockchain/ton, adnl and ton::ErrorCode: 0 for messages, 651 not ready, 652 timeout.

import { beginCell, Cell, loadShardAccount, storeAccount } from '@ton/core';
import { bitsOf } from './augmented.mjs';
import { MASTERCHAIN, proveAccount, proveHeader, proveShards, proveTransactions } from './blocks.mjs';
import { boc, merkleProof, withAll } from './cells.mjs';
import { MessageError } from './chain.mjs';
import { NOBODY, RejectedError } from './machine.mjs';

const NOT_READY = 651;
const TIMEOUT = 652;
const VERSION = 0x101;
const CAPABILITIES = 7n;
const TRANSACTIONS_MAX = 16;
const LISTED_MAX = 256;
const WAIT_MS_MAX = 60_000;
const LIE_NANO = 1_000_000_000_000n;
const EMPTY = Buffer.alloc(0);

/** @typedef {import('./history.mjs').BlockFacts} BlockFacts */
/** @typedef {import('./tl.mjs').Fields} Fields */
/** @typedef {[string, Fields]} Answer a constructor's name without `liteServer.`, and its fields */

/** An answer that is an error. */
export class LiteError extends Error {
    /** @param {number} code @param {string} message */
    constructor(code, message) {
        super(message);
        this.code = code;
    }
}

export class LiteApi {
    /** @param {import('./chain.mjs').Chain} chain */
    constructor(chain) {
        this.chain = chain;
        this.history = chain.history;
        this.faults = chain.faults;
        /** @type {Record<string, (query: Fields) => Answer | Promise<Answer>>} */
        this.methods = {
            getMasterchainInfo: () => this.#masterchainInfo(),
            getMasterchainInfoExt: ({ mode }) => this.#masterchainInfoExt(mode),
            getTime: () => ['currentTime', { now: chain.now() }],
            getVersion: () => ['version', { mode: 0, version: VERSION, capabilities: CAPABILITIES, now: chain.now() }],
            getBlock: ({ id }) => this.#block(id),
            getBlockHeader: ({ id, mode }) => this.#header(id, mode, this.#at(id)),
            lookupBlock: (query) => this.#lookup(query),
            sendMessage: ({ body }) => this.#send(body),
            getAccountState: (query) => ['accountState', this.#account(query)],
            getAccountStatePrunned: (query) => ['accountState', this.#account(query)],
            runSmcMethod: (query) => this.#runMethod(query),
            getAllShardsInfo: ({ id }) => this.#allShards(id),
            getShardInfo: ({ id }) => this.#shard(id),
            getOneTransaction: (query) => this.#oneTransaction(query),
            getTransactions: (query) => this.#transactions(query),
            listBlockTransactions: (query) => this.#list(query),
            listBlockTransactionsExt: (query) => this.#listWhole(query),
            getConfigAll: (query) => this.#config(query),
            getConfigParams: (query) => this.#config(query),
            getLibraries: () => ['libraryResult', { result: [] }],
        };
    }

    /** @returns {number} the latest block that readers may see */
    visible() {
        return Math.max(Math.min(1, this.chain.head.seqno), this.chain.head.seqno - this.faults.lag_blocks);
    }

    /** @param {string} method @param {Fields} query @returns {Promise<Answer>} @throws {LiteError} */
    async answer(method, query) {
        const handler = Object.hasOwn(this.methods, method) ? this.methods[method] : undefined;
        if (!handler) throw new LiteError(0, `the local chain does not answer ${method}`);
        return await handler(query);
    }

    /** @param {number} seqno @param {number} timeoutMs @throws {LiteError} it did not come in time */
    async wait(seqno, timeoutMs) {
        const there = await this.chain.wait(seqno, Math.min(timeoutMs, WAIT_MS_MAX), () => this.visible());
        if (!there) throw new LiteError(TIMEOUT, 'timeout');
    }

    /** @returns {BlockFacts} */
    #head() {
        return this.#numbered(this.visible());
    }

    /** @param {number} seqno @returns {BlockFacts} @throws {LiteError} */
    #numbered(seqno) {
        const facts = seqno <= this.visible() ? this.history.facts.get(seqno) : undefined;
        if (!facts) throw new LiteError(NOT_READY, `block ${seqno} is not in db`);
        return facts;
    }

    /** @param {Fields} id BlockIdExt @returns {BlockFacts} @throws {LiteError} */
    #at(id) {
        const facts = this.#numbered(id['seqno']);
        const known = id['workchain'] === MASTERCHAIN ? facts.master : facts.shard;
        if (!known.root_hash.equals(id['root_hash'])) throw new LiteError(NOT_READY, 'no such block');
        return facts;
    }

    /** @param {BlockFacts} facts @returns {import('./history.mjs').States} @throws {LiteError} */
    #states(facts) {
        const states = this.history.states.get(facts.seqno);
        if (!states) throw new LiteError(NOT_READY, `the state of block ${facts.seqno} is no longer kept`);
        return states;
    }

    /** @returns {Answer} */
    #masterchainInfo() {
        const head = this.#head();
        const state_root_hash = this.#states(head).master.hash(0);
        return ['masterchainInfo', { last: head.master, state_root_hash, init: this.chain.zeroState }];
    }

    /** @param {number} mode @returns {Answer} */
    #masterchainInfoExt(mode) {
        const [, info] = this.#masterchainInfo();
        const time = { last_utime: this.#head().utime, now: this.chain.now() };
        return ['masterchainInfoExt', { mode, version: VERSION, capabilities: CAPABILITIES, ...time, ...info }];
    }

    /** @param {Fields} id @returns {Answer} */
    #block(id) {
        const whole = this.history.block(this.#at(id));
        return ['blockData', { id, data: id['workchain'] === MASTERCHAIN ? whole.masterData : whole.shardData }];
    }

    /** @param {Fields} id @param {number} mode @param {BlockFacts} facts @returns {Answer} */
    #header(id, mode, facts) {
        const whole = this.history.block(facts);
        const root = id['workchain'] === MASTERCHAIN ? whole.master : whole.shard;
        return ['blockHeader', { id, mode, header_proof: boc(proveHeader(root)) }];
    }

    /** @param {Fields} query @returns {Answer} by seqno (mode 1), logical time (2) or unix time (4) */
    #lookup({ mode, id, lt, utime }) {
        let facts;
        if (mode & 1) facts = this.#numbered(id['seqno']);
        else {
            const seen = [...this.history.facts.values()].filter(({ seqno }) => seqno <= this.visible());
            facts = mode & 2 ? seen.find(({ endLt }) => endLt >= lt) : seen.findLast((one) => one.utime <= utime);
        }
        if (!facts) throw new LiteError(NOT_READY, 'no such block');
        return this.#header(id['workchain'] === MASTERCHAIN ? facts.master : facts.shard, 0, facts);
    }

    /** @param {Buffer} body @returns {Promise<Answer>} */
    async #send(body) {
        let message;
        try {
            message = Cell.fromBoc(Buffer.from(body))[0];
        } catch {
            throw new LiteError(0, 'cannot parse external message');
        }
        try {
            await this.chain.submit(/** @type {Cell} */ (message));
        } catch (error) {
            throw error instanceof MessageError ? new LiteError(0, error.message) : error;
        }
        return ['sendMsgStatus', { status: 1 }];
    }

    /** @param {Fields} query @returns {Fields} of accountState */
    #account({ id, account }) {
        const facts = this.#at(id);
        const states = this.#states(facts);
        const whole = this.history.block(facts);
        const found = account['workchain'] === 0 ? states.accounts.get(bitsOf(account['id'])) : undefined;
        const proof = boc(proveHeader(whole.shard), proveAccount(states.shard, states.accounts, account['id']));
        return { id, shardblk: facts.shard, shard_proof: this.#shardProof(facts), proof, state: this.#stateOf(account, found) };
    }

    /** @param {Fields} account @param {Cell | undefined} found ShardAccount @returns {Buffer} of the Account alone */
    #stateOf(account, found) {
        const cell = found?.refs[0];
        const raw = `0:${account['id'].toString('hex')}`;
        if (!found || !cell || this.faults.hide === raw) return EMPTY;
        if (this.faults.lie_about !== raw) return boc(cell);
        const forged = loadShardAccount(found.beginParse()).account;
        if (!forged) return EMPTY;
        forged.storage.balance.coins += LIE_NANO;
        return boc(beginCell().storeBit(1).store(storeAccount(forged)).endCell());
    }

    /** @param {BlockFacts} facts @returns {Buffer} */
    #shardProof(facts) {
        return boc(proveHeader(this.history.block(facts).master), proveShards(this.#states(facts).master));
    }

    /** @param {Fields} query @returns {Promise<Answer>} run against the account as of the block that was asked for */
    async #runMethod(query) {
        const { id, account, mode } = query;
        const facts = this.#at(id);
        const { shardblk, shard_proof, proof, state } = this.#account(query);
        const found = this.#states(facts).accounts.get(bitsOf(account['id'])) ?? NOBODY;
        const moment = { now: facts.utime, lt: facts.endLt, seed: facts.master.root_hash };
        const done = await this.#run(found, Number(query['method_id']), query['params'], moment);
        const proofs = { shardblk, shard_proof, proof, state_proof: state };
        return ['runMethodResult', { mode: mode & 7, id, ...proofs, exit_code: done.exitCode, result: done.stack }];
    }

    /** @param {Cell} account @param {number} method @param {Buffer} params @param {import('./machine.mjs').Moment} moment */
    async #run(account, method, params, moment) {
        try {
            return await this.chain.machine.get(account, method, Buffer.from(params), moment);
        } catch (error) {
            throw error instanceof RejectedError ? new LiteError(0, error.message) : error;
        }
    }

    /** @param {Fields} id @returns {Answer} */
    #allShards(id) {
        const facts = this.#at(id);
        const data = beginCell().storeBit(1).storeRef(this.history.shards(facts)).endCell();
        return ['allShardsInfo', { id, proof: this.#shardProof(facts), data: boc(data) }];
    }

    /** @param {Fields} id @returns {Answer} */
    #shard(id) {
        const facts = this.#at(id);
        const descr = /** @type {Cell} */ (this.history.shards(facts).refs[0]);
        return ['shardInfo', { id, shardblk: facts.shard, shard_proof: this.#shardProof(facts), shard_descr: boc(descr) }];
    }

    /** @param {Fields} query @returns {Answer} */
    #oneTransaction({ id, account, lt }) {
        const whole = this.history.block(this.#at(id));
        const found = whole.transactions.find((one) => one.account.equals(account['id']) && one.lt === lt);
        const proof = boc(proveTransactions(whole.shard, whole.transactions));
        return ['transactionInfo', { id, proof, transaction: found ? boc(found.cell) : EMPTY }];
    }

    /** @param {Fields} query @returns {Answer} newest first, from the one named by `lt` and `hash` */
    #transactions({ account, lt, hash, count }) {
        const ids = [];
        const cells = [];
        let at = { lt, hash };
        while (ids.length < Math.min(count, TRANSACTIONS_MAX) && at.lt > 0n) {
            const facts = this.history.transaction(account['id'], at.lt);
            if (!facts || !facts.hash.equals(at.hash) || facts.seqno > this.visible()) {
                if (ids.length > 0) break;
                throw new LiteError(NOT_READY, 'cannot locate transaction in block with specified logical time');
            }
            const block = this.#numbered(facts.seqno);
            const found = this.history.block(block).transactions.find((one) => one.cell.hash().equals(facts.hash));
            if (!found) break;
            ids.push(block.shard);
            cells.push(found.cell);
            at = { lt: facts.previousLt, hash: facts.previousHash };
        }
        return ['transactionList', { ids, transactions: cells.length > 0 ? boc(...cells) : EMPTY }];
    }

    /** @param {Fields} query */
    #listed({ id, mode, count, after, reverse_order }) {
        const whole = this.history.block(this.#at(id));
        const master = id['workchain'] === MASTERCHAIN;
        const all = master ? [] : [...whole.transactions].sort(byAccount);
        if (reverse_order) all.reverse();
        const start = after ? all.findIndex((one) => one.lt === after.lt && one.account.equals(after.account)) + 1 : 0;
        const shown = all.slice(start, start + Math.min(count, LISTED_MAX));
        const root = master ? proveHeader(whole.master) : proveTransactions(whole.shard, whole.transactions);
        const proof = mode & (1 << 5) ? boc(root) : EMPTY;
        return { shown, fields: { id, req_count: count, incomplete: start + shown.length < all.length, proof } };
    }

    /** @param {Fields} query @returns {Answer} */
    #list(query) {
        const { shown, fields } = this.#listed(query);
        const mode = query['mode'] & 7;
        const ids = shown.map(({ account, lt, cell }) => ({ mode, account, lt, hash: cell.hash() }));
        return ['blockTransactions', { ...fields, ids }];
    }

    /** @param {Fields} query @returns {Answer} */
    #listWhole(query) {
        const { shown, fields } = this.#listed(query);
        const transactions = shown.length > 0 ? boc(...shown.map(({ cell }) => cell)) : EMPTY;
        return ['blockTransactionsExt', { ...fields, transactions }];
    }

    /** @param {Fields} query @returns {Answer} always the whole configuration */
    #config({ id, mode }) {
        const facts = this.#at(id);
        const state = this.#states(facts).master;
        const header = proveHeader(this.history.block(facts).master);
        return ['configInfo', { mode, id, state_proof: boc(header), config_proof: boc(proveWhole(state)) }];
    }
}

/** @param {Cell} root @returns {Cell} a Merkle proof that hides nothing */
function proveWhole(root) {
    return merkleProof(root, withAll(root));
}

/** @typedef {import('./blocks.mjs').BlockTransaction} BlockTransaction */
/** @param {BlockTransaction} a @param {BlockTransaction} b */
function byAccount(a, b) {
    return Buffer.compare(a.account, b.account) || (a.lt < b.lt ? -1 : 1);
}
