/**
 * No sequence of messages by any subset of client, operator, worker and anybody lets one take more than its due, or keeps
 * another's money: in the end everybody gets what is due by its own messages alone.
 *
 * The seeds are the same in every run; `CONTRACTS_SEED=n` tries another one. A failure names its seed and what was said.
 */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { beginCell, contractAddress } from '@ton/core';
import { Epoch, proofCell } from './support/merkle.mjs';
import { ton } from './support/network.mjs';
import * as escrows from './support/escrow.mjs';
import * as payouts from './support/payout.mjs';
import * as stakes from './support/stake.mjs';
import { Random } from './support/random.mjs';
import { CHALLENGE_S, DELAY_S, FEE_BPS, GAS, OPERATOR_PAIR, SESSION_PAIR, UNBOND_S, World } from './support/world.mjs';

/** @typedef {'client' | 'operator' | 'worker' | 'anyone'} Role */
/** @typedef {{ world: World, random: Random, rogues: Set<Role> }} Scene */
/** @typedef {(scene: Scene) => Promise<unknown>} Move */

const ROLES = /** @type {Role[]} */ (['client', 'operator', 'worker', 'anyone']);
const SEEDS = process.env['CONTRACTS_SEED'] ? [Number(process.env['CONTRACTS_SEED'])] : Array.from({ length: 16 }, (_, at) => at);
const MOVES = 40;

/** What honest parties do. @type {Record<string, Move>} */
const honest = {
    topUp: ({ world, random }) => world.topUp(random.pick(world.escrows), random.amount(ton('4'))),
    sign: async ({ world, random }) => {
        const [escrow] = world.escrows;
        assert.ok(escrow);
        const { deposited } = await world.escrowData(escrow);
        const more = escrow.signed + random.amount(ton('1'));
        escrow.signed = more < deposited ? more : escrow.signed;
    },
    settle: async ({ world, random }) => {
        const escrow = random.pick(world.escrows);
        const { settled } = await world.escrowData(escrow);
        const cumulative = escrow.session ? escrow.signed : settled + random.amount(ton('2'));
        const pair = escrow.session ? SESSION_PAIR : OPERATOR_PAIR;
        return world.deliver(world.operator, escrow.address, GAS, world.voucher(escrow, cumulative, pair));
    },
    requestClose: ({ world, random }) => {
        const escrow = random.pick(world.escrows);
        return random.chance(0.15) ? world.deliver(escrow.client, escrow.address, GAS, escrows.requestClose()) : Promise.resolve();
    },
    finalize: ({ world, random }) => world.deliver(world.thief, random.pick(world.escrows).address, GAS, escrows.finalize()),
    retryOwed: ({ world, random }) => world.deliver(world.thief, random.pick(world.escrows).address, GAS, escrows.retryOwed()),
    post: async ({ world, random }) => {
        let left = (await world.promisable()) - world.workers.reduce((sum, { earned }) => sum + earned, 0n);
        const { epoch, pendingEpoch, pendingAt } = await world.payoutData();
        if (pendingEpoch !== 0 && world.now < pendingAt) {
            return;
        }
        for (const worker of world.workers) {
            const more = random.amount(left / 2n);
            worker.earned += more;
            left -= more;
        }
        const next = new Epoch(world.workers.map(({ address, earned }) => ({ worker: address, cumulative: earned })));
        await world.post(Math.max(epoch, pendingEpoch) + 1, next, next.total);
    },
    claim: async ({ world, random }) => {
        const epoch = await world.activeEpoch();
        const worker = random.pick(world.workers);
        if (epoch?.earnings.some((one) => one.worker.equals(worker.address))) {
            const body = payouts.claim(epoch, worker.address, BigInt(random.between(0, 5)));
            await world.deliver(random.pick([worker.address, world.thief, world.operator]), world.payout, GAS, body);
        }
    },
    withdrawFee: async ({ world, random }) => {
        const { received, feeWithdrawn } = await world.payoutData();
        const most = (received * FEE_BPS) / 10_000n - feeWithdrawn;
        return world.deliver(world.operator, world.payout, GAS, payouts.withdrawFee(random.amount(most)));
    },
    anchor: ({ world, random }) => {
        const root = Buffer.alloc(32, random.between(0, 255));
        return world.deliver(world.operator, world.payout, GAS, payouts.anchor(root, BigInt(random.between(1, 1000)), root));
    },
    donate: async ({ world, random }) => {
        const amount = random.amount(ton('1'));
        await world.deliver(world.thief, world.payout, amount + GAS, payouts.fund(amount));
        world.donated += amount;
    },
    bond: async ({ world, random }) => {
        const amount = random.amount(ton('3'));
        const { bond } = await world.stakeData();
        await world.deliver(world.owner, world.vectors.stake, amount + GAS, stakes.bond(amount));
        world.bonded += (await world.stakeData()).bond - bond;
    },
    requestUnbond: async ({ world, random }) => {
        const { bond } = await world.stakeData();
        return world.deliver(world.owner, world.vectors.stake, GAS, stakes.requestUnbond(random.amount(bond)));
    },
    withdraw: ({ world }) => world.deliver(world.owner, world.vectors.stake, GAS, stakes.withdraw()),
    wait: async ({ world, random }) => world.wait(random.pick([1, DELAY_S, 3600, CHALLENGE_S / 2, CHALLENGE_S, UNBOND_S])),
    // Evidence that proves nothing is no weapon against an honest worker.
    accuse: ({ world, random }) => {
        const bad = random.pick(world.vectors.cases.filter(({ exit }) => exit !== 0));
        return world.deliver(world.thief, world.vectors.stake, GAS, stakes.slash(bad));
    },
};

