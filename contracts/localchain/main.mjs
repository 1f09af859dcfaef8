// `node main.mjs --state DIR [--port N] [--control-port N] [--block-ms N] [--tick-ms N] [--cascade] [--until-stdin-ends]`
// A TON of one machine: a SIMULATED chain of one shard behind a real liteserver interface, on the loopback address only.

import { parseArgs } from 'node:util';
import { GLOBAL_ID, networkConfig } from '../config.mjs';
import { AdnlServer } from './adnl.mjs';
import { Chain } from './chain.mjs';
import { ControlServer } from './control.mjs';
import { Faults } from './faults.mjs';
import { History } from './history.mjs';
import { LiteApi } from './liteapi.mjs';
import { LiteServer, globalConfig } from './liteserver.mjs';
import { Machine } from './machine.mjs';
import { Store, StoreError } from './store.mjs';

const HOST = '127.0.0.1';
const MS_MAX = 3_600_000;
const PORT_MAX = 65_535;

/** @param {string} line */
function log(line) {
    process.stderr.write(`${line}\n`);
}

/** @param {string} name @param {string} text @param {number} max */
function integer(name, text, max) {
    const value = Number(text);
    if (!Number.isSafeInteger(value) || value < 0 || value > max) {
        throw new StoreError(`--${name} lies between 0 and ${max}, not ${text}`);
    }
    return value;
}

function settings() {
    const { values } = parseArgs({
        options: {
            state: { type: 'string' },
            port: { type: 'string', default: '0' },
            'control-port': { type: 'string', default: '0' },
            'block-ms': { type: 'string', default: '200' },
            'tick-ms': { type: 'string', default: '3000' },
            cascade: { type: 'boolean', default: false },
            'until-stdin-ends': { type: 'boolean', default: false },
        },
    });
    if (!values.state) throw new StoreError('--state DIR is missing');
    return {
        state: values.state,
        port: integer('port', values.port, PORT_MAX),
        controlPort: integer('control-port', values['control-port'], PORT_MAX),
        pace: {
            blockMs: integer('block-ms', values['block-ms'], MS_MAX),
            tickMs: integer('tick-ms', values['tick-ms'], MS_MAX),
            cascade: values.cascade,
        },
        untilStdinEnds: values['until-stdin-ends'],
    };
}

async function main() {
    const wanted = settings();
    const store = new Store(wanted.state);
    const config = networkConfig();
    const faults = new Faults();
    const genesis = store.snapshot(GLOBAL_ID)?.utime ?? Math.floor(Date.now() / 1000);
    const chain = new Chain({
        history: new History(store, config, GLOBAL_ID),
        machine: await Machine.create(config),
        faults,
        pace: wanted.pace,
        genesis,
        now: () => Date.now(),
        log,
        fail: (error) => {
            log(`no block can be made any more: ${error instanceof Error ? error.stack : error}`);
            process.exit(1);
        },
    });
    chain.resume();
    const server = new LiteServer(new LiteApi(chain), faults, log);
    const adnl = new AdnlServer(store.key(), (packet, send) => server.receive(packet, send));
    const port = await adnl.listen(HOST, wanted.port);
    const control = new ControlServer(chain, adnl, port);
    const controlPort = await control.listen(HOST, wanted.controlPort);
    const first = chain.head.seqno === 0 ? await chain.advance(0) : chain.head.seqno;
    chain.start();
    store.writeJson('liteserver.json', globalConfig(chain, adnl.publicKey, port));
    const ready = { control_url: `http://${HOST}:${controlPort}`, ...control.info() };
    store.writeJson('control.json', ready);
    log(`a SIMULATED chain at block ${first}; liteserver ${HOST}:${port}, control ${ready.control_url}`);
    process.stdout.write(`${JSON.stringify(ready)}\n`);

    let ending = false;
    const end = async () => {
        if (ending) return;
        ending = true;
        adnl.close();
        control.close();
        await chain.stop();
        store.close();
        process.exit(0);
    };
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => void end());
    if (wanted.untilStdinEnds) process.stdin.on('end', () => void end()).resume();
}

main().catch((error) => {
    log(error instanceof StoreError ? `Error: ${error.message}` : String(error?.stack ?? error));
    process.exit(error instanceof StoreError ? 2 : 1);
});
