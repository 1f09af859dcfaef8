-- What limits charges to customers with escrows. Read in one statement, so that an attribution is seen whole or not.

-- name: read_ceilings
-- Of those of customers $1 that ever registered an escrow: what was charged and not attributed yet, what is promised
-- (leases, holds, what expired leases left), what their accounts hold in all, what closed escrows paid back and the
-- books do not have yet, and one row for each escrow with a deposit that is not closed, the oldest first. The allowance
-- is as of the block that was seen last, which is never more than it is now. `usage_root` is the log's root now.
SELECT
    customer.customer_id,
    customer.unsigned_max_nano,
    (books.charged - customer.attributed_nano)::bigint AS unattributed_nano,
    books.promised::bigint AS promised_nano,
    books.held::bigint AS held_nano,
    books.refund_due::bigint AS refund_due_nano,
    log.root AS usage_root,
    escrow.address,
    escrow.epoch,
    escrow.state,
    escrow.deposited_nano,
    escrow.settled_nano,
    escrow.charged_nano,
    escrow.allow_rate_nano,
    CASE WHEN escrow.voucher_key IS NOT NULL THEN COALESCE(signed.cumulative_nano, 0) END AS signed_nano,
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
CROSS JOIN LATERAL (
    SELECT
        COALESCE(SUM(debits_posted) FILTER (WHERE kind = 'customer_leased'), 0) AS charged,
        COALESCE(SUM(
            CASE kind WHEN 'customer_available' THEN debits_pending ELSE credits_posted - debits_posted END
        ), 0) AS promised,
        COALESCE(SUM(credits_posted - debits_posted), 0) AS held,
        (
            SELECT COALESCE(SUM(closed.deposited_nano - closed.settled_nano - closed.refunded_nano), 0)
            FROM escrows AS closed
            WHERE closed.customer_id = customer.customer_id AND closed.state = 'closed'
        ) AS refund_due
    FROM accounts
    WHERE
        owner = customer.customer_id AND asset = 'TON'
        AND kind IN ('customer_available', 'customer_leased', 'lease_recovery')
) AS books
LEFT JOIN escrows AS escrow
    ON customer.customer_id = escrow.customer_id AND escrow.state IN ('open', 'closing')
LEFT JOIN LATERAL (
    SELECT vouchers.cumulative_nano
    FROM vouchers
    WHERE vouchers.escrow_id = escrow.id AND vouchers.signer = 'session'
    ORDER BY vouchers.cumulative_nano DESC
    LIMIT 1
) AS signed ON TRUE
WHERE customer.customer_id = ANY($1::uuid[])
ORDER BY escrow.created_at ASC, escrow.id ASC;
