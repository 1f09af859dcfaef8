/** payout and payout_account: every path, and every way in which somebody could try to take more or lose less. */
import assert from 'node:assert/strict';
import { before, beforeEach, describe, test } from 'node:test';
import { Address, beginCell, internal } from '@ton/core';
import { createShardAccount } from '@ton/sandbox';
import { Epoch, proofCell, sha256 } from './support/merkle.mjs';
import {
    EXCESSES, UNKNOWN_OP, addressOf, advance, balanceOf, createNetwork, exitOf, handled, opOf, refusingWallet, send,
    ton, transactionAt, valueOf,
} from './support/network.mjs';
import {
    GAS, OP, Payouts, RENT, accountInit, anchor, claim, claimBody, done, due, fund, pay, postRoot,
    restore, withdrawFee,
} from './support/payout.mjs';

/** @typedef {import('@ton/core').Cell} Cell */
/** @typedef {import('./support/network.mjs').Treasury} Treasury */
/** @typedef {import('./support/network.mjs').Transaction} Transaction */

/** @type {import('@ton/sandbox').Blockchain} */
let chain;
/** @type {import('@ton/sandbox').BlockchainSnapshot} */
let deployed;
/** @type {Payouts} */
let payouts;
/** @type {Treasury} */
let ann;
/** @type {Treasury} */
let bob;
/** @type {Treasury} */
let stranger;

/** @param {Transaction[]} transactions @param {number} code */
function refused(transactions, code) {
    assert.equal(exitOf(transactionAt(transactions, payouts.address)), code);
}

/** @param {Transaction[]} transactions */
function accepted(transactions) {
    for (const one of transactions) {
        assert.ok([0, -1].includes(exitOf(one)), `exit code ${exitOf(one)} of ${opOf(one).toString(16)}`);
    }
}

/** What the contract owes must be on its balance, whatever happened. */
async function assertSolvent() {
    const { received, paid, feeWithdrawn } = await payouts.state();
    assert.ok((await balanceOf(chain, payouts.address)) >= received - paid - feeWithdrawn);
}

/** What belongs to others and a rent reserve, of which storage took some since it was full. @param {bigint} owned */
async function assertHolds(owned) {
    const balance = await balanceOf(chain, payouts.address);
    assert.ok(balance >= owned + RENT - ton('0.001') && balance <= owned + RENT, `${balance}`);
}

/** @param {Address} address @param {() => Promise<unknown>} act @returns {Promise<bigint>} what it brought to somebody else */
async function gained(address, act) {
    const had = await balanceOf(chain, address);
    await act();
    return (await balanceOf(chain, address)) - had;
}

/** @param {Record<string, bigint>} earned in nano, of ann and bob */
function epochOf(earned) {
    return new Epoch(Object.entries(earned).map(([name, cumulative]) => ({
        worker: (name === 'ann' ? ann : bob).address, cumulative,
    })));
}

before(async () => {
    chain = await createNetwork();
    [ann, bob, stranger] = await Promise.all([chain.treasury('ann'), chain.treasury('bob'), chain.treasury('stranger')]);
    payouts = await Payouts.deploy(chain);
    deployed = chain.snapshot();
});

beforeEach(async () => {
    await chain.loadFrom(deployed);
    payouts.epochs = 0;
});

describe('fund', () => {
    test('what came in is what was named, and the rest goes back', async () => {
        const transactions = await payouts.fund(ton('5'));

        accepted(transactions);
        assert.equal((await payouts.state()).received, ton('5'));
        const [excess] = handled(transactions, EXCESSES);
        assert.ok(excess && valueOf(excess) > ton('0.09'));
        assert.equal(await balanceOf(chain, payouts.address), ton('5') + RENT);
    });

    test('an amount without the money for it is refused, and comes back', async () => {
        const transactions = await payouts.send(stranger, fund(ton('5')), ton('5'));

        refused(transactions, 103);
        assert.equal((await payouts.state()).received, 0n);
        assert.equal(transactions.filter((one) => one.inMessage?.info.type === 'internal' && one.inMessage.info.bounced).length, 1);
    });

    test('a contract that takes more than everything as its fee takes no money', async () => {
        const other = await Payouts.deploy(chain, { feeBps: 10_001 });
        const transactions = await other.fund(ton('5'));

        assert.equal(exitOf(transactionAt(transactions, other.address)), 105);
        assert.equal((await other.state()).received, 0n);
    });
});

