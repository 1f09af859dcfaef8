// The virtual machine: the C++ transaction executor that @ton/sandbox ships, without the sandbox's own idea of a chain.

import { beginCell, Cell, loadShardAccount, parseTuple } from '@ton/core';
import { Executor } from '@ton/sandbox';

const GET_METHOD_GAS = 10_000_000n;
export const EXIT_NOT_ACTIVE = -256;

/** ShardAccount of an address where nothing is: account_none$0. */
export const NOBODY = beginCell().storeRef(beginCell().storeBit(0).endCell()).storeUint(0, 256).storeUint(0, 64).endCell();

/** @typedef {{now: number, lt: bigint, seed: Buffer}} Moment */
/** @typedef {{transaction: Cell, account: Cell}} Outcome `account` is the ShardAccount afterwards */

/** A message that an account did not take; `exitCode` where its code ran. */
export class RejectedError extends Error {
    /** @param {string} message @param {number | undefined} exitCode */
    constructor(message, exitCode) {
        super(message);
        this.exitCode = exitCode;
    }
}

/** @param {Cell} account ShardAccount @returns {bigint | undefined} balance in nano; undefined where nothing is */
export function balanceOf(account) {
    if (account.refs[0]?.bits.length === 1) return undefined;
    return loadShardAccount(account.beginParse()).account?.storage.balance.coins;
}

export class Machine {
    /** @param {Executor} executor @param {Cell} config */
    constructor(executor, config) {
        this.executor = executor;
        this.config = config.toBoc({ idx: false }).toString('base64');
    }

    /** @param {Cell} config @returns {Promise<Machine>} */
    static async create(config) {
        return new Machine(await Executor.create(), config);
    }

    /**
     * Run one message against one account; nothing is changed here.
     * @param {Cell} account ShardAccount @param {Cell} message @param {Moment} moment
     * @returns {Promise<Outcome>}
     * @throws {RejectedError}
     */
    async run(account, message, moment) {
        const { result } = await this.executor.runTransaction({
            config: this.config,
            libs: null,
            verbosity: 'short',
            shardAccount: account.toBoc().toString('base64'),
            message,
            now: moment.now,
            lt: moment.lt,
            randomSeed: moment.seed,
            ignoreChksig: false,
            debugEnabled: false,
        });
        if (!result.success) throw new RejectedError(result.error, result.vmResults?.vmExitCode);
        return { transaction: Cell.fromBase64(result.transaction), account: Cell.fromBase64(result.shardAccount) };
    }

    /**
     * Run a get method.
     * @param {Cell} account ShardAccount @param {number} method @param {Buffer} params a stack as a BoC, or empty
     * @param {Moment} moment
     * @returns {Promise<{exitCode: number, stack: Buffer}>} `stack` is empty where the account is not active
     */
    async get(account, method, params, moment) {
        const parsed = balanceOf(account) === undefined ? undefined : loadShardAccount(account.beginParse()).account;
        const state = parsed?.storage.state;
        if (!parsed || state?.type !== 'active' || !state.state.code || !state.state.data) {
            return { exitCode: EXIT_NOT_ACTIVE, stack: Buffer.alloc(0) };
        }
        const { output } = await this.executor.runGetMethod({
            code: state.state.code,
            data: state.state.data,
            methodId: method,
            stack: params.length > 0 ? parseTuple(/** @type {Cell} */ (Cell.fromBoc(params)[0])) : [],
            config: this.config,
            verbosity: 'short',
            address: parsed.addr,
            unixTime: moment.now,
            balance: parsed.storage.balance.coins,
            randomSeed: moment.seed,
            gasLimit: GET_METHOD_GAS,
            debugEnabled: false,
        });
        if (!output.success) throw new RejectedError(output.error, undefined);
        return { exitCode: output.vm_exit_code, stack: Buffer.from(output.stack, 'base64') };
    }
}
