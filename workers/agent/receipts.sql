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