describe('what is not an operation', () => {
    for (const [name, body] of /** @type {[string, Cell][]} */ ([
        ['an empty body', beginCell().endCell()],
        ['a text', beginCell().storeUint(0, 32).storeStringTail('for you').endCell()],
        ['an unknown operation', beginCell().storeUint(0x43e5ffff, 32).storeUint(1, 64).endCell()],
        ['another contract\'s operation', beginCell().storeUint(0x43e50001, 32).storeUint(1, 64).storeCoins(1n).endCell()],
        ['half an operation', beginCell().storeUint(0x43e5, 16).endCell()],
    ])) {
        test(`${name} is refused and the money comes back`, async () => {
            const transactions = await payouts.send(stranger, body, ton('1'));

            refused(transactions, UNKNOWN_OP);
            assert.equal(handled(transactions, 0xffffffff).length, 1);
        });
    }

    for (const [name, body] of /** @type {[string, Cell][]} */ ([
        ['fund', fund(1n)], ['post_root', postRoot(1, Buffer.alloc(32), 0n)], ['withdraw_fee', withdrawFee(1n)],
        ['anchor', anchor(Buffer.alloc(32), 1n, Buffer.alloc(32))],
    ])) {
        test(`${name} with something behind its end is refused`, async () => {
            await payouts.fund(ton('1'));

            refused(await payouts.send(payouts.operator, beginCell().storeSlice(body.beginParse()).storeBit(1).endCell()), 9);
        });
    }

    test('an operation that is cut short is refused', async () => {
        const transactions = await payouts.send(payouts.operator, beginCell().storeUint(OP.withdrawFee, 32).endCell());

        refused(transactions, 9);
    });
});

describe('roots', () => {
    beforeEach(() => payouts.fund(ton('100')));

    test('a root waits in public, then counts', async () => {
        const epoch = epochOf({ ann: ton('10'), bob: ton('20') });
        accepted(await payouts.send(payouts.operator, postRoot(1, epoch.tree.root, epoch.total)));
        const posted = await payouts.state();
        assert.deepEqual([posted.epoch, posted.pendingEpoch, posted.pendingTotal], [0, 1, ton('30')]);
        assert.deepEqual(posted.pendingRoot, epoch.tree.root);
        assert.equal(posted.pendingAt, (chain.now ?? 0) + 600);

        advance(chain, 599);
        refused(await payouts.send(stranger, claim(epoch, ann.address)), 102);
        advance(chain, 1);
        accepted(await payouts.send(stranger, claim(epoch, ann.address)));
        assert.equal((await payouts.state()).paid, ton('10'));
    });

    test('while the next root waits, claims are judged by the one before', async () => {
        const first = epochOf({ ann: ton('10') });
        const second = epochOf({ ann: ton('15') });
        await payouts.open(first);
        await payouts.send(payouts.operator, postRoot(2, second.tree.root, second.total));

        refused(await payouts.send(stranger, claim(second, ann.address)), 110);
        accepted(await payouts.send(stranger, claim(first, ann.address)));
        advance(chain, 600);
        refused(await payouts.send(stranger, claim(first, ann.address)), 110);
        accepted(await payouts.send(stranger, claim(second, ann.address)));
        assert.equal((await payouts.state()).paid, ton('15'));
    });

    test('nobody but the operator posts one', async () => {
        refused(await payouts.send(stranger, postRoot(1, Buffer.alloc(32), 0n)), 101);
    });

    test('one that waits cannot be replaced', async () => {
        const epoch = epochOf({ ann: ton('10') });
        await payouts.send(payouts.operator, postRoot(1, epoch.tree.root, epoch.total));
        advance(chain, 599);

        refused(await payouts.send(payouts.operator, postRoot(1, Buffer.alloc(32, 7), epoch.total)), 102);
        refused(await payouts.send(payouts.operator, postRoot(2, Buffer.alloc(32, 7), epoch.total)), 102);
        assert.deepEqual((await payouts.state()).pendingRoot, epoch.tree.root);
    });

    test('an epoch is neither skipped nor written over', async () => {
        refused(await payouts.send(payouts.operator, postRoot(2, Buffer.alloc(32), 0n)), 106);
        refused(await payouts.send(payouts.operator, postRoot(0, Buffer.alloc(32), 0n)), 106);
        await payouts.open(epochOf({ ann: 1n }));

        refused(await payouts.send(payouts.operator, postRoot(1, Buffer.alloc(32), 1n)), 106);
        refused(await payouts.send(payouts.operator, postRoot(3, Buffer.alloc(32), 1n)), 106);
        accepted(await payouts.send(payouts.operator, postRoot(2, Buffer.alloc(32), 1n)));
    });

    test('a total above what came in less the highest fee is refused, to the nano', async () => {
        refused(await payouts.send(payouts.operator, postRoot(1, Buffer.alloc(32), ton('90') + 1n)), 109);
        accepted(await payouts.send(payouts.operator, postRoot(1, Buffer.alloc(32), ton('90'))));
    });

    test('a total never falls', async () => {
        await payouts.open(epochOf({ ann: ton('10') }));

        refused(await payouts.send(payouts.operator, postRoot(2, Buffer.alloc(32), ton('10') - 1n)), 106);
    });
});

