-- Statements of the ledger. Every array parameter is as long as its neighbours; days bound partitions.
--
-- Order of locks, everywhere: open holds or leases by id, then accounts by id, then inserts by id, then daily rollups,
-- which are a trigger's (migration 0007) and written under the lock of their customer's accounts. A hold takes no lock
-- on open holds, so no cycle can form.

-- name: open_accounts
-- Accounts of kinds $1, owners $2 and assets $3, where they are missing.
INSERT INTO accounts (kind, owner, asset)
SELECT
    wanted.kind,
    wanted.owner,
    wanted.asset
FROM UNNEST($1::text[], $2::uuid[], $3::text[]) AS wanted (kind, owner, asset)
ORDER BY wanted.kind, wanted.owner, wanted.asset
ON CONFLICT (kind, owner, asset) DO NOTHING;

-- name: lock_accounts
-- Accounts $1, those of owners $2 with kinds $3, and the network's own of kinds $4, locked in id order.
SELECT
    id,
    kind,
    owner,
    asset,
    numerator,
    credits_posted - debits_posted - debits_pending AS available
FROM accounts
WHERE
    id = ANY($1::bigint[])
    OR (kind = ANY($3::text[]) AND owner = ANY($2::uuid[]))
    OR (kind = ANY($4::text[]) AND owner IS NULL)
ORDER BY id
FOR NO KEY UPDATE;

-- name: read_transfers
-- Transfers $3 of days $1 to $2, whom they debit, and how they were resolved.
SELECT
    transfer.id,
    transfer.body_digest,
    transfer.amount,
    account.owner AS customer_id,
    resolution.phase AS resolved
FROM transfers AS transfer
LEFT JOIN accounts AS account ON transfer.debit_account_id = account.id
LEFT JOIN transfers AS resolution
    ON
        transfer.day = resolution.day AND transfer.id = resolution.pending_id
        AND resolution.day BETWEEN $1::date AND $2::date
WHERE transfer.day BETWEEN $1::date AND $2::date AND transfer.id = ANY($3::uuid[]);

-- name: read_usage
-- Usage rows of jobs $3 of days $1 to $2.
SELECT
    job_id,
    attempt,
    body_digest,
    charge_nano,
    share_nano,
    fee_nano
FROM usage
WHERE day BETWEEN $1::date AND $2::date AND job_id = ANY($3::uuid[]);

-- name: lock_holds
-- The open ones of holds $1, locked in id order.
SELECT
    id,
    customer_id,
    debit_account_id,
    credit_account_id,
    amount
FROM open_holds
WHERE id = ANY($1::uuid[])
ORDER BY id
FOR UPDATE;

-- name: lock_due_holds
-- Up to $1 holds past their time by the database's clock; what another sweeper has locked is its business.
SELECT
    id,
    day,
    debit_account_id,
    credit_account_id,
    amount
FROM open_holds
WHERE expires_at <= NOW()
ORDER BY expires_at, id
LIMIT $1
FOR UPDATE SKIP LOCKED;

-- name: insert_transfers
INSERT INTO transfers (
    day, id, phase, code, pending_id, debit_account_id, credit_account_id, amount, body_digest, lease_id
)
SELECT
    entry.day,
    entry.id,
    entry.phase,
    entry.code,
    entry.pending_id,
    entry.debit_account_id,
    entry.credit_account_id,
    entry.amount,
    entry.body_digest,
    entry.lease_id
FROM
    UNNEST(
        $1::date[], $2::uuid[], $3::text[], $4::text[], $5::uuid[], $6::bigint[], $7::bigint[], $8::bigint[],
        $9::bytea[], $10::uuid[]
    ) AS entry (day, id, phase, code, pending_id, debit_account_id, credit_account_id, amount, body_digest, lease_id)
ORDER BY entry.id;

-- name: insert_open_holds
-- $7 is the time to live in seconds.
INSERT INTO open_holds (id, day, customer_id, debit_account_id, credit_account_id, amount, expires_at)
SELECT
    entry.id,
    entry.day,
    entry.customer_id,
    entry.debit_account_id,
    entry.credit_account_id,
    entry.amount,
    NOW() + MAKE_INTERVAL(secs => entry.ttl_s) AS expires_at
