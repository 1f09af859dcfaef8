// The chain: takes messages, makes blocks, keeps time.
// A block runs the messages that were on their way before it; what they send waits for the next (one hop per block), as
// on a real chain of one shard. There is one writer, and what readers see changes only when a block is complete.

import { Address, beginCell, Cell, Dictionary, loadMessage, loadTransaction, storeMessage } from '@ton/core';
import { sha256 } from './adnl.mjs';
import { bitsOf } from './augmented.mjs';
import { BASECHAIN, blockId, emptyAccounts, makeBlock, MASTERCHAIN, masterBlockExtra, shardHashes } from './blocks.mjs';
import { boc } from './cells.mjs';
import { applyChanges, blockTransaction, History } from './history.mjs';
import { balanceOf, Machine, NOBODY, RejectedError } from './machine.mjs';
import { StoreError } from './store.mjs';

const LT_STEP = 1_000_000n;
const TRANSACTIONS_PER_BLOCK_MAX = 512;
const EXTERNALS_MAX = 4_096;
const SNAPSHOT_BLOCKS = 500;
const STATES_OVER_RESTARTS = 64;
const REPEAT_MS = 60_000;

/** @typedef {import('./history.mjs').BlockFacts} BlockFacts */
/** @typedef {import('./history.mjs').States} States */
/** @typedef {import('./augmented.mjs').AugmentedTree} AugmentedTree */
/** @typedef {{blockMs: number, tickMs: number, cascade: boolean}} Pace `cascade`: all hops of a message in one block */
/** @typedef {{message: Cell, after: number}} External waits until the block after `after` */
/** @typedef {{transactions: Cell[], changes: Record<string, string | null>, accounts: AugmentedTree, lt: bigint, utime: number, seed: Buffer}} Draft a block in the making */

/** Where the faucet's coins come from: an address that nobody has a key for. */
export const FAUCET = new Address(BASECHAIN, sha256(Buffer.from('cocoon local chain: faucet')));

/** A message that the chain does not take. */
export class MessageError extends Error {}

export class Chain {
    /**
     * @param {{history: History, machine: Machine, faults: import('./faults.mjs').Faults, pace: Pace, genesis: number,
     *     now: () => number, log: (line: string) => void, fail: (error: unknown) => void}} parts
     *     `genesis` is the zero state's time; `now` in ms; `fail` is told that no block can be made any more
     */
    constructor({ history, machine, faults, pace, genesis, now, log, fail }) {
        this.history = history;
        this.machine = machine;
        this.faults = faults;
        this.pace = pace;
        this.clock = now;
        this.log = log;
        this.fail = fail;
        this.offsetS = 0;
        /** @type {Cell[]} */
        this.queue = [];
        /** @type {External[]} */
        this.externals = [];
        /** @type {Map<string, number>} */
        this.sent = new Map();
        /** @type {Set<() => void>} */
        this.waiters = new Set();
        /** @type {NodeJS.Timeout | undefined} */
        this.timer = undefined;
        this.running = false;
        this.sealedMs = 0;
        /** @type {Promise<unknown>} */
        this.sealing = Promise.resolve();
        this.genesis = genesis;
        this.head = this.#zero(genesis);
        this.zeroState = blockId(MASTERCHAIN, 0, this.head.master.root_hash, this.head.master.file_hash);
    }

    /** Continue where the store's last block ended, or begin. @throws {StoreError} the store is damaged */
    resume() {
        const { store, globalId } = this.history;
        const snapshot = store.snapshot(globalId);
        if (snapshot) this.#replay(snapshot);
        else if (store.end > 0) throw new StoreError('there are blocks and no snapshot; move the directory away');
        this.keepSnapshot();
    }

    /** Unix time on the chain, in seconds. */
    now() {
        return Math.max(Math.floor(this.clock() / 1000) + this.offsetS, this.head.utime);
    }

    start() {
        this.running = true;
        this.arm();
    }

    /** No new blocks from here on; the one in the making is completed. */
    async stop() {
        this.running = false;
        clearTimeout(this.timer);
        await this.sealing;
        this.keepSnapshot();
    }

    /** Of a state a little older than the latest, so that what readers asked just before a restart is there after it. */
    keepSnapshot() {
        const { store, globalId, states } = this.history;
        const wished = Math.max(0, this.head.seqno - STATES_OVER_RESTARTS);
        const [seqno, { accounts: tree }] = [...states].find(([one]) => one >= wished) ?? [this.head.seqno, this.states()];
        /** @type {Record<string, string>} */
        const accounts = {};
        for (const [key, cell] of tree.entries()) accounts[hexOf(key)] = cell.toBoc().toString('base64');
        store.keepSnapshot({ global_id: globalId, utime: this.genesis, seqno, accounts });
    }