describe('claims', () => {
    /** @type {Epoch} */
    let epoch;
    /** @type {import('@ton/sandbox').BlockchainSnapshot} */
    let open;

    before(async () => {
        await chain.loadFrom(deployed);
        payouts.epochs = 0;
        await payouts.fund(ton('100'));
        epoch = epochOf({ ann: ton('10'), bob: ton('20') });
        await payouts.open(epoch);
        open = chain.snapshot();
    });

    beforeEach(async () => {
        await chain.loadFrom(open);
        payouts.epochs = 1;
    });

    test('anybody claims for a worker, and the worker gets the exact amount', async () => {
        /** @type {Transaction[]} */
        let transactions = [];
        const got = await gained(ann.address, async () => {
            transactions = await payouts.send(stranger, claim(epoch, ann.address, 77n));
        });

        accepted(transactions);
        const [payment] = handled(transactions, OP.payment);
        assert.ok(payment);
        assert.equal(valueOf(payment), ton('10'));
        assert.equal(got, ton('10') - payment.totalFees.coins);
        const account = await payouts.account(ann.address);
        assert.deepEqual([account.claimed, account.owed, account.inFlight, account.inFlightQuery], [ton('10'), 0n, 0n, 0n]);
        assert.equal(account.worker.toString(), ann.address.toString());
        assert.equal((await payouts.state()).paid, ton('10'));
        await assertHolds(ton('90'));
    });

    test('what the claim did not need goes back to who sent it', async () => {
        const transactions = await payouts.send(stranger, claim(epoch, ann.address), ton('1'));

        const [excess] = handled(transactions, EXCESSES);
        assert.ok(excess);
        assert.equal(transactionAt([excess], stranger.address), excess);
        assert.ok(valueOf(excess) > ton('0.97'));
    });

    test('the getter, the claim and our own computation agree on the account', async () => {
        const transactions = await payouts.send(stranger, claim(epoch, ann.address));
        const answer = await chain.runGetMethod(payouts.address, 'account_address', [
            { type: 'slice', cell: beginCell().storeAddress(ann.address).endCell() },
        ]);

        assert.ok(answer.stackReader.readAddress().equals(payouts.accountAddress(ann.address)));
        assert.equal(handled(transactions, OP.due).length, 1);
        assert.equal(exitOf(transactionAt(transactions, payouts.accountAddress(ann.address))), 0);
    });

    test('a second claim pays nothing', async () => {
        await payouts.send(stranger, claim(epoch, ann.address));
        const transactions = await payouts.send(stranger, claim(epoch, ann.address), ton('1'));

        accepted(transactions);
        assert.equal(handled(transactions, OP.pay).length, 0);
        const [excess] = handled(transactions, EXCESSES);
        assert.ok(excess && valueOf(excess) > ton('0.99'));
        assert.equal((await payouts.state()).paid, ton('10'));
        await assertSolvent();
    });

    test('only the difference is paid in the next epoch, and a lower cumulative is a no-op', async () => {
        await payouts.send(stranger, claim(epoch, ann.address));
        const second = epochOf({ ann: ton('12'), bob: ton('20') });
        await payouts.open(second);
        const [payment] = handled(await payouts.send(stranger, claim(second, ann.address)), OP.payment);
        assert.ok(payment);
        assert.equal(valueOf(payment), ton('2'));
        const third = epochOf({ ann: ton('1'), bob: ton('31') });
        await payouts.open(third);

        assert.equal(handled(await payouts.send(stranger, claim(third, ann.address)), OP.payment).length, 0);
        assert.equal((await payouts.account(ann.address)).claimed, ton('12'));
    });

    test('a claim before any root is refused', async () => {
        await chain.loadFrom(deployed);

        refused(await payouts.send(stranger, claim(epoch, ann.address)), 102);
    });

    /** @type {[string, (worker: Address) => Cell][]} */
    const forgeries = [
        ['another amount', (worker) => claimBody({ ...epoch.claimOf(worker), cumulative: ton('10') + 1n, proof: proofCell(epoch.claimOf(worker).proof) })],
        ['another worker\'s leaf', (worker) => claimBody({ ...epoch.claimOf(worker), worker: stranger.address, proof: proofCell(epoch.claimOf(worker).proof) })],
        ['the other index', (worker) => forged(worker, (proof) => ({ ...proof, index: proof.index ^ 1 }))],
        ['an index outside of the tree', (worker) => forged(worker, (proof) => ({ ...proof, index: proof.size }))],
        ['a size that needs a longer path', (worker) => forged(worker, (proof) => ({ ...proof, size: 5 }))],
        ['a size that needs a shorter path', (worker) => forged(worker, (proof) => ({ ...proof, index: 0, size: 1 }))],
        ['no leaves', (worker) => forged(worker, (proof) => ({ ...proof, index: 0, size: 0, path: [] }))],
        ['a hash too many', (worker) => forged(worker, (proof) => ({ ...proof, path: [...proof.path, Buffer.alloc(32)] }))],
        ['a hash too few', (worker) => forged(worker, (proof) => ({ ...proof, path: [] }))],
        ['another hash', (worker) => forged(worker, (proof) => ({ ...proof, path: [Buffer.alloc(32, 1)] }))],
        ['a node in the place of a leaf', (worker) => claimBody({
            worker, cumulative: epoch.total, proof: proofCell({ index: 0, size: 1, path: [] }),
        })],
        ['a count above the hashes there', (worker) => {
            const { cumulative, proof } = epoch.claimOf(worker);
            return claimBody({ worker, cumulative, proof: proofCell(proof, { count: 2 }) });
        }],
        ['a count below the hashes there', (worker) => {
            const { cumulative, proof } = epoch.claimOf(worker);
            return claimBody({ worker, cumulative, proof: proofCell(proof, { count: 0 }) });
        }],
        ['bits behind the path', (worker) => {
            const { cumulative, proof } = epoch.claimOf(worker);
            const longer = beginCell().storeSlice(proofCell(proof).beginParse()).storeBit(1).endCell();
            return claimBody({ worker, cumulative, proof: longer });
        }],
        ['a reference behind the path', (worker) => {
            const { cumulative, proof } = epoch.claimOf(worker);
            const longer = beginCell().storeSlice(proofCell(proof).beginParse()).storeRef(beginCell().endCell()).endCell();
            return claimBody({ worker, cumulative, proof: longer });
        }],
        ['an empty proof', (worker) => claimBody({ ...epoch.claimOf(worker), proof: beginCell().endCell() })],
        ['the worker\'s account in the masterchain', (worker) => {
            const { cumulative, proof } = epoch.claimOf(worker);
            return claimBody({ worker: new Address(-1, worker.hash), cumulative, proof: proofCell(proof) });
        }],
    ];

    /** @param {Address} worker @param {(proof: import('./support/merkle.mjs').Proof) => import('./support/merkle.mjs').Proof} change */
    function forged(worker, change) {
        const { cumulative, proof } = epoch.claimOf(worker);
        return claimBody({ worker, cumulative, proof: proofCell(change(proof)) });
    }

    for (const [name, forge] of forgeries) {
        test(`a proof with ${name} is refused`, async () => {
            refused(await payouts.send(stranger, forge(ann.address)), 110);
            assert.equal((await payouts.state()).paid, 0n);
        });
    }

    test('a leaf of the masterchain is not paid, even under a root that has it', async () => {
        const worker = new Address(-1, ann.address.hash);
        const far = new Epoch([{ worker, cumulative: ton('30') }]);
        await payouts.open(far);

        refused(await payouts.send(stranger, claim(far, worker)), 110);
    });

    test('trees of every shape up to 33 leaves pay every worker', async () => {
        for (const size of [1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33]) {
            await chain.loadFrom(deployed);
            payouts.epochs = 0;
            await payouts.fund(ton('100'));
            const workers = Array.from({ length: size }, (_, at) => new Address(0, sha256(Buffer.from(`worker ${at}`))));
            const many = new Epoch(workers.map((worker, at) => ({ worker, cumulative: ton('1') + BigInt(at) })));
            await payouts.open(many);
            for (const worker of size <= 9 ? workers : workers.slice(-2)) {
                accepted((await payouts.send(stranger, claim(many, worker))).filter((one) => opOf(one) === OP.claim));
            }
        }
    });
});