/** What somebody may try besides. @type {Record<Role, Record<string, Move>>} */
const rogue = {
    client: {
        closeAtOnce: ({ world, random }) => {
            const escrow = random.pick(world.escrows);
            const terms = escrows.termsCell({ escrow: escrow.address, epoch: 1, cumulative: 0n });
            return world.deliver(escrow.client, escrow.address, GAS, escrows.coClose(escrows.signCell(terms, SESSION_PAIR.secretKey), terms));
        },
        finalizeEarly: async ({ world, random }) => {
            const escrow = random.pick(world.escrows);
            if (random.chance(0.3)) {
                await world.deliver(escrow.client, escrow.address, GAS, escrows.requestClose());
            }
            return world.deliver(escrow.client, escrow.address, GAS, escrows.finalize());
        },
        topUpWithoutMoney: ({ world, random }) => world.topUp(random.pick(world.escrows), ton('2'), random.amount(ton('2'))),
        redeploy: ({ world, random }) => {
            const escrow = random.pick(world.escrows);
            return world.deliver(escrow.client, escrow.address, GAS, escrows.finalize(), escrow.init);
        },
    },
    operator: {
        forgeVoucher: async ({ world, random }) => {
            const [escrow] = world.escrows;
            assert.ok(escrow);
            const body = world.voucher(escrow, escrow.signed + 1n + random.amount(ton('5')), OPERATOR_PAIR);
            return world.deliver(world.operator, escrow.address, GAS, body);
        },
        replayElsewhere: async ({ world }) => {
            const [one, other] = world.escrows;
            assert.ok(one && other);
            return world.deliver(world.operator, other.address, GAS, world.voucher(one, one.signed, SESSION_PAIR));
        },
        settleEverything: async ({ world }) => {
            const other = world.escrows[1];
            assert.ok(other);
            return world.deliver(world.operator, other.address, GAS, world.voucher(other, ton('1000000'), OPERATOR_PAIR));
        },
        closeForTheClient: ({ world, random }) =>
            world.deliver(world.operator, random.pick(world.escrows).address, GAS, escrows.requestClose()),
        postLies: async ({ world, random }) => {
            const { epoch, pendingEpoch } = await world.payoutData();
            const most = await world.promisable();
            const lies = new Epoch([...world.workers.map(({ address }) => address)].map((worker) => ({ worker, cumulative: random.amount(most * 2n) })));
            const number = Math.max(epoch, pendingEpoch) + random.pick([0, 1, 1, 1, 1, 1, 1, 2]);
            return world.post(number, lies, random.pick([most, most, most, most + 1n, lies.total]));
        },
        promiseTooMuch: async ({ world, random }) => {
            const { epoch, pendingEpoch } = await world.payoutData();
            const most = (await world.promisable()) + 1n + random.amount(ton('1'));
            const all = new Epoch(world.workers.map(({ address }) => ({ worker: address, cumulative: most / 3n })));
            return world.post(Math.max(epoch, pendingEpoch) + 1, all, most);
        },
        takeFee: async ({ world, random }) => {
            const { received } = await world.payoutData();
            return world.deliver(world.operator, world.payout, GAS, payouts.withdrawFee(random.amount(received)));
        },
        payItself: ({ world, random }) => {
            const body = payouts.pay({ worker: world.operator, amount: random.amount(ton('5')), excessTo: world.operator });
            return world.deliver(world.operator, world.payout, GAS, body);
        },
        slashWithTheDelegate: ({ world, random }) => {
            const bad = random.pick(world.vectors.cases.filter(({ kind, exit }) => kind === stakes.OVER_USE && exit !== 0));
            return world.deliver(world.operator, world.vectors.stake, GAS, stakes.slash(bad));
        },
    },
    worker: {
        forgeClaim: async ({ world, random }) => {
            const epoch = await world.activeEpoch();
            const worker = random.pick(world.workers);
            if (epoch?.earnings.some((one) => one.worker.equals(worker.address))) {
                const { cumulative, proof } = epoch.claimOf(random.pick(world.workers).address);
                const body = payouts.claimBody({ worker: worker.address, cumulative: cumulative + random.amount(ton('0.5')), proof: proofCell(proof) });
                await world.deliver(worker.address, world.payout, GAS, body);
            }
        },
        claimTwice: async (scene) => {
            await honest['claim']?.(scene);
            await honest['claim']?.(scene);
        },
        forgePay: ({ world, random }) => {
            const worker = random.pick(world.workers).address;
            const body = payouts.pay({ worker, amount: random.amount(ton('5')), excessTo: worker });
            return world.deliver(worker, world.payout, GAS, body);
        },
        forgeDue: ({ world, random }) => {
            const worker = random.pick(world.workers).address;
            const account = payouts.accountInit(world.payout, worker);
            const body = random.pick([payouts.due(random.amount(ton('5')), worker), payouts.restore(ton('1')), payouts.done()]);
            return world.deliver(worker, contractAddress(0, account), GAS, body, account);
        },
        lie: ({ world, random }) => {
            if (!random.chance(0.6)) {
                return Promise.resolve();
            }
            const good = random.pick(world.vectors.cases.filter(({ exit }) => exit === 0));
            return world.deliver(random.pick([world.thief, world.owner]), world.vectors.stake, GAS, stakes.slash(good));
        },
        leaveEarly: async ({ world }) => {
            await world.deliver(world.owner, world.vectors.stake, GAS, stakes.requestUnbond((await world.stakeData()).bond));
            return world.deliver(world.owner, world.vectors.stake, GAS, stakes.withdraw());
        },
    },
    anyone: {
        tooLittle: ({ world, random }) => {
            const [to, body] = random.pick(/** @type {[import('@ton/core').Address, import('@ton/core').Cell][]} */ ([
                [world.payout, payouts.fund(ton('1'))], [world.vectors.stake, stakes.bond(ton('1'))],
                [world.payout, payouts.postRoot(1, Buffer.alloc(32), 0n)], [world.vectors.stake, stakes.withdraw()],
            ]));
            return world.deliver(world.operator, to, random.amount(ton('0.0004')), body);
        },
        strangeWords: ({ world, random }) => {
            const to = random.pick([world.payout, world.vectors.stake, ...world.escrows.map(({ address }) => address)]);
            const body = random.pick([
                beginCell().endCell(), beginCell().storeUint(0, 32).storeStringTail('hello').endCell(),
                beginCell().storeUint(random.between(0, 0xffffffff), 32).storeUint(1, 64).endCell(),
                beginCell().storeUint(0xffffffff, 32).storeUint(payouts.OP.payment, 32).storeUint(1, 64).storeCoins(ton('1')).endCell(),
            ]);
            return world.deliver(world.thief, to, random.amount(ton('1')), body);
        },
        poorClaim: async ({ world, random }) => {
            const epoch = await world.activeEpoch();
            const worker = random.pick(world.workers).address;
            if (epoch?.earnings.some((one) => one.worker.equals(worker))) {
                await world.deliver(world.thief, world.payout, random.amount(ton('0.025')), payouts.claim(epoch, worker));
            }
        },
        interfere: ({ world, random }) => {
            const escrow = random.pick(world.escrows);
            const body = random.pick([escrows.requestClose(), stakes.withdraw(), stakes.requestUnbond(1n), payouts.withdrawFee(1n)]);
            return world.deliver(world.thief, random.pick([escrow.address, world.payout, world.vectors.stake]), GAS, body);
        },
    },
};