    /** @returns {States} after the latest block */
    states() {
        const states = this.history.states.get(this.head.seqno);
        if (!states) throw new Error('the state of the latest block is always kept');
        return states;
    }

    /**
     * Check an external message against the current state and keep it for the next block.
     * @param {Cell} message
     * @throws {MessageError} it is not one, or its account does not take it
     */
    async submit(message) {
        const account = destinationOf(message, 'external-in');
        if (this.externals.length >= EXTERNALS_MAX) throw new MessageError('too many external messages wait');
        if (this.faults.reject_repeats) this.#refuseRepeat(message);
        const moment = { now: this.now(), lt: this.head.endLt + LT_STEP, seed: this.head.master.root_hash };
        try {
            await this.machine.run(this.states().accounts.get(bitsOf(account)) ?? NOBODY, message, moment);
        } catch (error) {
            if (!(error instanceof RejectedError)) throw error;
            const code = error.exitCode === undefined ? error.message : `exitcode=${error.exitCode}`;
            throw new MessageError(
                `cannot apply external message to current state : External message was not accepted, ${code}`,
            );
        }
        if (this.faults.strikes('drop')) return;
        const wait = this.faults.strikes('delay') ? this.faults.delay_blocks : 0;
        const copies = this.faults.strikes('duplicate') ? 2 : 1;
        for (let i = 0; i < copies; i += 1) this.externals.push({ message, after: this.head.seqno + wait });
        this.arm();
    }

    /** Coins out of nothing. @param {Buffer} account in the basechain @param {bigint} nano @returns {Promise<number>} the block that has them */
    async mint(account, nano) {
        if (this.faults.halt) throw new MessageError('the chain is halted');
        const info = {
            type: /** @type {const} */ ('internal'),
            ihrDisabled: true,
            bounce: false,
            bounced: false,
            src: FAUCET,
            dest: new Address(BASECHAIN, account),
            value: { coins: nano },
            ihrFee: 0n,
            forwardFee: 0n,
            createdLt: this.head.endLt,
            createdAt: this.now(),
        };
        const body = beginCell().storeUint(0, 32).storeStringTail('faucet').endCell();
        this.queue.push(beginCell().store(storeMessage({ info, body })).endCell());
        return await this.#next();
    }

    /** Move the clock forward. @param {number} seconds @returns {Promise<number>} a block of that time */
    async advance(seconds) {
        this.offsetS += seconds;
        return this.faults.halt ? this.head.seqno : await this.#next();
    }

    /** @param {number} seqno @param {number} timeoutMs @param {() => number} visible @returns {Promise<boolean>} whether it is there */
    wait(seqno, timeoutMs, visible) {
        if (visible() >= seqno) return Promise.resolve(true);
        return new Promise((resolve) => {
            /** @param {boolean} there */
            const settle = (there) => {
                clearTimeout(timer);
                this.waiters.delete(look);
                resolve(there);
            };
            const look = () => {
                if (visible() >= seqno) settle(true);
            };
            const timer = setTimeout(() => settle(false), timeoutMs);
            this.waiters.add(look);
        });
    }

    /** Plan the next block: soon where something waits, else at the next tick. */
    arm() {
        clearTimeout(this.timer);
        if (!this.running || this.faults.halt) return;
        const busy = this.queue.length > 0 || this.externals.length > 0;
        const due = this.sealedMs + (busy ? this.pace.blockMs : this.pace.tickMs);
        this.timer = setTimeout(() => void this.#next(), Math.max(0, due - this.clock()));
    }

    /** @returns {Promise<number>} the seqno of a block that began after this call */
    async #next() {
        const turn = this.sealing.then(() => this.#seal());
        this.sealing = turn.catch(this.fail);
        return await turn;
    }

    async #seal() {
        const draft = {
            transactions: /** @type {Cell[]} */ ([]),
            changes: /** @type {Record<string, string | null>} */ ({}),
            accounts: this.states().accounts,
            lt: this.head.endLt + 1n,
            utime: this.now(),
            seed: sha256(this.head.master.root_hash),
        };
        const left = await this.#runQueue(draft);
        await this.#runExternals(draft, left);
        this.queue = [...left, ...this.queue];
        const head = this.#close(draft);
        this.sealedMs = this.clock();
        if (head.seqno % SNAPSHOT_BLOCKS === 0) this.keepSnapshot();
        for (const look of this.waiters) look();
        this.arm();
        return head.seqno;
    }

