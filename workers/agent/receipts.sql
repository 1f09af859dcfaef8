-- The agent's own receipts in SQLite (workers/agent/receipt_store.py). Times are Unix milliseconds.

-- name: create_keysets
CREATE TABLE IF NOT EXISTS keysets (
    digest blob PRIMARY KEY,
    raw blob NOT NULL
);

-- name: create_receipts
-- `due_at` is when it is to be sent (again); NULL once its verdict is final.
CREATE TABLE IF NOT EXISTS receipts (
    id integer PRIMARY KEY,
    keyset_digest blob NOT NULL,
    ticket text NOT NULL,
    stub text NOT NULL,
    head blob NOT NULL,
    signature blob NOT NULL,
    body blob NOT NULL,
    kept_at integer NOT NULL,
    due_at integer,
    tries integer NOT NULL DEFAULT 0,
    verdict text,
    acknowledged_at integer
);

-- name: create_due_index
CREATE INDEX IF NOT EXISTS receipts_due ON receipts (due_at) WHERE due_at IS NOT NULL;

-- name: create_acknowledged_index
CREATE INDEX IF NOT EXISTS receipts_acknowledged ON receipts (acknowledged_at) WHERE acknowledged_at IS NOT NULL;

-- name: create_ticket_index
-- A head holds its ticket's digest at this place (PROTOCOL, 4).
CREATE INDEX IF NOT EXISTS receipts_ticket ON receipts (SUBSTR(head, 49, 32));

-- name: create_batches
-- What gateways signed, once for all leaves under it.
CREATE TABLE IF NOT EXISTS batches (
    head blob PRIMARY KEY,
    signature blob NOT NULL,
    delegation blob NOT NULL
);

-- name: create_signatures
-- Verified leaves. `path` is the hashes beside the leaf's way to the root, one after the other.
CREATE TABLE IF NOT EXISTS signatures (
    ticket_sha256 blob NOT NULL,
    kind text NOT NULL,
    leaf blob NOT NULL,
    leaf_index integer NOT NULL,
    path blob NOT NULL,
    batch_head blob NOT NULL,
    kept_at integer NOT NULL,
    PRIMARY KEY (ticket_sha256, kind)
);

-- name: create_charged
-- One row: what gateways have signed that was charged for this worker's answers, in 10^-6 nano, in all; and what its
-- wallet had been paid (nano) when that was first looked at. Text, because the sum outgrows SQLite's integers.
CREATE TABLE IF NOT EXISTS charged (
    only_row integer PRIMARY KEY CHECK (only_row = 1),
    numerator text NOT NULL,
    paid_before text
);

-- name: begin_charged
INSERT INTO charged (only_row, numerator) VALUES (1, '0')
ON CONFLICT (only_row) DO NOTHING;

-- name: read_charged
SELECT
    numerator,
    paid_before
FROM charged;

-- name: set_charged
UPDATE charged SET numerator = $1;

-- name: set_paid_before
UPDATE charged SET paid_before = $1;

-- name: has_signature
SELECT 1 FROM signatures
WHERE ticket_sha256 = $1 AND kind = $2;

-- name: put_keyset
INSERT INTO keysets (digest, raw) VALUES ($1, $2)
ON CONFLICT (digest) DO NOTHING;

-- name: insert_receipt
INSERT INTO receipts (keyset_digest, ticket, stub, head, signature, body, kept_at, due_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8);

-- name: list_due
-- The longest overdue first.
SELECT
    receipts.id,
    receipts.tries,
    receipts.ticket,
    receipts.stub,
    receipts.head,
    receipts.signature,
    receipts.body,
    keysets.raw AS keyset
FROM receipts
INNER JOIN keysets ON receipts.keyset_digest = keysets.digest
WHERE receipts.due_at <= $1
ORDER BY receipts.due_at, receipts.id
LIMIT $2;

-- name: acknowledge
UPDATE receipts SET due_at = NULL, acknowledged_at = $1, verdict = $2
WHERE id = $3;

-- name: postpone
UPDATE receipts SET due_at = $1, tries = tries + 1
WHERE id = $2;

-- name: count_all
SELECT COUNT(*) FROM receipts;

-- name: count_unacknowledged
SELECT COUNT(*) FROM receipts
WHERE due_at IS NOT NULL;

-- name: forget_old
-- Acknowledged before $1.
DELETE FROM receipts
WHERE acknowledged_at < $1;

-- name: forget_excess
-- The $1 that were acknowledged first.
DELETE FROM receipts
WHERE id IN (
    SELECT id FROM receipts
    WHERE acknowledged_at IS NOT NULL
    ORDER BY acknowledged_at
    LIMIT $1
);

-- name: forget_keysets
-- Those that no receipt refers to any more.
DELETE FROM keysets
WHERE digest NOT IN (SELECT keyset_digest FROM receipts);

-- name: put_batch
INSERT INTO batches (head, signature, delegation) VALUES ($1, $2, $3)
ON CONFLICT (head) DO NOTHING;

-- name: put_signature
-- The first one is kept: another proves nothing more.
INSERT INTO signatures (ticket_sha256, kind, leaf, leaf_index, path, batch_head, kept_at)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (ticket_sha256, kind) DO NOTHING;

-- name: list_signatures
SELECT
    signatures.ticket_sha256,
    signatures.kind,
    signatures.leaf,
    signatures.leaf_index,
    signatures.path,
    batches.head,
    batches.signature,
    batches.delegation
FROM signatures
INNER JOIN batches ON signatures.batch_head = batches.head
WHERE signatures.ticket_sha256 = $1;

-- name: list_unsigned
-- Receipts kept after $1 and not disowned (verdict $2) whose tickets have no signature.
SELECT
    receipts.ticket,
    receipts.stub,
    receipts.keyset_digest,
    receipts.kept_at
FROM receipts
LEFT JOIN signatures ON signatures.ticket_sha256 = SUBSTR(receipts.head, 49, 32) AND signatures.kind = 'ticket'
WHERE receipts.kept_at > $1 AND COALESCE(receipts.verdict, '') <> $2 AND signatures.ticket_sha256 IS NULL
ORDER BY receipts.id
LIMIT $3;

-- name: forget_signatures
-- Older than $1, of receipts that are not kept any more.
DELETE FROM signatures
WHERE
    kept_at < $1
    AND NOT EXISTS (
        SELECT 1 FROM receipts
        WHERE SUBSTR(receipts.head, 49, 32) = signatures.ticket_sha256
    );

-- name: forget_batches
DELETE FROM batches
WHERE head NOT IN (SELECT batch_head FROM signatures);
