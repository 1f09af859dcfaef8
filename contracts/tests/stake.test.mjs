/** worker_stake: bonding, leaving, and every piece of evidence in tests/vectors/ton/slash.json. */
import assert from 'node:assert/strict';
import { after, before, beforeEach, describe, test } from 'node:test';
import { Address, beginCell } from '@ton/core';
import { createShardAccount } from '@ton/sandbox';
import { GLOBAL_ID } from '../config.mjs';
import { forwardFee, gasFee } from './support/fees.mjs';
import { GasLog } from './support/gas.mjs';
import {
    EXCESSES, UNKNOWN_OP, addressOf, advance, balanceOf, createNetwork, dataOf, exitOf, gasOf, handled, placeOf, send, ton,
    transactionAt, valueOf,
} from './support/network.mjs';
import {
    EQUIVOCATION, LIVE, NOBODY, OP, OVER_USE, RENT, SLASHED, bond, readStake, requestUnbond, slash, slashVectors, stakeInit,
    withdraw,
} from './support/stake.mjs';

/** @typedef {import('@ton/core').Cell} Cell */
/** @typedef {import('./support/network.mjs').Treasury} Treasury */
/** @typedef {import('./support/network.mjs').Transaction} Transaction */

const DAY_S = 86_400;
const YEARS_10_S = 10 * 365 * DAY_S;
const GAS = ton('0.1');
const vectors = slashVectors();
const log = new GasLog('worker_stake');
const terms = { unbondS: 14 * DAY_S, bountyBps: 1_500, stakedKey: vectors.stakedKey, operatorKey: vectors.operatorKey };

/** @type {import('@ton/sandbox').Blockchain} */
let chain;
/** @type {import('@ton/sandbox').BlockchainSnapshot} */
let fresh;
/** @type {Treasury} */
let owner;
/** @type {Treasury} */
let operator;
/** @type {Treasury} */
let stranger;

/** @param {Treasury} from @param {Cell} body @param {bigint} [value] @returns {Promise<Transaction[]>} */
function say(from, body, value = GAS) {
    return send(from, { to: vectors.stake, value, body });
}

async function state() {
    return readStake(await dataOf(chain, vectors.stake));
}

/** @param {Transaction[]} transactions @param {number} code @param {Address} [at] */
function refused(transactions, code, at = vectors.stake) {
    assert.equal(exitOf(transactionAt(transactions, at)), code);
}

/** @param {Transaction[]} transactions */
function accepted(transactions) {
    const first = transactionAt(transactions, vectors.stake);
    assert.equal(exitOf(first), 0);
    return BigInt(gasOf(first));
}

/** What belongs to the owner and a rent reserve, of which storage took some since it was full. @param {bigint} owned */
async function assertHolds(owned) {
    const balance = await balanceOf(chain, vectors.stake);
    assert.ok(balance >= owned + RENT - ton('0.001') && balance <= owned + RENT, `${balance}`);
}

/** @param {string} name */
function evidence(name) {
    const found = vectors.cases.find((one) => one.name === name);
    assert.ok(found, name);
    return found;
}

before(async () => {
    chain = await createNetwork();
    assert.equal(GLOBAL_ID, vectors.globalId);
    [owner, operator, stranger] = [await chain.treasury('owner'), await chain.treasury('operator'), await chain.treasury('stranger')];
    // At the address that the evidence names, which no code of a later day could have.
    const init = stakeInit({ owner: owner.address, operator: operator.address, ...terms });
    await chain.setShardAccount(vectors.stake, createShardAccount({ address: vectors.stake, ...init, balance: RENT }));
    fresh = chain.snapshot();
});

beforeEach(() => chain.loadFrom(fresh));