FROM
    UNNEST(
        $1::uuid[], $2::date[], $3::uuid[], $4::bigint[], $5::bigint[], $6::bigint[], $7::integer[]
    ) AS entry (id, day, customer_id, debit_account_id, credit_account_id, amount, ttl_s)
ORDER BY entry.id;

-- name: delete_open_holds
DELETE FROM open_holds
WHERE id = ANY($1::uuid[]);

-- name: insert_usage
INSERT INTO usage (
    day, job_id, attempt, customer_id, key_id, worker_id, model, asset, price_version, share_bps, prompt_tokens,
    cached_tokens, completion_tokens, numerator, charge_nano, share_nano, fee_nano, outcome, finish_reason, started_at,
    first_token_at, ended_at, receipt_head, receipt_signature, body_digest, customer_bps,
    worker_numerator
)
SELECT
    entry.day,
    entry.job_id,
    entry.attempt,
    entry.customer_id,
    entry.key_id,
    entry.worker_id,
    entry.model,
    entry.asset,
    entry.price_version,
    entry.share_bps,
    entry.prompt_tokens,
    entry.cached_tokens,
    entry.completion_tokens,
    entry.numerator,
    entry.charge_nano,
    entry.share_nano,
    entry.fee_nano,
    entry.outcome,
    entry.finish_reason,
    entry.started_at,
    entry.first_token_at,
    entry.ended_at,
    entry.receipt_head,
    entry.receipt_signature,
    entry.body_digest,
    entry.customer_bps,
    entry.worker_numerator
FROM
    UNNEST(
        $1::date[], $2::uuid[], $3::smallint[], $4::uuid[], $5::uuid[], $6::uuid[], $7::text[], $8::text[],
        $9::bigint[], $10::smallint[], $11::bigint[], $12::bigint[], $13::bigint[], $14::numeric[], $15::bigint[],
        $16::bigint[], $17::bigint[], $18::text[], $19::text[], $20::timestamptz[], $21::timestamptz[],
        $22::timestamptz[], $23::bytea[], $24::bytea[], $25::bytea[], $26::integer[],
        $27::numeric[]
    ) AS entry (
        day, job_id, attempt, customer_id, key_id, worker_id, model, asset, price_version, share_bps, prompt_tokens,
        cached_tokens, completion_tokens, numerator, charge_nano, share_nano, fee_nano, outcome, finish_reason,
        started_at, first_token_at, ended_at, receipt_head, receipt_signature, body_digest, customer_bps,
        worker_numerator
    )
ORDER BY entry.job_id;

-- name: add_to_accounts
-- Add to the counters of locked accounts $1. The CHECKs see the sum of the whole transaction.
UPDATE accounts
SET
    debits_posted = accounts.debits_posted + delta.debits_posted,
    credits_posted = accounts.credits_posted + delta.credits_posted,
    debits_pending = accounts.debits_pending + delta.debits_pending,
    credits_pending = accounts.credits_pending + delta.credits_pending,
    numerator = accounts.numerator + delta.numerator
FROM
    UNNEST($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::numeric[])
        AS delta (id, debits_posted, credits_posted, debits_pending, credits_pending, numerator)
WHERE accounts.id = delta.id;

-- name: read_balance
-- What customer $1 has in asset $2: no row when there is no such customer. Held is what is reserved by holds and
-- leases, and what expired leases left in recovery.
SELECT
    leased.debits_posted AS spent,
    available.debits_pending + COALESCE(recovery.credits_posted - recovery.debits_posted, 0) AS held,
    available.credits_posted - available.debits_posted - available.debits_pending AS available
FROM accounts AS available
INNER JOIN accounts AS leased
    ON available.owner = leased.owner AND available.asset = leased.asset AND leased.kind = 'customer_leased'
LEFT JOIN accounts AS recovery
    ON available.owner = recovery.owner AND available.asset = recovery.asset AND recovery.kind = 'lease_recovery'
WHERE available.kind = 'customer_available' AND available.owner = $1 AND available.asset = $2;