    /** @param {Draft} draft @returns {Promise<Cell[]>} internal messages for the next block */
    async #runQueue(draft) {
        const now = this.queue.splice(0);
        /** @type {Cell[]} */
        const next = [];
        for (let message = now.shift(); message; message = now.shift()) {
            if (draft.transactions.length >= TRANSACTIONS_PER_BLOCK_MAX) {
                next.unshift(message, ...now.splice(0));
                break;
            }
            (this.pace.cascade ? now : next).push(...(await this.#apply(draft, message, 'internal')));
        }
        return next;
    }

    /** @param {Draft} draft @param {Cell[]} next */
    async #runExternals(draft, next) {
        const waiting = this.externals.splice(0);
        for (const external of waiting) {
            const full = draft.transactions.length >= TRANSACTIONS_PER_BLOCK_MAX;
            if (full || external.after > this.head.seqno) this.externals.push(external);
            else next.push(...(await this.#apply(draft, external.message, 'external-in')));
        }
        if (this.pace.cascade) {
            this.queue.unshift(...next.splice(0));
            next.push(...(await this.#runQueue(draft)));
        }
    }

    /** @param {Draft} draft @param {Cell} message @param {'internal' | 'external-in'} type @returns {Promise<Cell[]>} what it sent */
    async #apply(draft, message, type) {
        // Readers get their turn between two transactions.
        await new Promise((resolve) => setImmediate(resolve));
        try {
            const account = destinationOf(message, type);
            const key = bitsOf(account);
            const moment = { now: draft.utime, lt: draft.lt, seed: draft.seed };
            const done = await this.machine.run(draft.accounts.get(key) ?? NOBODY, message, moment);
            const balance = balanceOf(done.account);
            const gone = balance === undefined;
            draft.accounts = gone ? draft.accounts.delete(key) : draft.accounts.set(key, balance, done.account);
            draft.changes[account.toString('hex')] = gone ? null : done.account.toBoc().toString('base64');
            draft.transactions.push(done.transaction);
            draft.lt = loadTransaction(done.transaction.beginParse()).lt + LT_STEP;
            return messagesOf(done.transaction);
        } catch (error) {
            if (!(error instanceof RejectedError || error instanceof MessageError)) throw error;
            this.log(`a message was not delivered: ${error.message.split('\n')[0]}`);
            return [];
        }
    }

    /** @param {Draft} draft @returns {BlockFacts} the new head */
    #close(draft) {
        const { history, head } = this;
        const at = {
            seqno: head.seqno + 1,
            utime: draft.utime,
            startLt: head.endLt + 1n,
            endLt: draft.lt + LT_STEP - 1n,
            globalId: history.globalId,
        };
        const before = this.states();
        const transactions = draft.transactions.map((cell) => blockTransaction(accountOf(cell), cell));
        const shardState = history.shardState(at, draft.accounts);
        const totals = /** @type {[bigint, bigint]} */ ([before.accounts.sum, draft.accounts.sum]);
        const master = { ...head.master, endLt: head.endLt };
        const previous = { ...head.shard, endLt: head.endLt };
        const shard = makeBlock(BASECHAIN, at, {
            previous,
            master,
            before: before.shard,
            after: shardState,
            totals,
            transactions,
        });
        const shards = shardHashes(shard.id, at);
        const masterState = history.masterState(at, shards, draft.accounts.sum);
        const top = makeBlock(MASTERCHAIN, at, {
            previous: master,
            before: before.master,
            after: masterState,
            totals: [0n, 0n],
            transactions: [],
            custom: masterBlockExtra(shards),
        });
        const line = this.#line(at, draft, shard, top);
        this.head = history.add(line, history.store.append(line));
        history.keepStates(at.seqno, { accounts: draft.accounts, shard: shardState, master: masterState });
        history.keepBlock(at.seqno, {
            shard: shard.root,
            shardData: shard.data,
            master: top.root,
            masterData: top.data,
            transactions,
        });
        return this.head;
    }

    /**
     * @param {import('./blocks.mjs').Position} at @param {Draft} draft
     * @param {import('./blocks.mjs').Block} shard @param {import('./blocks.mjs').Block} master
     * @returns {import('./store.mjs').StoredBlock}
     */
    #line(at, draft, shard, master) {
        return {
            seqno: at.seqno,
            utime: at.utime,
            start_lt: String(at.startLt),
            end_lt: String(at.endLt),
            total: String(draft.accounts.sum),
            offset_s: this.offsetS,
            shard: hashes(shard.id),
            master: hashes(master.id),
            shard_boc: shard.data.toString('base64'),
            master_boc: master.data.toString('base64'),
            transactions: draft.transactions.map((cell) => {
                const one = loadTransaction(cell.beginParse());
                return {
                    account: accountOf(cell).toString('hex'),
                    lt: String(one.lt),
                    hash: cell.hash().toString('hex'),
                    previous_lt: String(one.prevTransactionLt),
                    previous_hash: hex256(one.prevTransactionHash),
                    boc: cell.toBoc().toString('base64'),
                };
            }),
            accounts: draft.changes,
            queue: this.queue.map((cell) => cell.toBoc().toString('base64')),
        };
    }

    /** @param {number} utime @returns {BlockFacts} the state before the first block, in the place of one */
    #zero(utime) {
        const { history } = this;
        const at = { seqno: 0, utime, startLt: 0n, endLt: 0n, globalId: history.globalId };
        const accounts = emptyAccounts();
        const shard = history.shardState(at, accounts);
        const shardId = blockId(BASECHAIN, 0, shard.hash(0), sha256(boc(shard)));
        const master = history.masterState(at, shardHashes(shardId, at), 0n);
        history.keepStates(0, { accounts, shard, master });
        return {
            ...at,
            shard: shardId,
            master: blockId(MASTERCHAIN, 0, master.hash(0), sha256(boc(master))),
            total: 0n,
            transactions: [],
            place: { at: 0, length: 0 },
        };
    }