describe('a payment that comes back', () => {
    /** @param {{ deployedWallet: boolean }} wallet @returns {Promise<{ worker: Address, epoch: Epoch }>} */
    async function workerWith({ deployedWallet }) {
        const init = refusingWallet(1);
        const worker = addressOf(init);
        if (deployedWallet) {
            const state = { code: init.code, data: init.data };
            await chain.setShardAccount(worker, createShardAccount({ address: worker, ...state, balance: ton('0.1') }));
        }
        await payouts.fund(ton('100'));
        const epoch = new Epoch([{ worker, cumulative: ton('10') }, { worker: bob.address, cumulative: ton('20') }]);
        await payouts.open(epoch);
        return { worker, epoch };
    }

    for (const [name, deployedWallet] of /** @type {[string, boolean][]} */ ([
        ['a wallet that refuses', true], ['a wallet that is not deployed', false],
    ])) {
        test(`${name} is owed what came back, and the next claim leaves it there`, async () => {
            const { worker, epoch } = await workerWith({ deployedWallet });
            accepted((await payouts.send(stranger, claim(epoch, worker))).filter((one) => opOf(one) !== OP.payment));
            const restored = await payouts.account(worker);
            assert.equal(restored.claimed, ton('10'));
            assert.equal(restored.inFlight, 0n);
            assert.ok(restored.owed > ton('9.99') && restored.owed < ton('10'));
            assert.equal((await payouts.state()).paid, ton('10') - restored.owed);
            await assertSolvent();

            const got = await gained(worker, () => payouts.send(bob, claim(epoch, worker)));
            assert.ok(got > restored.owed - ton('0.001') && got <= restored.owed);
            const paid = await payouts.account(worker);
            assert.deepEqual([paid.claimed, paid.owed, paid.inFlight], [ton('10'), 0n, 0n]);
            assert.equal((await payouts.state()).paid, ton('10'));
            await assertSolvent();
            assert.equal(handled(await payouts.send(bob, claim(epoch, worker)), OP.pay).length, 0);
        });
    }

    test('what is owed and what is new are paid together', async () => {
        const { worker, epoch } = await workerWith({ deployedWallet: true });
        await payouts.send(stranger, claim(epoch, worker));
        const { owed } = await payouts.account(worker);
        const second = new Epoch([{ worker, cumulative: ton('13') }, { worker: bob.address, cumulative: ton('20') }]);
        await payouts.open(second);

        const [payment] = handled(await payouts.send(stranger, claim(second, worker)), OP.payment);
        assert.ok(payment);
        assert.equal(valueOf(payment), owed + ton('3'));
        assert.equal((await payouts.account(worker)).owed, 0n);
        await assertSolvent();
    });

    test('one so small that nothing of it comes back leaves the books in order', async () => {
        const worker = new Address(0, sha256(Buffer.from('nobody')));
        await payouts.fund(ton('1'));
        const epoch = new Epoch([{ worker, cumulative: 70_000n }]);
        await payouts.open(epoch);

        await payouts.send(stranger, claim(epoch, worker));

        const account = await payouts.account(worker);
        assert.deepEqual([account.claimed, account.owed, account.inFlight], [70_000n, 0n, 0n]);
        await assertSolvent();
    });

    test('nobody but the chain says that a payment came back', async () => {
        const { epoch } = await workerWith({ deployedWallet: false });
        await payouts.send(stranger, claim(epoch, bob.address));
        const lie = beginCell().storeUint(0xffffffff, 32).storeUint(OP.payment, 32).storeUint(1, 64).storeCoins(ton('20')).endCell();

        refused(await payouts.send(bob, lie, ton('1')), UNKNOWN_OP);
        assert.equal((await payouts.state()).paid, ton('20'));
        assert.equal((await payouts.account(bob.address)).owed, 0n);
    });

    test('the chain clears a bounced flag that a sender set', async () => {
        const { epoch } = await workerWith({ deployedWallet: false });
        await payouts.send(stranger, claim(epoch, bob.address));
        const lie = beginCell().storeUint(0xffffffff, 32).storeUint(OP.payment, 32).storeUint(1, 64).storeCoins(ton('20')).endCell();
        const message = internal({ to: payouts.address, value: ton('1'), body: lie, bounce: true });
        assert.equal(message.info.type, 'internal');
        const info = message.info.type === 'internal' ? { ...message.info, bounced: true } : message.info;
        const result = await bob.sendMessages([{ ...message, info }]);

        refused(result.transactions, UNKNOWN_OP);
        assert.equal((await payouts.account(bob.address)).owed, 0n);
    });
});

