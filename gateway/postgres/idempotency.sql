-- Claims on idempotency keys. One statement each; the primary key is what makes two replicas agree.

-- name: claim_key
-- A new claim, or one whose time is over: unless that request was charged after all, which its usage row tells.
INSERT INTO idempotent_requests (customer_id, key_sha256, body_sha256, job_id, expires_at)
VALUES ($1, $2, $3, $4, now() + make_interval(secs => $5))
ON CONFLICT (customer_id, key_sha256) DO UPDATE
    SET
        body_sha256 = excluded.body_sha256,
        job_id = excluded.job_id,
        state = 'running',
        outcome = NULL,
        expires_at = excluded.expires_at
    WHERE
    idempotent_requests.expires_at <= now()
    AND (
        idempotent_requests.state <> 'running'
        OR NOT EXISTS (
            SELECT 1
            FROM usage AS u
            WHERE u.job_id = idempotent_requests.job_id AND u.charge_nano > 0 -- noqa: RF01
        )
    )
RETURNING job_id;

-- name: read_claim
SELECT
    job_id,
    body_sha256,
    state,
    outcome,
    expires_at <= now() AS expired
FROM idempotent_requests
WHERE customer_id = $1 AND key_sha256 = $2;

-- name: end_claim
UPDATE idempotent_requests
SET
    state = CASE WHEN $4::bytea IS NULL THEN 'charged' ELSE 'kept' END,
    outcome = $4,
    expires_at = now() + make_interval(secs => $5)
WHERE customer_id = $1 AND key_sha256 = $2 AND job_id = $3;

-- name: forget_claim
DELETE FROM idempotent_requests
WHERE customer_id = $1 AND key_sha256 = $2 AND job_id = $3;

-- name: sweep_claims
-- A running claim is left to its next caller, who decides by the usage row.
DELETE FROM idempotent_requests
WHERE expires_at <= now() AND (state <> 'running' OR expires_at <= now() - interval '1 day');
