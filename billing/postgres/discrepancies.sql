-- What receipts brought to light, for people. Newest day first; pages end where the next one begins.

-- name: list_discrepancies
-- Of kind $1, of worker $2, of customer $3 (any when NULL); only those against a worker when $4; older than the row
-- ($5 day, $6 job, $7 attempt, $8 kind) if given; at most $9.
SELECT
    day,
    job_id,
    attempt,
    kind,
    worker_id,
    customer_id,
    against_worker,
    booked_attempt,
    booked_prompt_tokens,
    booked_cached_tokens,
    booked_completion_tokens,
    booked_nano,
    claimed_prompt_tokens,
    claimed_cached_tokens,
    claimed_completion_tokens,
    claimed_nano,
    created_at
FROM discrepancies
WHERE
    ($1::text IS NULL OR kind = $1)
    AND ($2::uuid IS NULL OR worker_id = $2)
    AND ($3::uuid IS NULL OR customer_id = $3)
    AND (against_worker OR NOT $4::boolean)
    AND ($5::date IS NULL OR (day, job_id, attempt, kind) < ($5, $6::uuid, $7::smallint, $8::text))
ORDER BY day DESC, job_id DESC, attempt DESC, kind DESC
LIMIT $9;

-- name: list_recoveries
-- Of worker $1, of customer $2 (any when NULL); older than the row ($3 day, $4 job) if given; at most $5.
SELECT
    day,
    job_id,
    attempt,
    worker_id,
    customer_id,
    drawn_nano,
    lost_nano,
    created_at
FROM recoveries
WHERE
    ($1::uuid IS NULL OR worker_id = $1)
    AND ($2::uuid IS NULL OR customer_id = $2)
    AND ($3::date IS NULL OR (day, job_id) < ($3, $4::uuid))
ORDER BY day DESC, job_id DESC
LIMIT $5;
