-- Statements of leases and of the usage journal. Locks are taken as everywhere: leases by id, then accounts by id.

-- name: lock_leases
-- Leases $1, locked in id order, and the database's day for new pending transfers.
SELECT
    lease_id,
    customer_id,
    asset,
    fence,
    state,
    available_id,
    leased_id,
    amount,
    version,
    pending_day,
    pending_id,
    change_seq,
    change_delta,
    CURRENT_DATE AS today
FROM leases
WHERE lease_id = ANY($1::uuid[])
ORDER BY lease_id
FOR UPDATE;

-- name: lock_due_leases
-- Up to $1 leases past their time, or past their time in recovery; what another sweeper has locked is its business.
SELECT
    lease_id,
    customer_id,
    asset,
    fence,
    state,
    available_id,
    leased_id,
    amount,
    version,
    pending_day,
    pending_id,
    change_seq,
    change_delta,
    CURRENT_DATE AS today
FROM leases
WHERE (state = 'active' AND expires_at <= NOW()) OR (state = 'recovering' AND returns_at <= NOW())
ORDER BY lease_id
LIMIT $1
FOR UPDATE SKIP LOCKED;

-- name: read_today
SELECT CURRENT_DATE AS today;

-- name: insert_leases
-- $12 is the time to live in seconds.
INSERT INTO leases (
    lease_id, customer_id, asset, holder, available_id, leased_id, amount, version, pending_day, pending_id,
    change_seq, change_delta, expires_at
)
SELECT
    entry.lease_id,
    entry.customer_id,
    entry.asset,
    entry.holder,
    entry.available_id,
    entry.leased_id,
    entry.amount,
    1 AS version,
    entry.pending_day,
    entry.pending_id,
    entry.change_seq,
    entry.change_delta,
    NOW() + MAKE_INTERVAL(secs => entry.ttl_s) AS expires_at
FROM
    UNNEST(
        $1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[], $8::date[],
        $9::uuid[], $10::bigint[], $11::bigint[], $12::double precision[]
    ) AS entry (
        lease_id, customer_id, asset, holder, available_id, leased_id, amount, pending_day, pending_id, change_seq,
        change_delta, ttl_s
    )
ORDER BY entry.lease_id
RETURNING lease_id, fence;

-- name: update_leases
-- After a change by the holder: $8 is the time to live in seconds, $9 whether a recall is answered, $10 whether the
-- lease is closed.
UPDATE leases
SET
    amount = entry.amount,
    version = entry.version,
    pending_day = entry.pending_day,
    pending_id = entry.pending_id,
    change_seq = entry.change_seq,
    change_delta = entry.change_delta,
    expires_at = NOW() + MAKE_INTERVAL(secs => entry.ttl_s),
    answered_at = CASE WHEN entry.answers THEN NOW() ELSE leases.answered_at END,
    state = CASE WHEN entry.closes THEN 'closed' ELSE leases.state END,
    closed_at = CASE WHEN entry.closes THEN NOW() END
FROM
    UNNEST(
        $1::uuid[], $2::bigint[], $3::bigint[], $4::date[], $5::uuid[], $6::bigint[], $7::bigint[],
        $8::double precision[], $9::boolean[], $10::boolean[]
    ) AS entry (
        lease_id, amount, version, pending_day, pending_id, change_seq, change_delta, ttl_s, answers, closes
    )
WHERE leases.lease_id = entry.lease_id;

-- name: consume_leases
-- After a flush: what is left, and the pending transfer that holds it.
UPDATE leases
SET
    amount = entry.amount,
    version = entry.version,
    pending_day = entry.pending_day,
    pending_id = entry.pending_id
FROM
    UNNEST($1::uuid[], $2::bigint[], $3::bigint[], $4::date[], $5::uuid[])
        AS entry (lease_id, amount, version, pending_day, pending_id)
WHERE leases.lease_id = entry.lease_id;

-- name: expire_leases
-- Leases $1 to recovery, where they stay for $2 seconds.
UPDATE leases
SET
    state = 'recovering',
    version = leases.version + 1,
    pending_day = NULL,
    pending_id = NULL,
    returns_at = NOW() + MAKE_INTERVAL(secs => $2::double precision)
WHERE lease_id = ANY($1::uuid[]);