/** Something is settled and earned before anybody goes beyond the rules, so that there is something to take. @param {Scene} scene */
async function firstEpoch(scene) {
    const { world } = scene;
    for (const escrow of world.escrows) {
        escrow.signed = ton('2');
        const pair = escrow.session ? SESSION_PAIR : OPERATOR_PAIR;
        await world.deliver(world.operator, escrow.address, GAS, world.voucher(escrow, ton('2'), pair));
    }
    await honest['post']?.(scene);
    world.wait(DELAY_S);
    await world.check();
}

/** Each by its own messages alone: nobody else says anything any more. @param {Scene} scene */
async function everybodyLeaves({ world, rogues }) {
    world.wait(DELAY_S);
    for (const escrow of world.escrows) {
        const { phase } = await world.escrowData(escrow);
        if (phase === escrows.OPEN) {
            await world.deliver(escrow.client, escrow.address, GAS, escrows.requestClose());
        }
        world.wait(CHALLENGE_S);
        if (phase !== escrows.CLOSED) {
            await world.deliver(escrow.client, escrow.address, GAS, escrows.finalize());
        }
        const { deposited, settled } = await world.escrowData(escrow);
        assert.equal(escrow.refunded, deposited - settled, 'a client is refunded without the operator');
        await world.check();
    }
    const epoch = await world.activeEpoch();
    for (const worker of world.workers) {
        for (let time = 0; time < 3 && epoch?.earnings.some((one) => one.worker.equals(worker.address)); time += 1) {
            await world.deliver(worker.address, world.payout, GAS, payouts.claim(epoch, worker.address));
            await world.check();
        }
        if (!rogues.has('operator') && epoch) {
            const { cumulative } = epoch.claimOf(worker.address);
            assert.equal(worker.paid + worker.lost, cumulative, 'a worker is paid without the operator');
            assert.ok(worker.lost === 0n || worker.refuses, 'only a wallet that refuses loses');
        }
    }
    const { received, feeWithdrawn } = await world.payoutData();
    const rest = (received * FEE_BPS) / 10_000n - feeWithdrawn;
    await world.deliver(world.operator, world.payout, GAS, payouts.withdrawFee(rest));
    assert.equal(world.fees, (received * FEE_BPS) / 10_000n, 'the operator has its fee');
    await leaveStake(world, rogues);
    await world.check();
}

