-- Receipts: what agents delivered, and what customers ask for.

-- name: keep_slots
-- Which head each number of a receipt key stands for: the first one seen.
INSERT INTO receipt_slots (slot, head, signature, day)
SELECT
    shown.slot,
    shown.head,
    shown.signature,
    shown.day
FROM UNNEST($1::bytea[], $2::bytea[], $3::bytea[], $4::date[]) AS shown (slot, head, signature, day)
ORDER BY shown.slot
ON CONFLICT (slot) DO NOTHING;

-- name: find_equivocating
-- The places (from 1) of heads $2 that are not those their slots $1 stand for, with those.
SELECT
    shown.place,
    kept.head,
    kept.signature
FROM UNNEST($1::bytea[], $2::bytea[]) WITH ORDINALITY AS shown (slot, head, place)
INNER JOIN receipt_slots AS kept ON shown.slot = kept.slot AND shown.head <> kept.head
ORDER BY shown.place;

-- name: insert_equivocation
INSERT INTO equivocations (slot, worker_id, first_head, first_signature, second_head, second_signature)
VALUES ($1::bytea, $2::uuid, $3::bytea, $4::bytea, $5::bytea, $6::bytea)
ON CONFLICT (slot) DO NOTHING;

-- name: insert_batch
INSERT INTO receipt_batches (day, head, signature, delegation)
SELECT
    days.day,
    $2::bytea,
    $3::bytea,
    $4::bytea
FROM UNNEST($1::date[]) AS days (day)
WHERE TO_REGCLASS('receipt_batches_' || TO_CHAR(days.day, 'YYYYMMDD')) IS NOT NULL
ON CONFLICT (day, head) DO NOTHING;

-- name: insert_receipts
-- Receipts of days that are kept; the first one of an attempt stays. Returns the entries of those that are new.
INSERT INTO receipts (
    day, job_id, attempt, worker_id, customer_id, keyset_digest, head, signature, body, ticket, entry_digest,
    batch_head, ticket_index, ticket_path, countersignature, countersignature_index, countersignature_path
)
SELECT
    shown.day,
    shown.job_id,
    shown.attempt,
    shown.worker_id,
    shown.customer_id,
    shown.keyset_digest,
    shown.head,
    shown.signature,
    shown.body,
    shown.ticket,
    shown.entry_digest,
    shown.batch_head,
    shown.ticket_index,
    shown.ticket_path,
    shown.countersignature,
    shown.countersignature_index,
    shown.countersignature_path
FROM
    UNNEST(
        $1::date[],
        $2::uuid[],
        $3::smallint[],
        $4::uuid[],
        $5::uuid[],
        $6::bytea[],
        $7::bytea[],
        $8::bytea[],
        $9::bytea[],
        $10::bytea[],
        $11::bytea[],
        $12::bytea[],
        $13::integer[],
        $14::bytea[],
        $15::bytea[],
        $16::integer[],
        $17::bytea[]
    )
        AS shown (
            day, job_id, attempt, worker_id, customer_id, keyset_digest, head, signature, body, ticket, entry_digest,
            batch_head, ticket_index, ticket_path, countersignature, countersignature_index, countersignature_path
        )
WHERE TO_REGCLASS('receipts_' || TO_CHAR(shown.day, 'YYYYMMDD')) IS NOT NULL
ORDER BY shown.day, shown.job_id, shown.attempt
ON CONFLICT (day, job_id, attempt) DO NOTHING
RETURNING entry_digest;

-- name: read_receipt
-- The receipt of job $2 of day $1 for its customer $3: of several attempts the one that was relayed, else the last.
SELECT
    found.head,
    found.signature,
    found.body,
    found.ticket,
    found.entry_digest,
    found.batch_head,
    found.ticket_index,
    found.ticket_path,
    found.countersignature,
    found.countersignature_index,
    found.countersignature_path,
    batch.signature AS batch_signature,
    batch.delegation,
    shown.keyset,
    shown.evidence,
    shown.endorsements,
    staked.config AS stake
FROM receipts AS found
LEFT JOIN receipt_batches AS batch ON found.day = batch.day AND found.batch_head = batch.head
LEFT JOIN keysets AS shown ON found.keyset_digest = shown.digest
-- A head has its stake after four letters and the network (PROTOCOL 4).
LEFT JOIN stakes AS staked ON staked.address = '0:' || ENCODE(SUBSTR(found.head, 9, 32), 'hex')
LEFT JOIN usage AS relayed
    ON
        found.day = relayed.day AND found.job_id = relayed.job_id AND found.attempt = relayed.attempt
        AND relayed.outcome <> 'broken'
WHERE found.day = $1::date AND found.job_id = $2::uuid AND found.customer_id = $3::uuid
ORDER BY relayed.job_id IS NULL, found.attempt DESC
LIMIT 1;

-- name: read_answered
-- Whether job $2 of day $1 is customer $3's and was answered by a worker, and how long ago it ended in seconds.
SELECT
    ended.customer_id = $3::uuid AS is_theirs,
    ended.worker_id IS NOT NULL AS by_worker,
    EXTRACT(EPOCH FROM NOW() - ended.ended_at)::double precision AS age_s
FROM usage AS ended
WHERE ended.day = $1::date AND ended.job_id = $2::uuid
ORDER BY ended.outcome = 'broken', ended.attempt DESC
LIMIT 1;

-- name: drop_old_receipts
-- Those of days more than $1 days ago.
SELECT DROP_RECEIPTS_BEFORE((NOW() AT TIME ZONE 'utc')::date - $1::integer);

-- name: delete_old_slots
-- Up to $2 of them.
DELETE FROM receipt_slots
WHERE slot IN (
    SELECT old.slot FROM receipt_slots AS old
    WHERE old.day < (NOW() AT TIME ZONE 'utc')::date - $1::integer
    ORDER BY old.day
    LIMIT $2
);
