-- Receipts against the books.

-- name: read_booked
-- Usage rows of jobs $2 of days $1: these come from outside, so they are a list and not a span.
SELECT
    job_id,
    attempt,
    worker_id,
    prompt_tokens,
    cached_tokens,
    completion_tokens,
    outcome,
    numerator,
    charge_nano,
    receipt_head
FROM usage
WHERE day = ANY($1::date[]) AND job_id = ANY($2::uuid[]);

-- name: read_leases
SELECT
    lease_id,
    customer_id,
    state
FROM leases
WHERE lease_id = ANY($1::uuid[]);

-- name: insert_recoveries
INSERT INTO recoveries (
    day, job_id, attempt, hold_id, worker_id, customer_id, drawn_nano, lost_nano, drawn_id, lost_id, ticket,
    receipt_body
)
SELECT
    entry.day,
    entry.job_id,
    entry.attempt,
    entry.hold_id,
    entry.worker_id,
    entry.customer_id,
    entry.drawn_nano,
    entry.lost_nano,
    entry.drawn_id,
    entry.lost_id,
    entry.ticket,
    entry.receipt_body
FROM
    UNNEST(
        $1::date[], $2::uuid[], $3::smallint[], $4::uuid[], $5::uuid[], $6::uuid[], $7::bigint[], $8::bigint[],
        $9::uuid[], $10::uuid[], $11::bytea[], $12::bytea[]
    ) AS entry (
        day, job_id, attempt, hold_id, worker_id, customer_id, drawn_nano, lost_nano, drawn_id, lost_id, ticket,
        receipt_body
    )
ORDER BY entry.job_id;

-- name: insert_discrepancies
-- The first of each kind for an attempt is kept: sending it again, or another one like it, adds nothing.
INSERT INTO discrepancies (
    day, job_id, attempt, kind, worker_id, customer_id, against_worker, booked_attempt, booked_prompt_tokens,
    booked_cached_tokens, booked_completion_tokens, booked_nano, claimed_prompt_tokens, claimed_cached_tokens,
    claimed_completion_tokens, claimed_nano, receipt_head, receipt_signature
)
SELECT
    entry.day,
    entry.job_id,
    entry.attempt,
    entry.kind,
    entry.worker_id,
    entry.customer_id,
    entry.against_worker,
    entry.booked_attempt,
    entry.booked_prompt_tokens,
    entry.booked_cached_tokens,
    entry.booked_completion_tokens,
    entry.booked_nano,
    entry.claimed_prompt_tokens,
    entry.claimed_cached_tokens,
    entry.claimed_completion_tokens,
    entry.claimed_nano,
    entry.receipt_head,
    entry.receipt_signature
FROM
    UNNEST(
        $1::date[], $2::uuid[], $3::smallint[], $4::text[], $5::uuid[], $6::uuid[], $7::boolean[], $8::smallint[],
        $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[], $14::bigint[], $15::bigint[],
        $16::numeric[], $17::bytea[], $18::bytea[]
    ) AS entry (
        day, job_id, attempt, kind, worker_id, customer_id, against_worker, booked_attempt, booked_prompt_tokens,
        booked_cached_tokens, booked_completion_tokens, booked_nano, claimed_prompt_tokens, claimed_cached_tokens,
        claimed_completion_tokens, claimed_nano, receipt_head, receipt_signature
    )
ORDER BY entry.job_id, entry.kind
ON CONFLICT (day, job_id, attempt, kind) DO NOTHING;
