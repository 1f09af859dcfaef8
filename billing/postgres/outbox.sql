-- Intents and signed bodies of the operator's wallet ($1 is the wallet, raw).

-- name: add_intent
INSERT INTO chain_intents (wallet, key, message) VALUES ($1, $2, $3)
ON CONFLICT (wallet, key) DO NOTHING;

-- name: open_body
SELECT
    chain_outbox.id,
    chain_outbox.seqno,
    chain_outbox.valid_until,
    chain_outbox.boc
FROM chain_outbox
WHERE chain_outbox.wallet = $1 AND chain_outbox.state = 'open';

-- name: intents_of_body
SELECT
    chain_intents.key,
    chain_intents.message
FROM chain_intents
WHERE chain_intents.body_id = $1
ORDER BY chain_intents.place;

-- name: queued_intents
SELECT
    chain_intents.key,
    chain_intents.message
FROM chain_intents
WHERE chain_intents.wallet = $1 AND chain_intents.body_id IS NULL AND chain_intents.attempts < $2
ORDER BY chain_intents.id
LIMIT $3;

-- name: last_seqno
SELECT MAX(chain_outbox.seqno) AS seqno
FROM chain_outbox
WHERE chain_outbox.wallet = $1 AND chain_outbox.state = 'executed';

-- name: add_body
INSERT INTO chain_outbox (wallet, seqno, valid_until, boc) VALUES ($1, $2, $3, $4)
RETURNING chain_outbox.id;

-- name: take_intents
-- $3 is the keys in the order of the body's messages.
UPDATE chain_intents
SET body_id = $2, place = taken.place, attempts = chain_intents.attempts + 1
FROM UNNEST($3::text[]) WITH ORDINALITY AS taken (key, place)
WHERE chain_intents.wallet = $1 AND chain_intents.key = taken.key AND chain_intents.body_id IS NULL
RETURNING chain_intents.id;

-- name: close_body
-- $2 is the transaction's logical time, or nothing where there will be none.
UPDATE chain_outbox
SET
    state = CASE WHEN $2::bigint IS NULL THEN 'expired' ELSE 'executed' END,
    lt = $2::bigint,
    closed_at = NOW()
WHERE chain_outbox.id = $1 AND chain_outbox.state = 'open'
RETURNING chain_outbox.id;

-- name: deliver_intents
UPDATE chain_intents
SET delivered_lt = $2, delivered_at = NOW()
WHERE chain_intents.body_id = $1 AND chain_intents.key = ANY($3::text[]);

-- name: release_intents
UPDATE chain_intents
SET body_id = NULL, place = NULL
WHERE chain_intents.body_id = $1 AND chain_intents.delivered_lt IS NULL;

-- name: intent_state
SELECT
    chain_intents.body_id,
    chain_intents.delivered_lt,
    chain_intents.attempts
FROM chain_intents
WHERE chain_intents.wallet = $1 AND chain_intents.key = $2;
