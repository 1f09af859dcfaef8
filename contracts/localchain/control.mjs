// The control port: HTTP with JSON, for what no real chain lets anybody do. Loopback only; a page in a browser cannot
// use it, since requests must carry a JSON content type and name a loopback host.

import { Address } from '@ton/core';
import { createServer } from 'node:http';
import { MessageError } from './chain.mjs';
import { FaultError } from './faults.mjs';

const BODY_BYTES_MAX = 65_536;
const SECONDS_MAX = 10 * 366 * 86_400;
const NANO_MAX = 10n ** 18n;
const HOSTS = /^(?:127\.0\.0\.1|localhost|\[::1\])(?::\d+)?$/;

/** A request that cannot be carried out as it is. */
class RequestError extends Error {
    /** @param {number} status @param {string} message */
    constructor(status, message) {
        super(message);
        this.status = status;
    }
}

export class ControlServer {
    /** @param {import('./chain.mjs').Chain} chain @param {import('./adnl.mjs').AdnlServer} adnl @param {number} port of the liteserver */
    constructor(chain, adnl, port) {
        this.chain = chain;
        this.adnl = adnl;
        this.port = port;
        this.server = createServer((request, response) => void this.#serve(request, response));
    }

    /** @param {string} host @param {number} port @returns {Promise<number>} */
    listen(host, port) {
        return new Promise((resolve, reject) => {
            this.server.once('error', reject);
            this.server.listen(port, host, () => {
                const address = this.server.address();
                resolve(typeof address === 'object' && address !== null ? address.port : port);
            });
        });
    }

    close() {
        this.server.close();
        this.server.closeAllConnections();
    }

    info() {
        const { head, zeroState, history, queue, externals } = this.chain;
        return {
            pid: process.pid,
            simulated: true,
            global_id: history.globalId,
            seqno: head.seqno,
            now: this.chain.now(),
            offset_s: this.chain.offsetS,
            accounts: [...this.chain.states().accounts.entries()].length,
            total_nano: String(head.total),
            waiting: queue.length + externals.length,
            liteserver: { host: '127.0.0.1', port: this.port, public_key: this.adnl.publicKey.toString('base64') },
            zerostate: {
                root_hash: zeroState.root_hash.toString('base64'),
                file_hash: zeroState.file_hash.toString('base64'),
            },
        };
    }

    /** @param {import('node:http').IncomingMessage} request @param {import('node:http').ServerResponse} response */
    async #serve(request, response) {
        let status = 200;
        let answer;
        try {
            answer = await this.#route(request);
        } catch (error) {
            status = statusOf(error);
            answer = { error: error instanceof Error ? error.message : String(error) };
        }
        response.writeHead(status, { 'content-type': 'application/json' });
        response.end(`${JSON.stringify(answer)}\n`);
    }

    /** @param {import('node:http').IncomingMessage} request @returns {Promise<unknown>} */
    async #route(request) {
        if (!HOSTS.test(request.headers.host ?? '')) throw new RequestError(403, 'for this machine only');
        switch (`${request.method} ${request.url}`) {
            case 'GET /info':
                return this.info();
            case 'GET /faults':
                return this.chain.faults;
            case 'POST /faucet':
                return await this.#faucet(await bodyOf(request));
            case 'POST /advance':
                return await this.#advance(await bodyOf(request));
            case 'POST /faults':
                return await this.#setFaults(await bodyOf(request));
            default:
                throw new RequestError(404, 'GET /info, GET /faults, POST /faucet, POST /advance, POST /faults');
        }
    }

    /** @param {Record<string, unknown>} body */
    async #faucet({ address, amount_nano: amount }) {
        let account;
        try {
            account = Address.parse(String(address));
        } catch {
            throw new RequestError(400, 'address is not a TON address');
        }
        if (account.workChain !== 0) throw new RequestError(400, 'the local chain has workchain 0 only');
        const nano = /^\d{1,19}$/.test(String(amount)) ? BigInt(String(amount)) : 0n;
        if (nano <= 0n || nano > NANO_MAX) throw new RequestError(400, `amount_nano lies between 1 and ${NANO_MAX}`);
        return { seqno: await this.chain.mint(account.hash, nano), now: this.chain.now() };
    }

    /** @param {Record<string, unknown>} body */
    async #advance({ seconds }) {
        if (typeof seconds !== 'number' || !Number.isSafeInteger(seconds) || seconds < 0 || seconds > SECONDS_MAX) {
            throw new RequestError(400, `seconds is a whole number from 0 to ${SECONDS_MAX}`);
        }
        return { seqno: await this.chain.advance(seconds), now: this.chain.now() };
    }

    /** @param {Record<string, unknown>} body `clear` and `close_connections` act at once; the rest is set and stays */
    async #setFaults({ clear, close_connections: close, ...wanted }) {
        if (clear === true) this.chain.faults.clear();
        this.chain.faults.set(wanted);
        this.adnl.refusing = this.chain.faults.refuse;
        if (close === true || this.chain.faults.refuse) this.adnl.disconnect();
        this.chain.arm();
        await this.chain.sealing; // what is said here holds for the block after the one in the making
        return this.chain.faults;
    }
}

/** @param {import('node:http').IncomingMessage} request @returns {Promise<Record<string, unknown>>} */
async function bodyOf(request) {
    if (!request.headers['content-type']?.startsWith('application/json')) {
        throw new RequestError(415, 'send application/json');
    }
    const parts = [];
    let length = 0;
    for await (const part of request) {
        length += part.length;
        if (length > BODY_BYTES_MAX) throw new RequestError(413, `at most ${BODY_BYTES_MAX} bytes`);
        parts.push(part);
    }
    try {
        const body = JSON.parse(Buffer.concat(parts).toString());
        if (typeof body === 'object' && body !== null && !Array.isArray(body)) return body;
    } catch {
        // said below
    }
    throw new RequestError(400, 'send one JSON object');
}

/** @param {unknown} error */
function statusOf(error) {
    if (error instanceof RequestError) return error.status;
    if (error instanceof FaultError) return 400;
    return error instanceof MessageError ? 409 : 500;
}