/** @param {World} world @param {Set<Role>} rogues */
async function leaveStake(world, rogues) {
    const { bond, state } = await world.stakeData();
    assert.ok(state === stakes.LIVE || rogues.has('worker'), 'only a worker that lied is slashed');
    await world.deliver(world.owner, world.vectors.stake, GAS, stakes.requestUnbond(bond));
    world.wait(UNBOND_S);
    await world.deliver(world.owner, world.vectors.stake, GAS, stakes.withdraw());
    if (state === stakes.LIVE) {
        assert.equal(world.unbonded, world.bonded, 'stake returns to its owner');
    }
}

/** @param {Scene} scene @returns {string} a move of this scene's parties, every other one beyond the rules */
function anyMove({ random, rogues }) {
    if (rogues.size > 0 && random.chance(0.5)) {
        return random.pick(Object.keys(rogue[random.pick([...rogues])]));
    }
    return random.pick(Object.keys(honest));
}

/** @param {string} name @returns {Move} */
function moveNamed(name) {
    const move = honest[name] ?? ROLES.map((role) => rogue[role][name]).find((one) => one !== undefined);
    assert.ok(move);
    return move;
}

describe('nobody takes more than its due, and nobody keeps what is another\'s', () => {
    /** @type {World} */
    let prepared;
    /** @type {import('@ton/sandbox').BlockchainSnapshot} */
    let fresh;
    /** What happened in all, so that none of this is true because nothing happened. @type {Set<string>} */
    const happened = new Set();

    before(async () => {
        prepared = await World.create();
        fresh = prepared.chain.snapshot();
    });

    for (const seed of SEEDS) {
        const random = new Random(seed);
        // The first sixteen seeds are the sixteen subsets.
        const rogues = new Set(ROLES.filter((_, at) => (seed >> at) & 1));
        test(`seed ${seed}, beyond the rules: ${[...rogues].join(', ') || 'nobody'}`, async () => {
            await prepared.chain.loadFrom(fresh);
            const scene = { world: new World(prepared.chain), random, rogues };
            /** @type {string[]} */
            const said = [];
            try {
                await firstEpoch(scene);
                for (let time = 0; time < MOVES; time += 1) {
                    const name = anyMove(scene);
                    said.push(name);
                    await moveNamed(name)(scene);
                    await scene.world.check();
                }
                said.push('everybody leaves');
                await everybodyLeaves(scene);
                for (const [name, fact] of /** @type {[string, boolean][]} */ ([
                    ['a payment', scene.world.workers.some(({ paid }) => paid > 0n)],
                    ['a payment that came back', scene.world.workers.some(({ lost }) => lost > 0n)],
                    ['a refund', scene.world.escrows.some(({ refunded }) => refunded > 0n)],
                    ['a settlement', (await scene.world.payoutData()).received > scene.world.donated],
                    ['a slash', scene.world.slashed],
                    ['stake that returned', scene.world.unbonded > 0n],
                ])) {
                    if (fact) {
                        happened.add(name);
                    }
                }
            } catch (error) {
                throw new Error(`seed ${seed}: ${said.join(', ')}`, { cause: error });
            }
        });
    }

    after(() => {
        if (SEEDS.length > 1) {
            assert.equal(happened.size, 6, [...happened].join(', '));
        }
    });
});
