-- Jobs that nobody may charge any more.

-- name: read_charge
-- How job $2 of day $1 was charged.
SELECT outcome
FROM usage
WHERE day = $1 AND customer_id = $3 AND job_id = $2 AND outcome IN ('completed', 'client_gone');

-- name: write_off
-- The row that any later charge of the job meets. No lease pays for it, so it names the job itself.
INSERT INTO usage (
    day, job_id, attempt, customer_id, key_id, model, asset, price_version, share_bps, prompt_tokens, cached_tokens,
    completion_tokens, numerator, charge_nano, share_nano, fee_nano, outcome, finish_reason, started_at, ended_at,
    body_digest, lease_id
)
VALUES ($1, $2, $3, $4, $5, $6, $7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 'client_gone', 'written_off', NOW(), NOW(), $8, $2);