describe('who may say what', () => {
    /** @type {Epoch} */
    let epoch;

    beforeEach(async () => {
        await payouts.fund(ton('100'));
        epoch = epochOf({ ann: ton('10'), bob: ton('20') });
        await payouts.open(epoch);
    });

    test('a forged request to pay is refused, from anybody and from the worker itself', async () => {
        for (const sender of [stranger, ann, payouts.operator]) {
            refused(await payouts.send(sender, pay({ worker: ann.address, amount: ton('10'), excessTo: sender.address })), 101);
        }
    });

    test('the account of one worker cannot ask for another', async () => {
        // The real account's code, with data that names the stranger: it lives at another address.
        const rogue = accountInit(payouts.address, stranger.address);
        const body = pay({ worker: ann.address, amount: ton('10'), excessTo: stranger.address });
        const { transactions } = await chain.sendMessage({ info: info(addressOf(rogue), payouts.address, ton('1')), body });

        refused(transactions, 101);
    });

    test('an account of other code or another contract is not this one\'s', async () => {
        const other = new Payouts(chain, { ...payouts.config, salt: 1n }, payouts.operator, stranger);
        for (const from of [other.accountAddress(ann.address), addressOf({ code: refusingWallet(0).code, data: accountInit(payouts.address, ann.address).data })]) {
            const body = pay({ worker: ann.address, amount: ton('10'), excessTo: stranger.address });
            const { transactions } = await chain.sendMessage({ info: info(from, payouts.address, ton('1')), body });

            refused(transactions, 101);
        }
    });

    test('a payment above the active total is refused, and stays owed', async () => {
        await payouts.send(stranger, claim(epoch, ann.address));
        await payouts.send(stranger, claim(epoch, bob.address));
        // The next root moves ann's earnings to the stranger without a higher total.
        const grab = new Epoch([{ worker: stranger.address, cumulative: ton('30') }]);
        await payouts.open(grab);
        const transactions = await payouts.send(stranger, claim(grab, stranger.address));

        assert.deepEqual(handled(transactions, OP.pay).map(exitOf), [109]);
        assert.equal((await payouts.state()).paid, ton('30'));
        const account = await payouts.account(stranger.address);
        assert.deepEqual([account.claimed, account.owed, account.inFlight, account.inFlightQuery], [ton('30'), ton('30'), 0n, 0n]);
        await assertSolvent();
    });

    test('all together are paid the active total and not a nano more, whatever the leaves say', async () => {
        const more = epochOf({ ann: ton('10'), bob: ton('20') + 1n });
        payouts.epochs += 1;
        await payouts.send(payouts.operator, postRoot(payouts.epochs, more.tree.root, ton('30')));
        advance(chain, payouts.config.delayS);
        await payouts.send(stranger, claim(more, ann.address));

        assert.deepEqual(handled(await payouts.send(stranger, claim(more, bob.address)), OP.pay).map(exitOf), [109]);
        assert.equal((await payouts.state()).paid, ton('10'));
        assert.equal((await payouts.account(bob.address)).owed, ton('20') + 1n);
    });

    test('the worker\'s account listens to its payout contract alone', async () => {
        await payouts.send(stranger, claim(epoch, ann.address));
        const account = payouts.accountAddress(ann.address);
        for (const body of [due(ton('50'), ann.address), restore(ton('50')), done()]) {
            const transactions = await send(ann, { to: account, value: ton('1'), body });
            assert.equal(exitOf(transactionAt(transactions, account)), 101);
        }
        for (const body of [beginCell().endCell(), beginCell().storeUint(0x43e5fff0, 32).storeUint(1, 64).endCell()]) {
            const transactions = await send(ann, { to: account, value: ton('1'), body });
            assert.equal(exitOf(transactionAt(transactions, account)), UNKNOWN_OP);
        }
        assert.equal((await payouts.account(ann.address)).claimed, ton('10'));
    });

    test('whoever deploys an account first changes nothing for its worker', async () => {
        const init = accountInit(payouts.address, ann.address);
        await send(stranger, { to: addressOf(init), value: ton('1'), init, body: due(ton('10'), stranger.address) });

        const [payment] = handled(await payouts.send(stranger, claim(epoch, ann.address)), OP.payment);
        assert.ok(payment);
        assert.equal(valueOf(payment), ton('10'));
    });
});