describe('bonding', () => {
    test('anybody adds to the bond, exactly what was named', async () => {
        log.note('bond', accepted(await say(owner, bond(ton('100')), ton('100') + GAS)));
        const transactions = await say(stranger, bond(7n));

        accepted(transactions);
        assert.deepEqual(await state(), { state: LIVE, bond: ton('100') + 7n, unbonding: 0n, unbondAt: 0 });
        await assertHolds(ton('100') + 7n);
        const [excess] = handled(transactions, EXCESSES);
        assert.ok(excess && placeOf(excess).equals(stranger.address) && valueOf(excess) > ton('0.09'));
    });

    test('the first bond deploys it', async () => {
        const init = stakeInit({ owner: owner.address, operator: operator.address, ...terms, salt: 9n });
        const to = addressOf(init);

        await send(owner, { to, value: ton('5') + GAS, body: bond(ton('5')), init });

        assert.equal(readStake(await dataOf(chain, to)).bond, ton('5'));
    });

    test('a bounty of a fifth is not too much', async () => {
        const init = stakeInit({ owner: owner.address, operator: operator.address, ...terms, bountyBps: 2_000 });
        const to = addressOf(init);
        await send(owner, { to, value: ton('5') + GAS, body: bond(ton('5')), init });

        assert.equal(readStake(await dataOf(chain, to)).bond, ton('5'));
    });

    test('nothing is not an amount', async () => {
        refused(await say(owner, bond(0n)), 113);
    });

    const zero = Buffer.alloc(32);
    const identity = Buffer.concat([Buffer.of(1), Buffer.alloc(31)]);
    const negated = Buffer.from('c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa', 'hex');
    for (const [name, changes, code] of /** @type {[string, object, number][]} */ ([
        ['a staked key of zeros', { stakedKey: zero }, 108],
        ['a staked key that is the identity', { stakedKey: identity }, 108],
        ['an operator key of zeros', { operatorKey: zero }, 108],
        ['an operator key of order eight', { operatorKey: negated }, 108],
        ['a bounty above a fifth', { bountyBps: 2_001 }, 105],
    ])) {
        test(`${name} takes no bond`, async () => {
            const init = stakeInit({ owner: owner.address, operator: operator.address, ...terms, ...changes });
            const to = addressOf(init);

            refused(await send(owner, { to, value: ton('5') + GAS, body: bond(ton('5')), init }), code, to);
        });
    }

    for (const [name, body] of /** @type {[string, Cell][]} */ ([
        ['an empty body', beginCell().endCell()],
        ['a text', beginCell().storeUint(0, 32).storeStringTail('stake').endCell()],
        ['an unknown operation', beginCell().storeUint(0x43e54005, 32).storeUint(1, 64).endCell()],
    ])) {
        test(`${name} is refused and the money comes back`, async () => {
            const transactions = await say(owner, body, ton('1'));

            refused(transactions, UNKNOWN_OP);
            assert.equal(handled(transactions, 0xffffffff).length, 1);
        });
    }
});

describe('a body that goes on behind its end', () => {
    for (const [name, body] of /** @type {[string, Cell][]} */ ([
        ['bond', bond(1n)], ['request_unbond', requestUnbond(1n)], ['withdraw', withdraw()], ['slash', slash(vectors.cases[0] ?? evidence(''))],
    ])) {
        test(`${name} is refused`, async () => {
            await say(owner, bond(ton('1')), ton('1') + GAS);

            refused(await say(owner, beginCell().storeSlice(body.beginParse()).storeBit(1).endCell()), 9);
        });
    }
});

