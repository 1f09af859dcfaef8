/** What payouts cost: the value that each operation needs to the nano, the gas that it burns, rent, a thousand workers. */
import assert from 'node:assert/strict';
import { after, before, beforeEach, describe, test } from 'node:test';
import { Address, beginCell } from '@ton/core';
import { createShardAccount } from '@ton/sandbox';
import { forwardFee, gasFee } from './support/fees.mjs';
import { GasLog } from './support/gas.mjs';
import { Epoch, leafHash, payoutLeaf, proofCell, sha256 } from './support/merkle.mjs';
import {
    EXCESSES, placeOf, addressOf, advance, balanceOf, createNetwork, exitOf, gasOf, handled, opOf, refusingWallet, sizeOf,
    ton, transactionAt, valueOf,
} from './support/network.mjs';
import {
    ACCOUNT_RENT, GAS, OP, Payouts, RENT, accountInit, anchor, claim, claimBody, fund, postRoot, withdrawFee,
} from './support/payout.mjs';

/** @typedef {import('@ton/core').Cell} Cell */
/** @typedef {import('./support/network.mjs').Transaction} Transaction */

const YEARS_10_S = 10 * 365 * 86_400;

// The constants of contracts/src/payout.tolk and imports/payouts.tolk.
const PAY_FEE = gasFee(14_500) + 2n * forwardFee() + gasFee(3500);
const DUE_FEE = gasFee(8000) + forwardFee(800, 1) + PAY_FEE;
/** @param {number} hashes */
const claimFee = (hashes) => gasFee(11_000 + 1400 * hashes) + forwardFee(5400, 13) + DUE_FEE + ACCOUNT_RENT;
const ROOT = Buffer.alloc(32, 7);

/** @type {import('@ton/sandbox').Blockchain} */
let chain;
/** @type {import('@ton/sandbox').BlockchainSnapshot} */
let funded;
/** @type {Payouts} */
let payouts;
const log = new GasLog('payout');

/** @param {Address} src @param {Cell} body @param {bigint} value @returns {Promise<Transaction[]>} */
async function send(src, body, value) {
    const { transactions } = await chain.sendMessage({
        info: {
            type: 'internal', ihrDisabled: true, bounce: true, bounced: false, src, dest: payouts.address,
            value: { coins: value }, ihrFee: 0n, forwardFee: 0n, createdLt: 0n, createdAt: 0,
        },
        body,
    });
    return transactions;
}

/** A leaf whose path has as many hashes as fit its place in a tree. @param {Address} worker @param {bigint} cumulative @param {number} index @param {number} size */
function longPath(worker, cumulative, index, size) {
    const path = [];
    let hash = leafHash(payoutLeaf({ worker, cumulative }));
    for (let [node, last] = [index, size - 1]; last > 0; [node, last] = [Math.floor(node / 2), Math.floor(last / 2)]) {
        const sibling = sha256(Buffer.from(`sibling ${path.length}`));
        const fromLeft = node % 2 === 1 || node === last;
        while (fromLeft && node > 0 && node % 2 === 0) {
            [node, last] = [node / 2, Math.floor(last / 2)];
        }
        hash = fromLeft ? sha256(Buffer.of(1), sibling, hash) : sha256(Buffer.of(1), hash, sibling);
        path.push(sibling);
    }
    return { root: hash, proof: { index, size, path } };
}

before(async () => {
    chain = await createNetwork();
    payouts = await Payouts.deploy(chain);
    await payouts.fund(ton('10000'));
    funded = chain.snapshot();
});

beforeEach(async () => {
    await chain.loadFrom(funded);
    payouts.epochs = 0;
});

