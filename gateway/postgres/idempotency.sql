-- Claims on idempotency keys. The primary key is what makes replicas agree.

-- name: claim_key
-- Take a free key, or read who has it. No row at all means that somebody took or left it in this very moment.
WITH taken AS (
    INSERT INTO idempotency_claims (key_tag, body_tag, job_id, customer_id, key_id, expires_at)
    VALUES ($1, $2, $3, $4, $5, NOW() + MAKE_INTERVAL(secs => $6::double precision))
    ON CONFLICT (key_tag) DO NOTHING
    RETURNING job_id, body_tag, state
)

SELECT
    job_id,
    body_tag,
    state,
    NULL::bytea AS outcome,
    FALSE AS expired
FROM taken
UNION ALL
SELECT
    job_id,
    body_tag,
    state,
    CASE WHEN body_tag = $2 THEN outcome END AS outcome,
    expires_at <= NOW() AS expired
FROM idempotency_claims
WHERE key_tag = $1;

-- name: lock_expired_claim
SELECT
    job_id,
    body_tag,
    customer_id,
    key_id,
    state
FROM idempotency_claims
WHERE key_tag = $1 AND expires_at <= NOW()
FOR UPDATE;

-- name: take_over_claim
UPDATE idempotency_claims
SET
    body_tag = $2,
    job_id = $3,
    customer_id = $4,
    key_id = $5,
    state = 'running',
    outcome = NULL,
    created_at = NOW(),
    expires_at = NOW() + MAKE_INTERVAL(secs => $6::double precision)
WHERE key_tag = $1;

-- name: close_claim
-- The claim of a request that was charged before its process died: $2 is what it ended as, $3 for how many seconds.
UPDATE idempotency_claims
SET
    state = $2,
    expires_at = NOW() + MAKE_INTERVAL(secs => $3::double precision)
WHERE key_tag = $1;

-- name: renew_claims
-- Locked in order of the key, as everywhere, so that two batches never wait for each other.
WITH locked AS (
    SELECT claims.key_tag
    FROM idempotency_claims AS claims
    INNER JOIN UNNEST($1::bytea[], $2::uuid[]) AS entry (key_tag, job_id)
        ON claims.key_tag = entry.key_tag AND claims.job_id = entry.job_id
    WHERE claims.state = 'running'
    ORDER BY claims.key_tag
    FOR UPDATE OF claims
)

UPDATE idempotency_claims
SET expires_at = NOW() + MAKE_INTERVAL(secs => $3::double precision)
FROM locked
WHERE idempotency_claims.key_tag = locked.key_tag;

-- name: lock_claims
SELECT claims.key_tag
FROM idempotency_claims AS claims
INNER JOIN UNNEST($1::bytea[], $2::uuid[]) AS entry (key_tag, job_id)
    ON claims.key_tag = entry.key_tag AND claims.job_id = entry.job_id
ORDER BY claims.key_tag
FOR UPDATE OF claims;

-- name: end_claims
UPDATE idempotency_claims
SET
    state = entry.state,
    outcome = entry.outcome,
    expires_at = NOW() + MAKE_INTERVAL(secs => entry.keep_s)
FROM
    UNNEST($1::bytea[], $2::uuid[], $3::text[], $4::bytea[], $5::double precision[])
        AS entry (key_tag, job_id, state, outcome, keep_s)
WHERE idempotency_claims.key_tag = entry.key_tag AND idempotency_claims.job_id = entry.job_id;

-- name: forget_claims
DELETE FROM idempotency_claims
USING UNNEST($1::bytea[], $2::uuid[]) AS entry (key_tag, job_id)
WHERE idempotency_claims.key_tag = entry.key_tag AND idempotency_claims.job_id = entry.job_id;

-- name: sweep_claims
-- A claim that was never ended is left to its next caller for $2 seconds, who has its job written off.
DELETE FROM idempotency_claims
WHERE
    key_tag IN (
        SELECT due.key_tag
        FROM idempotency_claims AS due
        WHERE
            due.expires_at <= NOW()
            AND (
                due.state <> 'running' OR due.expires_at <= NOW() - MAKE_INTERVAL(secs => $2::double precision)
            )
        ORDER BY due.expires_at
        LIMIT $1
        FOR UPDATE SKIP LOCKED
    );