describe('leaving', () => {
    beforeEach(() => say(owner, bond(ton('100')), ton('100') + GAS));

    test('the owner gets back what it asked for, after the wait, to the nano', async () => {
        log.note('request_unbond', accepted(await say(owner, requestUnbond(ton('60')))));
        assert.deepEqual(await state(), { state: LIVE, bond: ton('40'), unbonding: ton('60'), unbondAt: chain.now });
        advance(chain, terms.unbondS - 1);
        refused(await say(owner, withdraw()), 107);
        advance(chain, 1);

        const transactions = await say(owner, withdraw());
        log.note('withdraw', accepted(transactions));
        assert.deepEqual(handled(transactions, OP.unbonded).map((one) => [placeOf(one).toString(), valueOf(one)]), [[owner.address.toString(), ton('60')]]);
        assert.deepEqual(await state(), { state: LIVE, bond: ton('40'), unbonding: 0n, unbondAt: 0 });
        await assertHolds(ton('40'));
        refused(await say(owner, withdraw()), 102);
    });

    test('a second request starts the wait again for all of it', async () => {
        await say(owner, requestUnbond(ton('60')));
        advance(chain, terms.unbondS - 1);
        await say(owner, requestUnbond(ton('40')));
        advance(chain, 1);
        refused(await say(owner, withdraw()), 107);
        advance(chain, terms.unbondS);

        assert.deepEqual(handled(await say(owner, withdraw()), OP.unbonded).map(valueOf), [ton('100')]);
        await assertHolds(0n);
    });

    test('nobody but the owner', async () => {
        refused(await say(stranger, requestUnbond(1n)), 101);
        refused(await say(operator, requestUnbond(1n)), 101);
        await say(owner, requestUnbond(ton('60')));
        advance(chain, terms.unbondS);
        refused(await say(stranger, withdraw()), 101);
        refused(await say(operator, withdraw()), 101);
        assert.equal((await state()).unbonding, ton('60'));
    });

    test('no more than there is, and not nothing', async () => {
        refused(await say(owner, requestUnbond(ton('100') + 1n)), 113);
        refused(await say(owner, requestUnbond(0n)), 113);
        refused(await say(owner, withdraw()), 102);
    });
});

describe('evidence', () => {
    /** @type {import('@ton/sandbox').BlockchainSnapshot} */
    let staked;

    before(async () => {
        await chain.loadFrom(fresh);
        await say(owner, bond(ton('100')), ton('100') + GAS);
        staked = chain.snapshot();
    });

    beforeEach(() => chain.loadFrom(staked));

    test('there is good and bad of both kinds', () => {
        for (const kind of [EQUIVOCATION, OVER_USE]) {
            assert.ok(vectors.cases.filter((one) => one.kind === kind && one.exit === 0).length >= 2);
            assert.ok(vectors.cases.filter((one) => one.kind === kind && one.exit !== 0).length >= 20);
        }
    });

    for (const one of vectors.cases) {
        test(`${one.name}: ${one.exit === 0 ? 'slashed' : `refused with ${one.exit}`}`, async () => {
            const transactions = await say(stranger, slash(one));

            refused(transactions, one.exit);
            const now = await state();
            assert.deepEqual([now.state, now.bond], one.exit === 0 ? [SLASHED, 0n] : [LIVE, ton('100')]);
            if (one.exit === 0) {
                accepted(transactions);
            }
        });
    }

    test('against another stake of the same worker it says nothing', async () => {
        const init = stakeInit({ owner: owner.address, operator: operator.address, ...terms, salt: 9n });
        const to = addressOf(init);
        await send(owner, { to, value: ton('5') + GAS, body: bond(ton('5')), init });

        for (const name of ['two heads of one number', 'one prompt token above the ticket']) {
            refused(await send(stranger, { to, value: GAS, body: slash(evidence(name)) }), 104, to);
        }
        assert.equal(readStake(await dataOf(chain, to)).bond, ton('5'));
    });
});