describe('two claims in flight', () => {
    test('the second pays nothing while the first is under way, and what it was for is paid later', async () => {
        await payouts.fund(ton('100'));
        const epoch = epochOf({ ann: ton('10'), bob: ton('20') });
        await payouts.open(epoch);
        const account = payouts.accountAddress(ann.address);
        // Stop before the payout contract answers the account: the payment is in flight.
        const first = await chain.sendMessageIter({ info: info(stranger.address, payouts.address, GAS), body: claim(epoch, ann.address, 1n) });
        for await (const one of first) {
            if (opOf(one) === OP.due) {
                break;
            }
        }
        assert.equal((await payouts.account(ann.address)).inFlight, ton('10'));
        const later = info(payouts.address, account, GAS);
        const { transactions } = await chain.sendMessage({ info: later, body: due(ton('15'), bob.address) });

        assert.deepEqual(transactions.slice(0, 2).map(opOf), [OP.pay, OP.due]); // the second comes before the first is done
        assert.deepEqual(handled(transactions, OP.payment).map(valueOf), [ton('10')]);
        const { claimed, owed, inFlight } = await payouts.account(ann.address);
        assert.deepEqual([claimed, owed, inFlight], [ton('10'), 0n, 0n]);
        const second = epochOf({ ann: ton('15'), bob: ton('20') });
        await payouts.open(second);
        assert.deepEqual(handled(await payouts.send(bob, claim(second, ann.address)), OP.payment).map(valueOf), [ton('5')]);
    });
});