-- name: close_leases
-- Leases $1 came back from recovery, or had nothing left when they expired.
UPDATE leases
SET
    state = 'closed',
    amount = 0,
    version = leases.version + 1,
    returns_at = NULL,
    closed_at = NOW()
WHERE lease_id = ANY($1::uuid[]);

-- name: forget_leases
-- Up to $2 leases that were closed more than $1 seconds ago.
DELETE FROM leases
WHERE
    lease_id IN (
        SELECT old.lease_id
        FROM leases AS old
        WHERE old.state = 'closed' AND old.closed_at < NOW() - MAKE_INTERVAL(secs => $1::double precision)
        ORDER BY old.lease_id
        LIMIT $2
        FOR UPDATE SKIP LOCKED
    );

-- name: find_other_leases
-- Those of leases $1 (of customers $2, assets $3, who recalled at $4) beside which another lease has credit that a
-- recall could still bring.
SELECT asking.lease_id
FROM
    UNNEST($1::uuid[], $2::uuid[], $3::text[], $4::timestamptz[]) AS asking (lease_id, customer_id, asset, recalled_at)
WHERE
    EXISTS (
        SELECT 1
        FROM leases
        WHERE
            leases.customer_id = asking.customer_id AND leases.asset = asking.asset AND leases.state = 'active'
            AND leases.amount > 0 AND leases.lease_id <> asking.lease_id
            AND (
                asking.recalled_at IS NULL OR leases.answered_at IS NULL OR leases.answered_at <= asking.recalled_at
            )
    );

-- name: recall
-- Ask holders to give up what customers $1 do not need; $2 is who asks.
SELECT
    CLOCK_TIMESTAMP() AS recalled_at,
    COUNT(PG_NOTIFY('cocoon_recall', asked.customer_id::text || ' ' || $2)) AS notified
FROM UNNEST($1::uuid[]) AS asked (customer_id);

-- name: heartbeat
SELECT 1 AS alive;

-- name: read_posted
-- The usage row of job $2 of day $1, attempt $3.
SELECT
    asset,
    body_digest,
    charge_nano,
    share_nano,
    fee_nano
FROM usage
WHERE day = $1 AND job_id = $2 AND attempt = $3;

-- name: insert_journal
INSERT INTO usage (
    day, job_id, attempt, customer_id, key_id, worker_id, model, asset, price_version, share_bps, prompt_tokens,
    cached_tokens, completion_tokens, numerator, charge_nano, share_nano, fee_nano, outcome, finish_reason, started_at,
    first_token_at, ended_at, receipt_head, receipt_signature, body_digest, lease_id, customer_bps, worker_numerator
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
    entry.lease_id,
    entry.customer_bps,
    entry.worker_numerator
FROM
    UNNEST(
        $1::date[], $2::uuid[], $3::smallint[], $4::uuid[], $5::uuid[], $6::uuid[], $7::text[], $8::text[],
        $9::bigint[], $10::smallint[], $11::bigint[], $12::bigint[], $13::bigint[], $14::numeric[], $15::bigint[],
        $16::bigint[], $17::bigint[], $18::text[], $19::text[], $20::timestamptz[], $21::timestamptz[],
        $22::timestamptz[], $23::bytea[], $24::bytea[], $25::bytea[], $26::uuid[],
        $27::integer[], $28::numeric[]
    ) AS entry (
        day, job_id, attempt, customer_id, key_id, worker_id, model, asset, price_version, share_bps, prompt_tokens,
        cached_tokens, completion_tokens, numerator, charge_nano, share_nano, fee_nano, outcome, finish_reason,
        started_at, first_token_at, ended_at, receipt_head, receipt_signature, body_digest, lease_id, customer_bps,
        worker_numerator
    );

-- name: insert_refused
-- What could not be charged; the same refusal twice is one row.
INSERT INTO refused_usage (job_id, attempt, customer_id, lease_id, reason, body_digest, body)
SELECT
    entry.job_id,
    entry.attempt,
    entry.customer_id,
    entry.lease_id,
    entry.reason,
    entry.body_digest,
    entry.body
FROM
    UNNEST($1::uuid[], $2::smallint[], $3::uuid[], $4::uuid[], $5::text[], $6::bytea[], $7::bytea[])
        AS entry (job_id, attempt, customer_id, lease_id, reason, body_digest, body)
ON CONFLICT (job_id, attempt, body_digest) DO NOTHING;