describe('a slash', () => {
    const proof = evidence('two heads of one number');

    test('pays the bounty to who proved it and burns the rest, to the nano', async () => {
        await say(owner, bond(ton('100') + 7n), ton('100') + 7n + GAS);
        await say(owner, requestUnbond(ton('30')));
        const burnt = await balanceOf(chain, NOBODY);

        const transactions = await say(stranger, slash(proof));

        const bounty = (ton('100') + 7n) * 1_500n / 10_000n;
        assert.deepEqual(handled(transactions, OP.bounty).map((one) => [placeOf(one).toString(), valueOf(one)]), [[stranger.address.toString(), bounty]]);
        assert.deepEqual(handled(transactions, OP.burn).map(valueOf), [ton('100') + 7n - bounty]);
        assert.ok((await balanceOf(chain, NOBODY)) - burnt >= ton('100') + 7n - bounty - ton('0.001'));
        assert.deepEqual(await state(), { state: SLASHED, bond: 0n, unbonding: 0n, unbondAt: 0 });
        await assertHolds(0n);
    });

    test('reaches what is on its way out, however late', async () => {
        await say(owner, bond(ton('100')), ton('100') + GAS);
        await say(owner, requestUnbond(ton('100')));
        advance(chain, terms.unbondS + DAY_S);

        accepted(await say(stranger, slash(proof)));

        refused(await say(owner, withdraw()), 102);
        refused(await say(owner, requestUnbond(1n)), 102);
        await assertHolds(0n);
    });

    test('does not reach what was withdrawn before', async () => {
        await say(owner, bond(ton('100')), ton('100') + GAS);
        await say(owner, requestUnbond(ton('60')));
        advance(chain, terms.unbondS);
        await say(owner, withdraw());

        const transactions = await say(stranger, slash(proof));

        assert.deepEqual(handled(transactions, OP.burn).map(valueOf), [ton('34')]);
    });

    test('happens once, and ends the stake', async () => {
        await say(owner, bond(ton('100')), ton('100') + GAS);
        await say(stranger, slash(proof));

        refused(await say(stranger, slash(proof)), 102);
        refused(await say(stranger, slash(evidence('one prompt token above the ticket'))), 102);
        const transactions = await say(owner, bond(ton('5')), ton('5') + GAS);
        refused(transactions, 102);
        assert.equal(handled(transactions, 0xffffffff).length, 1);
    });

    test('by the owner itself costs it all but the bounty', async () => {
        await say(owner, bond(ton('100')), ton('100') + GAS);

        const transactions = await say(owner, slash(proof));

        assert.deepEqual(handled(transactions, OP.bounty).map(valueOf), [ton('15')]);
        assert.deepEqual(handled(transactions, OP.burn).map(valueOf), [ton('85')]);
    });

    test('of an empty stake ends it, and moves nothing', async () => {
        const transactions = await say(stranger, slash(proof));

        accepted(transactions);
        assert.equal(handled(transactions, OP.bounty).length + handled(transactions, OP.burn).length, 0);
        assert.equal((await state()).state, SLASHED);
    });
});

describe('the value that an operation needs', () => {
    /** @type {[string, Cell, bigint][]} */
    const operations = [
        ['bond', bond(ton('3')), ton('3') + gasFee(8500)],
        ['request_unbond', requestUnbond(ton('1')), gasFee(6500)],
        ['withdraw', withdraw(), gasFee(8500) + forwardFee()],
        ['slash: equivocation', slash(evidence('two heads of one number')), gasFee(65_000) + 2n * forwardFee()],
        ['slash: longest path', slash(evidence('the longest path that there is')), gasFee(65_000) + 2n * forwardFee()],
        ['slash: over-use', slash(evidence('one prompt token above the ticket')), gasFee(65_000) + 2n * forwardFee()],
    ];
    for (const [name, body, value] of operations) {
        test(`of ${name} is enough to the nano, and leaves the stake no poorer`, async () => {
            await say(owner, bond(ton('100')), ton('100') + GAS);
            await say(owner, requestUnbond(ton('10')));
            advance(chain, terms.unbondS);
            const earlier = await state();
            const held = await balanceOf(chain, vectors.stake);
            for (const less of [1n, 1000n, value / 10n, value / 2n, value - 1n]) {
                assert.notEqual(exitOf(transactionAt(await say(owner, body, less), vectors.stake)), 0);
            }
            refused(await say(owner, body, value - 1n), 103);
            assert.deepEqual(await state(), earlier);

            log.note(name, accepted(await say(owner, body, value)));

            const now = await state();
            assert.notDeepEqual(now, earlier);
            const gone = earlier.bond + earlier.unbonding - now.bond - now.unbonding;
            assert.ok((await balanceOf(chain, vectors.stake)) >= held - gone - ton('0.0001'));
        });
    }

    after(() => log.check());
});

describe('rent', () => {
    test('the reserve pays for ten years, and the next message fills it up again', async () => {
        await say(owner, bond(ton('100')), ton('100') + GAS);
        advance(chain, YEARS_10_S);

        const transactions = await say(owner, requestUnbond(1n));

        const { description } = transactionAt(transactions, vectors.stake);
        assert.equal(description.type, 'generic');
        const collected = description.type === 'generic' ? description.storagePhase?.storageFeesCollected ?? 0n : 0n;
        assert.ok(collected > 0n && collected <= RENT, `${collected}`);
        assert.equal(await balanceOf(chain, vectors.stake), ton('100') + RENT);
    });
});