describe('the value that an operation needs', () => {
    /** @type {[string, Cell, bigint][]} */
    const operations = [
        ['fund', fund(ton('3')), ton('3') + gasFee(6000)],
        ['post_root', postRoot(1, ROOT, ton('1')), gasFee(9000)],
        ['withdraw_fee', withdrawFee(ton('1')), gasFee(10_000) + forwardFee()],
        ['anchor', anchor(ROOT, 10n, ROOT), gasFee(12_500) + forwardFee(1023, 1)],
    ];
    for (const [name, body, value] of operations) {
        test(`of ${name} is enough to the nano, and leaves the contract no poorer`, async () => {
            const operator = payouts.operator.address;
            const before = await payouts.state();
            for (const less of [1n, 1000n, value / 10n, value / 2n, value - 1n]) {
                const [first] = await send(operator, body, less);
                assert.ok(first);
                assert.notEqual(exitOf(first), 0);
            }
            assert.deepEqual(await payouts.state(), before);
            assert.equal(exitOf(transactionAt(await send(operator, body, value - 1n), payouts.address)), 103);

            const held = (await balanceOf(chain, payouts.address)) - owned(await payouts.state());
            const transactions = await send(operator, body, value);
            assert.equal(exitOf(transactionAt(transactions, payouts.address)), 0);
            assert.notDeepEqual(await payouts.state(), before);
            assert.ok((await balanceOf(chain, payouts.address)) - owned(await payouts.state()) >= held - ton('0.0001'));
            log.note(name, BigInt(gasOf(transactionAt(transactions, payouts.address))));
        });
    }

    /** @param {{ received: bigint, paid: bigint, feeWithdrawn: bigint }} state */
    function owned({ received, paid, feeWithdrawn }) {
        return received - paid - feeWithdrawn;
    }

    /** @type {[string, number, number][]} */
    const places = [
        ['alone in its tree', 0, 1], ['first of a thousand', 0, 1000], ['last of a thousand', 999, 1000],
        ['at the right edge of 1024', 1023, 1024], ['first of 2^32 - 1', 0, 2 ** 32 - 1], ['last of 2^32 - 1', 2 ** 32 - 2, 2 ** 32 - 1],
    ];
    for (const [name, index, size] of places) {
        test(`of a first claim for a worker ${name} is enough to the nano for all that follows`, async () => {
            const worker = payouts.anyone.address;
            const { root, proof } = longPath(worker, ton('5'), index, size);
            await send(payouts.operator.address, postRoot(1, root, ton('5')), GAS);
            advance(chain, 600);
            const body = claimBody({ worker, cumulative: ton('5'), proof: proofCell(proof) });
            const value = claimFee(proof.path.length);
            for (const less of [1n, 100_000n, value / 10n, value / 2n, value - 1n]) {
                assert.notEqual(exitOf(transactionAt(await send(worker, body, less), payouts.address)), 0);
            }
            assert.equal(exitOf(transactionAt(await send(worker, body, value - 1n), payouts.address)), 103);

            const transactions = await send(worker, body, value);

            assert.ok(transactions.every((one) => exitOf(one) === 0 || opOf(one) === OP.payment || opOf(one) === EXCESSES));
            assert.deepEqual(handled(transactions, OP.payment).map(valueOf), [ton('5')]);
            assert.equal((await payouts.account(worker)).inFlight, 0n);
            log.note(`claim: ${size} leaves, number ${index}`, BigInt(gasOf(transactionAt(transactions, payouts.address))));
            for (const [step, op] of /** @type {[string, number][]} */ ([['due', OP.due], ['pay', OP.pay], ['done', OP.done]])) {
                const [one] = handled(transactions, op);
                assert.ok(one);
                log.note(step, BigInt(gasOf(one)));
            }
        });
    }

    test('of a claim is enough when the payment comes back, and when it is refused', async () => {
        const worker = addressOf(refusingWallet(1));
        const other = payouts.anyone.address;
        const epoch = new Epoch([{ worker, cumulative: ton('5') }, { worker: other, cumulative: ton('1') }]);
        await payouts.open(epoch);

        const returned = await send(other, claim(epoch, worker), claimFee(1));
        const account = await payouts.account(worker);
        assert.ok(account.owed > ton('4.99'));
        assert.equal(account.inFlight, 0n);
        const bounces = handled(returned, 0xffffffff).filter((one) => placeOf(one).equals(payouts.address));
        assert.equal(bounces.length, 1);
        log.note('payment returned', BigInt(gasOf(/** @type {Transaction} */ (bounces[0]))));
        log.note('restore', BigInt(gasOf(/** @type {Transaction} */ (handled(returned, OP.restore)[0]))));

        const grab = new Epoch([{ worker, cumulative: ton('5') }, { worker: other, cumulative: ton('6') }]);
        await send(payouts.operator.address, postRoot(2, grab.tree.root, ton('6')), GAS); // a false total
        advance(chain, 600);
        await send(other, claim(grab, worker), claimFee(1));
        const refused = await send(other, claim(grab, other), claimFee(1));
        assert.deepEqual(handled(refused, OP.pay).map(exitOf), [109]);
        const { claimed, owed, inFlight } = await payouts.account(other);
        assert.deepEqual([claimed, owed, inFlight], [ton('6'), ton('6'), 0n]);
        const [back] = handled(refused, 0xffffffff);
        assert.ok(back);
        assert.equal(exitOf(back), 0);
        log.note('pay returned', BigInt(gasOf(back)));
    });

    after(() => log.check());
});

