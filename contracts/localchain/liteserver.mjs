// A liteserver: ADNL packets in, answers of the LiteAPI out.

import { LiteError } from './liteapi.mjs';
import { LITE_API } from './schema.mjs';
import { Reader, TlError } from './tl.mjs';

const PREFIX = 'liteServer.';
const INTERNAL = 500;
const MESSAGE_CHARACTERS_MAX = 500;
const LOOPBACK_IP = 0x7f000001;
const SHARD = '-9223372036854775808';

/** @typedef {import('./adnl.mjs').Send} Send */

export class LiteServer {
    /** @param {import('./liteapi.mjs').LiteApi} api @param {import('./faults.mjs').Faults} faults @param {(line: string) => void} log */
    constructor(api, faults, log) {
        this.api = api;
        this.faults = faults;
        this.log = log;
    }

    /** @param {Buffer} packet @param {Send} send */
    async receive(packet, send) {
        if (this.faults.silent) return;
        let message;
        try {
            message = LITE_API.readBoxed(new Reader(packet));
        } catch {
            return; // nobody to answer: a query without an id
        }
        if (message.name === 'tcp.ping') send(LITE_API.boxed('tcp.pong', message.fields));
        if (message.name !== 'adnl.message.query') return;
        const { query_id, query } = message.fields;
        send(LITE_API.boxed('adnl.message.answer', { query_id, answer: await this.#answer(query) }));
    }

    /** @param {Buffer} query @returns {Promise<Buffer>} */
    async #answer(query) {
        try {
            const outer = LITE_API.readBoxed(new Reader(query));
            if (outer.name !== 'liteServer.query') throw new LiteError(0, 'not a liteServer.query');
            const reader = new Reader(outer.fields['data']);
            let { name, fields } = LITE_API.readBoxed(reader);
            if (name === 'liteServer.waitMasterchainSeqno') {
                await this.api.wait(fields['seqno'], fields['timeout_ms']);
                ({ name, fields } = LITE_API.readBoxed(reader));
            }
            const [constructor, answer] = await this.api.answer(name.slice(PREFIX.length), fields);
            return LITE_API.boxed(PREFIX + constructor, answer);
        } catch (error) {
            const known = error instanceof LiteError || error instanceof TlError;
            if (!known) this.log(`a query failed: ${error instanceof Error ? error.stack : error}`);
            const message = (error instanceof Error ? error.message : String(error)).slice(0, MESSAGE_CHARACTERS_MAX);
            const code = error instanceof LiteError ? error.code : known ? 0 : INTERNAL;
            return LITE_API.boxed('liteServer.error', { code, message });
        }
    }
}

/**
 * The chain as clients are told of it, in the form of TON's global.config.json.
 * @param {import('./chain.mjs').Chain} chain @param {Buffer} publicKey @param {number} port
 */
export function globalConfig(chain, publicKey, port) {
    const { seqno, root_hash, file_hash } = chain.zeroState;
    const zero = {
        workchain: -1,
        shard: SHARD,
        seqno,
        root_hash: root_hash.toString('base64'),
        file_hash: file_hash.toString('base64'),
    };
    return {
        '@type': 'config.global',
        liteservers: [{ ip: LOOPBACK_IP, port, id: { '@type': 'pub.ed25519', key: publicKey.toString('base64') } }],
        validator: { '@type': 'validator.config.global', zero_state: zero, init_block: zero, hardforks: [] },
    };
}