describe('the fee', () => {
    beforeEach(() => payouts.fund(ton('100')));

    test('the operator takes its share to the nano, and not a nano more', async () => {
        refused(await payouts.send(payouts.operator, withdrawFee(ton('10') + 1n)), 109);
        const transactions = await payouts.send(payouts.operator, withdrawFee(ton('4')));
        accepted(transactions);
        const [payment] = handled(transactions, OP.feePayment);
        assert.ok(payment);
        assert.equal(valueOf(payment), ton('4'));
        assert.equal(transactionAt([payment], payouts.config.feeTo), payment);
        refused(await payouts.send(payouts.operator, withdrawFee(ton('6') + 1n)), 109);
        accepted(await payouts.send(payouts.operator, withdrawFee(ton('6'))));
        refused(await payouts.send(payouts.operator, withdrawFee(1n)), 109);
        await assertHolds(ton('90'));
    });

    test('a fraction of a nano stays with the workers', async () => {
        await payouts.fund(9n);

        refused(await payouts.send(payouts.operator, withdrawFee(ton('10') + 1n)), 109);
        accepted(await payouts.send(payouts.operator, postRoot(1, Buffer.alloc(32), ton('90') + 9n)));
    });

    test('it reaches a wallet that is not deployed yet', async () => {
        const feeTo = addressOf(refusingWallet(2));
        const other = await Payouts.deploy(chain, { feeTo });
        await other.fund(ton('100'));
        const got = await gained(feeTo, () => other.send(other.operator, withdrawFee(ton('10'))));

        assert.equal(got, ton('10'));
    });

    test('nobody else takes it, and nothing is not an amount', async () => {
        refused(await payouts.send(stranger, withdrawFee(1n)), 101);
        refused(await payouts.send(payouts.operator, withdrawFee(0n)), 113);
    });

    test('no operation of the operator moves what is the workers\'', async () => {
        const epoch = epochOf({ ann: ton('60'), bob: ton('30') });
        await payouts.open(epoch);
        await payouts.send(payouts.operator, withdrawFee(ton('10')));
        for (const body of [
            withdrawFee(1n), withdrawFee(ton('90')), postRoot(2, Buffer.alloc(32), ton('90') + 1n), postRoot(1, Buffer.alloc(32), 0n),
            pay({ worker: payouts.operator.address, amount: ton('90'), excessTo: payouts.operator.address }),
            beginCell().storeUint(0x43e52007, 32).storeUint(1, 64).endCell(),
        ]) {
            assert.notEqual(exitOf(transactionAt(await payouts.send(payouts.operator, body), payouts.address)), 0);
        }
        await assertHolds(ton('90'));
        await payouts.send(ann, claim(epoch, ann.address));
        await payouts.send(bob, claim(epoch, bob.address));
        assert.equal((await payouts.state()).paid, ton('90'));
        await assertHolds(0n);
    });
});

