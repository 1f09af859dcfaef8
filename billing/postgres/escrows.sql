-- Escrows and vouchers. Locks are taken as everywhere, escrows by id before accounts by id.

-- name: insert_escrow
INSERT INTO escrows (
    id, customer_id, address, code_hash, config, client, epoch, voucher_key, operator_key, challenge_s, allow_max_nano,
    allow_rate_nano, allow_at_nano
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $11)
ON CONFLICT (address) DO NOTHING;

-- name: lock_customer
-- Customer $1 in the order of registrations and attributions; nothing when there is no such customer.
SELECT id
FROM customers
WHERE id = $1
FOR UPDATE;

-- name: start_attribution
-- What customer $1 was charged before its first escrow is none of any escrow's.
INSERT INTO escrow_customers (customer_id, attributed_nano)
SELECT
    $1::uuid AS customer_id,
    COALESCE((
        SELECT spent.debits_posted
        FROM accounts AS spent
        WHERE spent.kind = 'customer_leased' AND spent.owner = $1::uuid AND spent.asset = 'TON'
    ), 0)::bigint AS attributed_nano
ON CONFLICT (customer_id) DO NOTHING;

-- name: count_unfinished
SELECT COUNT(*)
FROM escrows
WHERE customer_id = $1 AND state <> 'closed';

-- name: find_escrows
-- Up to $3 (NULL: all) escrows of customer $1, or of everybody (NULL), with address $2 or any (NULL). The oldest first,
-- but closed ones, of which a customer may have any number, behind the others.
SELECT
    id,
    customer_id,
    address,
    code_hash,
    config,
    client,
    epoch,
    voucher_key,
    operator_key,
    challenge_s,
    allow_max_nano,
    allow_rate_nano,
    state,
    deposited_nano,
    settled_nano,
    owed_nano,
    refunded_nano,
    charged_nano,
    allow_at_nano,
    allow_time,
    close_requested_at,
    usage_root,
    seen_seqno,
    seen_at,
    close_asked_at,
    agreed_nano,
    agreed_signature
FROM escrows
WHERE ($1::uuid IS NULL OR customer_id = $1) AND ($2::text IS NULL OR address = $2)
ORDER BY state = 'closed', created_at, id
LIMIT $3;

-- name: watched_escrows
-- Up to $2 escrows behind $1 that can still change or have something unfinished, by id.
SELECT
    id,
    customer_id,
    address,
    code_hash,
    config,
    client,
    epoch,
    voucher_key,
    operator_key,
    challenge_s,
    allow_max_nano,
    allow_rate_nano,
    state,
    deposited_nano,
    settled_nano,
    owed_nano,
    refunded_nano,
    charged_nano,
    allow_at_nano,
    allow_time,
    close_requested_at,
    usage_root,
    seen_seqno,
    seen_at,
    close_asked_at,
    agreed_nano,
    agreed_signature
FROM escrows
WHERE (state <> 'closed' OR owed_nano > 0 OR settled_nano + refunded_nano < deposited_nano) AND id > $1
ORDER BY id
LIMIT $2;

-- name: lock_escrows
-- The escrows of customer $1 that are not closed, and the one at address $2; locked in id order.
SELECT
    id,
    customer_id,
    address,
    code_hash,
    config,
    client,
    epoch,
    voucher_key,
    operator_key,
    challenge_s,
    allow_max_nano,
    allow_rate_nano,
    state,
    deposited_nano,
    settled_nano,
    owed_nano,
    refunded_nano,
    charged_nano,
    allow_at_nano,
    allow_time,
    close_requested_at,
    usage_root,
    seen_seqno,
    seen_at,
    close_asked_at,
    agreed_nano,
    agreed_signature
FROM escrows
WHERE customer_id = $1 AND (state <> 'closed' OR address = $2)
ORDER BY id
FOR UPDATE;

-- name: update_seen
UPDATE escrows
SET
    state = $2,
    deposited_nano = $3,
    settled_nano = $4,
    owed_nano = $5,
    allow_at_nano = $6,
    allow_time = $7,
    close_requested_at = $8,
    usage_root = $9,
    seen_seqno = $10,
    seen_at = $11
WHERE id = $1;

-- name: add_refunded
UPDATE escrows SET refunded_nano = refunded_nano + $2
WHERE id = $1;

-- name: add_charged
UPDATE escrows AS escrow SET charged_nano = escrow.charged_nano + given.nano
FROM UNNEST($1::uuid[], $2::bigint[]) AS given (id, nano)
WHERE escrow.id = given.id;

-- name: unattributed
-- What customer $1 was charged and no attribution has covered, and how far attribution had come; locked.
SELECT
    cursor.attributed_nano,
    (COALESCE(spent.debits_posted, 0) - cursor.attributed_nano)::bigint AS unattributed
FROM escrow_customers AS cursor
LEFT JOIN accounts AS spent
    ON cursor.customer_id = spent.owner AND spent.kind = 'customer_leased' AND spent.asset = 'TON'
WHERE cursor.customer_id = $1
FOR UPDATE OF cursor;

-- name: unattributed_customers
-- Customers with charges that were not given to their escrows yet.
SELECT cursor.customer_id
FROM escrow_customers AS cursor
INNER JOIN accounts AS spent
    ON cursor.customer_id = spent.owner AND spent.kind = 'customer_leased' AND spent.asset = 'TON'
WHERE spent.debits_posted > cursor.attributed_nano
ORDER BY cursor.customer_id;

-- name: add_attributed
UPDATE escrow_customers SET attributed_nano = attributed_nano + $2
WHERE customer_id = $1;

-- name: promised
-- What customer $1's requests may still spend: leases and holds, and what expired leases left behind.
SELECT
    COALESCE(
        SUM(CASE kind WHEN 'customer_available' THEN debits_pending ELSE credits_posted - debits_posted END), 0
    )::bigint AS nano
FROM accounts
WHERE owner = $1 AND asset = 'TON' AND kind IN ('customer_available', 'lease_recovery');

-- name: insert_movement
INSERT INTO chain_movements (subject, kind, cumulative_nano, amount_nano, day, transfer_id, seqno)
VALUES ($1, $2, $3, $4, $5, $6, $7);

-- name: today
-- The database's UTC day, which new transfers belong to.
SELECT (NOW() AT TIME ZONE 'utc')::date;

-- name: insert_voucher
INSERT INTO vouchers (escrow_id, signer, cumulative_nano, usage_root, signature)
VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (escrow_id, signer, cumulative_nano) DO NOTHING;

-- name: last_voucher
-- The highest voucher of signer $2 for escrow $1, of those up to $3 nano.
SELECT
    signer,
    cumulative_nano,
    usage_root,
    signature
FROM vouchers
WHERE escrow_id = $1 AND signer = $2 AND ($3::bigint IS NULL OR cumulative_nano <= $3)
ORDER BY cumulative_nano DESC
LIMIT 1;

-- name: lock_escrow
SELECT id
FROM escrows
WHERE id = $1
FOR UPDATE;

-- name: ask_close
-- The client of escrow $1 asks for terms; asking again changes nothing.
UPDATE escrows SET close_asked_at = COALESCE(close_asked_at, NOW())
WHERE id = $1;

-- name: withdraw_close
UPDATE escrows SET close_asked_at = NULL
WHERE id = $1;

-- name: agree_close
-- What escrow $1 owes in all, $2, signed.
UPDATE escrows SET agreed_nano = $2, agreed_signature = $3
WHERE id = $1;
