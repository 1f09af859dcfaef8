-- The biller's turn, what it has asked for, and its alarms.

-- name: bound_silence
SELECT SET_CONFIG($1, $2, FALSE);

-- name: take_turn
SELECT PG_TRY_ADVISORY_LOCK($1::bigint);

-- name: keep_turn
-- Nothing but an answer, on the session that has the turn: it would be gone with the session.
SELECT 1;

-- name: asked
-- How often each of purposes $2 was asked for by wallet $1, how often that is still open, and what of it the wallet has
-- sent. A key is its purpose, `#`, and a number; after $3 attempts nobody tries it again.
SELECT
    SPLIT_PART(key, '#', 1) AS purpose,
    COUNT(*) AS times,
    COUNT(*) FILTER (WHERE delivered_lt IS NULL AND (attempts < $3 OR body_id IS NOT NULL)) AS still_open,
    COUNT(delivered_lt) AS delivered,
    COALESCE(MIN(delivered_lt), 0) AS first_lt,
    EXTRACT(EPOCH FROM NOW() - MAX(delivered_at))::double precision AS delivered_ago_s
FROM chain_intents
WHERE wallet = $1 AND SPLIT_PART(key, '#', 1) = ANY($2::text[])
GROUP BY SPLIT_PART(key, '#', 1);

-- name: raise_alarm
-- Whether it is new: an open one keeps its time and gets the new detail.
INSERT INTO biller_alarms (kind, subject, detail)
VALUES ($1, $2, $3)
ON CONFLICT (kind, subject) WHERE cleared_at IS NULL DO UPDATE SET detail = excluded.detail
RETURNING (xmax = 0) AS is_new;

-- name: clear_alarms
-- Alarms of kind $1 whose subjects are not among $2 any more.
UPDATE biller_alarms SET cleared_at = NOW()
WHERE kind = $1 AND cleared_at IS NULL AND subject <> ALL($2::text[])
RETURNING subject;

-- name: open_alarms
SELECT
    kind,
    subject,
    detail,
    raised_at
FROM biller_alarms
WHERE cleared_at IS NULL
ORDER BY raised_at, id
LIMIT $1;