    /** @param {import('./store.mjs').Snapshot} snapshot @throws {StoreError} */
    #replay(snapshot) {
        const { history } = this;
        let accounts = applyChanges(emptyAccounts(), snapshot.accounts, balanceOf);
        for (const { block, place } of history.store.blocks()) {
            this.head = history.add(block, place);
            this.offsetS = block.offset_s;
            this.queue = block.queue.map((text) => Cell.fromBase64(text));
            if (block.seqno > snapshot.seqno) accounts = applyChanges(accounts, block.accounts, balanceOf);
            if (block.seqno >= snapshot.seqno) this.#restoreStates(this.head, accounts);
        }
        if (this.head.seqno < snapshot.seqno) throw new StoreError('blocks are missing; move the directory away');
        const update = this.head.seqno > 0 ? history.block(this.head).shard.refs[2] : undefined;
        const expected = update?.refs[1]?.hash(0) ?? this.states().shard.hash(0);
        if (!expected.equals(this.states().shard.hash(0))) {
            throw new StoreError('the accounts are not those of the last block; move the directory away');
        }
    }

    /** @param {BlockFacts} facts @param {AugmentedTree} accounts */
    #restoreStates(facts, accounts) {
        const { history } = this;
        const shard = history.shardState(facts, accounts);
        const master = history.masterState(facts, history.shards(facts), accounts.sum);
        history.keepStates(facts.seqno, { accounts, shard, master });
    }

    /** @param {Cell} message @throws {MessageError} */
    #refuseRepeat(message) {
        const now = this.clock();
        for (const [hash, at] of this.sent) if (now - at > REPEAT_MS) this.sent.delete(hash);
        const hash = message.hash().toString('hex');
        if (this.sent.has(hash)) throw new MessageError('duplicate message');
        this.sent.set(hash, now);
    }
}

/** @param {Cell} message @param {'internal' | 'external-in'} type @returns {Buffer} its account @throws {MessageError} */
function destinationOf(message, type) {
    let info;
    try {
        info = loadMessage(message.beginParse()).info;
    } catch {
        throw new MessageError('not a message');
    }
    if (info.type !== type || !Address.isAddress(info.dest)) throw new MessageError(`not an ${type} message`);
    if (info.dest.workChain !== BASECHAIN) throw new MessageError('the local chain has workchain 0 only');
    return info.dest.hash;
}

/** @param {Cell} transaction @returns {Cell[]} the internal messages that it sent, in order */
function messagesOf(transaction) {
    const messages = /** @type {Cell} */ (transaction.refs[0]).beginParse();
    messages.loadMaybeRef();
    const sent = messages.loadDict(Dictionary.Keys.Uint(15), Dictionary.Values.Cell());
    return [...sent].sort(([a], [b]) => a - b).map(([, cell]) => cell).filter((cell) => !cell.beginParse().loadBit());
}

/** @param {Cell} transaction @returns {Buffer} transaction$0111 account_addr:bits256 */
function accountOf(transaction) {
    const slice = transaction.beginParse();
    slice.skip(4);
    return slice.loadBuffer(32);
}

/** @param {string} key zeros and ones */
function hexOf(key) {
    return hex256(BigInt(`0b${key}`));
}

/** @param {bigint} value */
function hex256(value) {
    return value.toString(16).padStart(64, '0');
}

/** @param {import('./blocks.mjs').BlockId} id @returns {[string, string]} */
function hashes(id) {
    return [id.root_hash.toString('hex'), id.file_hash.toString('hex')];
}