describe('sizes and rent', () => {
    test('the message that deploys an account is no larger than what is charged for it', () => {
        const { bits, cells } = sizeOf(accountInit(payouts.address, payouts.anyone.address));
        const body = 32 + 64 + 124 + 267;

        assert.ok(bits + body <= 5400, `${bits + body} bits`);
        assert.ok(cells + 1 <= 13, `${cells + 1} cells`);
    });

    test('the reserves pay ten years of rent', async () => {
        const worker = payouts.anyone.address;
        const epoch = new Epoch([{ worker, cumulative: ton('5') }]);
        await payouts.open(epoch);
        await send(worker, claim(epoch, worker), GAS);
        const account = payouts.accountAddress(worker);
        assert.ok((await balanceOf(chain, account)) >= ACCOUNT_RENT);
        advance(chain, YEARS_10_S);

        const transactions = await send(worker, claim(epoch, worker), GAS);
        for (const [address, reserve] of /** @type {[Address, bigint][]} */ ([[payouts.address, RENT], [account, ACCOUNT_RENT]])) {
            const { description } = transactionAt(transactions, address);
            assert.equal(description.type, 'generic');
            const collected = description.type === 'generic' ? description.storagePhase?.storageFeesCollected ?? 0n : 0n;
            assert.ok(collected > 0n && collected <= reserve, `${collected} of ${reserve}`);
        }
        const { received, paid } = await payouts.state();
        assert.ok((await balanceOf(chain, payouts.address)) >= received - paid);
    });

    test('what storage took, the operator\'s next message fills up again', async () => {
        advance(chain, YEARS_10_S);

        await send(payouts.operator.address, postRoot(1, ROOT, 0n), GAS);

        assert.equal(await balanceOf(chain, payouts.address), ton('10000') + RENT);
    });
});

describe('a thousand workers', () => {
    test('are paid in one epoch to the nano, each for less than 0.025 TON of the claimer\'s', async (context) => {
        const code = beginCell().storeUint(0xff00, 16).endCell(); // SETCP0: a wallet that takes everything
        const data = beginCell().endCell();
        const workers = Array.from({ length: 1000 }, (_, at) => new Address(0, sha256(Buffer.from(`worker ${at}`))));
        for (const address of workers) {
            await chain.setShardAccount(address, createShardAccount({ address, code, data, balance: 0n }));
        }
        const epoch = new Epoch(workers.map((worker, at) => ({ worker, cumulative: ton('1') + BigInt(at) })));
        await payouts.open(epoch);
        const claimer = payouts.anyone.address;
        const value = claimFee(10);

        let spent = 0n;
        for (const [at, worker] of workers.entries()) {
            const transactions = await send(claimer, claim(epoch, worker), value);
            assert.deepEqual(handled(transactions, OP.payment).map(valueOf), [ton('1') + BigInt(at)]);
            spent += value - handled(transactions, EXCESSES).reduce((sum, one) => sum + valueOf(one), 0n);
        }

        assert.equal((await payouts.state()).paid, epoch.total);
        assert.equal(epoch.total, ton('1000') + 999n * 500n);
        const each = spent / 1000n;
        context.diagnostic(`${each} nano for each of 1,000 claims, ${ACCOUNT_RENT} of them the rent that stays in the account`);
        assert.ok(each < ton('0.025'));
    });
});
