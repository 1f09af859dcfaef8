-- Epochs, payees and the payout contract. Locks: the contract's row, then payees by id, then accounts by id.

-- name: insert_contract
INSERT INTO payout_contract (address) VALUES ($1)
ON CONFLICT (singleton) DO NOTHING;

-- name: lock_contract
SELECT
    address,
    received_nano,
    paid_nano,
    fee_withdrawn_nano,
    active_epoch,
    anchor_count,
    anchor_size,
    seen_seqno
FROM payout_contract
FOR UPDATE;

-- name: update_contract
UPDATE payout_contract
SET
    received_nano = $1,
    paid_nano = $2,
    fee_withdrawn_nano = $3,
    active_epoch = $4,
    anchor_count = $5,
    anchor_size = $6,
    anchor_root = $7,
    seen_seqno = $8,
    seen_at = $9;

-- name: note_posted
-- Epochs up to $1 are on the chain, those up to $2 pay.
UPDATE epochs
SET
    posted_at = COALESCE(posted_at, $3),
    active_at = CASE WHEN epoch <= $2 THEN COALESCE(active_at, $3) ELSE active_at END
WHERE epoch <= $1 AND (posted_at IS NULL OR (active_at IS NULL AND epoch <= $2));

-- name: earned
-- Workers whose key was given to a wallet of workchain 0: what they were ever credited and what is payable now.
SELECT
    account.owner AS worker_id,
    own.wallet,
    account.credits_posted::bigint AS earned,
    (account.credits_posted - account.debits_posted - account.debits_pending)::bigint AS payable
FROM accounts AS account
INNER JOIN workers AS named ON account.owner = named.worker_id
INNER JOIN api_keys AS own ON named.key_id = own.id
WHERE account.kind = 'worker_payable' AND account.asset = 'TON' AND account.credits_posted > 0 AND own.wallet LIKE '0:%'
ORDER BY account.owner;

-- name: insert_payees
INSERT INTO payees (id, wallet)
SELECT
    wanted.id,
    wanted.wallet
FROM UNNEST($1::uuid[], $2::text[]) AS wanted (id, wallet)
ORDER BY wanted.wallet
ON CONFLICT (wallet) DO NOTHING;

-- name: payees
-- Every wallet that epochs pay, with its leaf in the last epoch.
SELECT
    payee.id,
    payee.wallet,
    payee.account,
    payee.claimed_nano,
    payee.owed_nano,
    payee.paid_nano,
    payee.returned_nano,
    payee.seen_seqno,
    COALESCE(leaf.cumulative_nano, 0) AS leaf_nano
FROM payees AS payee
LEFT JOIN epoch_leaves AS leaf
    ON payee.id = leaf.payee_id AND leaf.epoch = (SELECT MAX(epochs.epoch) FROM epochs)
ORDER BY payee.id;

-- name: lock_payee
SELECT
    payee.id,
    payee.wallet,
    payee.account,
    payee.claimed_nano,
    payee.owed_nano,
    payee.paid_nano,
    payee.returned_nano,
    payee.seen_seqno,
    COALESCE((
        SELECT leaf.cumulative_nano
        FROM epoch_leaves AS leaf
        WHERE leaf.payee_id = payee.id AND leaf.epoch = (SELECT MAX(epochs.epoch) FROM epochs)
    ), 0) AS leaf_nano
FROM payees AS payee
WHERE payee.id = $1
FOR UPDATE OF payee;

-- name: name_account
UPDATE payees SET account = $2
WHERE id = $1 AND account IS NULL;

-- name: update_payee
UPDATE payees
SET
    claimed_nano = $2,
    owed_nano = $3,
    paid_nano = $4,
    returned_nano = $5,
    seen_seqno = $6,
    seen_at = $7
WHERE id = $1;

-- name: last_epoch
SELECT
    epoch,
    root,
    total_nano,
    earned_nano,
    created_at,
    posted_at,
    active_at
FROM epochs
ORDER BY epoch DESC
LIMIT 1;

-- name: revenue
SELECT (credits_posted - debits_posted - debits_pending)::bigint AS nano
FROM accounts
WHERE kind = 'network_revenue' AND asset = 'TON';

-- name: roots
SELECT
    epoch,
    root
FROM epochs
WHERE epoch = ANY($1::bigint[]);

-- name: insert_epoch
INSERT INTO epochs (epoch, root, total_nano, earned_nano)
VALUES ($1, $2, $3, $4)
RETURNING created_at;

-- name: insert_leaves
INSERT INTO epoch_leaves (epoch, payee_id, cumulative_nano)
SELECT
    $1::bigint AS epoch,
    leaf.payee_id,
    leaf.cumulative_nano
FROM UNNEST($2::uuid[], $3::bigint[]) AS leaf (payee_id, cumulative_nano);

-- name: find_epoch
-- Epoch $1, or the last one, with the contract that all epochs of these books are of.
SELECT
    contract.address AS payout,
    fixed.epoch,
    fixed.root,
    fixed.total_nano
FROM epochs AS fixed
CROSS JOIN payout_contract AS contract
WHERE fixed.epoch = COALESCE($1::bigint, (SELECT MAX(epochs.epoch) FROM epochs));

-- name: leaves
-- Wallets and leaves of epoch $1.
SELECT
    payee.wallet,
    leaf.cumulative_nano
FROM epoch_leaves AS leaf
INNER JOIN payees AS payee ON leaf.payee_id = payee.id
WHERE leaf.epoch = $1
ORDER BY payee.wallet;

-- name: insert_claims
-- Another attempt at the claims of payees $2 under epoch $1.
INSERT INTO payout_claims (epoch, payee_id, attempt, outbox_key)
SELECT
    $1::bigint AS epoch,
    claimed.payee_id,
    COALESCE((
        SELECT MAX(earlier.attempt)
        FROM payout_claims AS earlier
        WHERE earlier.epoch = $1::bigint AND earlier.payee_id = claimed.payee_id
    ), 0) + 1 AS attempt,
    claimed.outbox_key
FROM UNNEST($2::uuid[], $3::text[]) AS claimed (payee_id, outbox_key);

-- name: last_checkpoint
-- The log's last signed checkpoint, and the database's time.
SELECT
    size,
    root,
    note,
    NOW() AS now
FROM log_checkpoints
ORDER BY size DESC
LIMIT 1;

-- name: note_anchored
-- The chain has checkpoint $1 with root $2.
UPDATE log_checkpoints SET anchored_at = $3
WHERE size = $1 AND root = $2 AND anchored_at IS NULL;
