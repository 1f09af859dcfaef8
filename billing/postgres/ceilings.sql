-- What limits charges to customers with escrows. Read in one statement, so that an attribution is seen whole or not.

-- name: read_ceilings
-- Of those of customers $1 that ever registered an escrow: what was charged and not attributed yet, what is promised
-- (leases, holds, what expired leases left), what their accounts hold in all, what closed escrows paid back and the
-- books do not have yet, and one row for each escrow with a deposit that is not closed, the oldest first. The allowance
-- is as of the block that was seen last, which is never more than it is now. `usage_root` is the log's root now.
WITH books AS (
    SELECT
        accounts.owner,
        SUM(CASE accounts.kind WHEN 'customer_leased' THEN accounts.debits_posted ELSE 0 END)::bigint AS charged,
        SUM(
            CASE accounts.kind
                WHEN 'customer_available' THEN accounts.debits_pending
                ELSE accounts.credits_posted - accounts.debits_posted
            END
        )::bigint AS promised,
        SUM(accounts.credits_posted - accounts.debits_posted)::bigint AS held
    FROM accounts
    WHERE
        accounts.owner = ANY($1::uuid[]) AND accounts.asset = 'TON'
        AND accounts.kind IN ('customer_available', 'customer_leased', 'lease_recovery')
    GROUP BY accounts.owner
),

closed AS (
    SELECT
        escrows.customer_id,
        SUM(escrows.deposited_nano - escrows.settled_nano - escrows.refunded_nano)::bigint AS refund_due
    FROM escrows
    WHERE escrows.customer_id = ANY($1::uuid[]) AND escrows.state = 'closed'
    GROUP BY escrows.customer_id
)

SELECT
    customer.customer_id,
    customer.unsigned_max_nano,
    books.promised AS promised_nano,
    books.held AS held_nano,
    log.root AS usage_root,
    escrow.address,
    escrow.epoch,
    escrow.deposited_nano,
    escrow.settled_nano,
    escrow.charged_nano,
    escrow.allow_rate_nano,
    escrow.state = 'closing' OR escrow.close_asked_at IS NOT NULL AS closing,
    books.charged - customer.attributed_nano AS unattributed_nano,
    COALESCE(closed.refund_due, 0) AS refund_due_nano,
    CASE
        WHEN escrow.voucher_key IS NOT NULL
            THEN COALESCE((
                SELECT MAX(vouchers.cumulative_nano)
                FROM vouchers
                WHERE vouchers.escrow_id = escrow.id AND vouchers.signer = 'session'
            ), 0)
    END AS signed_nano,
    CASE
        WHEN escrow.operator_key IS NOT NULL
            THEN LEAST(
                escrow.allow_max_nano,
                escrow.allow_at_nano
                + escrow.allow_rate_nano::numeric
                * GREATEST(0, FLOOR(EXTRACT(EPOCH FROM escrow.seen_at)) - escrow.allow_time)
            )::bigint
    END AS allowance_nano
FROM escrow_customers AS customer
CROSS JOIN log_tree AS log
INNER JOIN books ON customer.customer_id = books.owner
LEFT JOIN closed ON customer.customer_id = closed.customer_id
LEFT JOIN escrows AS escrow
    ON customer.customer_id = escrow.customer_id AND escrow.state IN ('open', 'closing')
WHERE customer.customer_id = ANY($1::uuid[])
ORDER BY escrow.created_at ASC, escrow.id ASC;

-- name: read_unsigned_max
-- How far customer $1 may go beyond what it signed; nothing where it never registered an escrow. Locked.
SELECT unsigned_max_nano
FROM escrow_customers
WHERE customer_id = $1
FOR UPDATE;

-- name: set_unsigned_max
UPDATE escrow_customers SET unsigned_max_nano = $2
WHERE customer_id = $1;