describe('anchors', () => {
    const origin = sha256(Buffer.from('log'));

    test('each is chained to all before it and logged', async () => {
        let acc = Buffer.alloc(32);
        for (const size of [3n, 10n, 2n ** 63n]) {
            const root = sha256(Buffer.from(`root ${size}`));
            const transactions = await payouts.send(payouts.operator, anchor(origin, size, root));
            accepted(transactions);
            const eight = Buffer.from(size.toString(16).padStart(16, '0'), 'hex');
            acc = sha256(acc, origin, eight, root);
            const { anchor: anchored } = await payouts.state();
            assert.deepEqual([anchored.size, anchored.acc, anchored.root], [size, acc, root]);
            const [log] = transactionAt(transactions, payouts.address).outMessages.values().filter((one) => one.info.type === 'external-out');
            assert.ok(log);
            const source = log.body.beginParse();
            assert.deepEqual(
                [source.loadUint(32), source.loadUint(32), source.loadBuffer(32), source.loadUintBig(64), source.loadBuffer(32), source.loadBuffer(32)],
                [OP.anchorLog, anchored.count, origin, size, root, acc],
            );
        }
        assert.equal((await payouts.state()).anchor.count, 3);
    });

    test('a size that does not grow is refused, whatever the log', async () => {
        await payouts.send(payouts.operator, anchor(origin, 10n, origin));
        for (const size of [0n, 9n, 10n]) {
            refused(await payouts.send(payouts.operator, anchor(sha256(origin), size, origin)), 106);
        }
    });

    test('nobody but the operator anchors', async () => {
        refused(await payouts.send(stranger, anchor(origin, 10n, origin)), 101);
    });
});

/** @param {Address} src @param {Address} dest @param {bigint} value @returns {import('@ton/core').CommonMessageInfoInternal} */
function info(src, dest, value) {
    return {
        type: 'internal', ihrDisabled: true, bounce: true, bounced: false, src, dest, value: { coins: value },
        ihrFee: 0n, forwardFee: 0n, createdLt: 0n, createdAt: 0,
    };
}
