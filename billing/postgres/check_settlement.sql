-- Invariants of settlement: what the books say of contracts, against their transfers. Whether the chain says the same
-- is `cocoon reconcile`'s question.

-- name: escrows_equal_accounts
-- What an escrow holds by its cumulative amounts, against its account.
WITH asset AS (
    SELECT
        owner,
        debits_posted,
        credits_posted
    FROM accounts
    WHERE kind = 'escrow_asset'
)

SELECT
    'escrow ' || COALESCE(escrow.address, asset.owner::text) AS subject,
    COALESCE(escrow.deposited_nano - escrow.settled_nano - escrow.refunded_nano, 0) AS expected,
    COALESCE(asset.debits_posted - asset.credits_posted, 0) AS actual
FROM escrows AS escrow
FULL JOIN asset ON escrow.id = asset.owner
WHERE
    COALESCE(escrow.deposited_nano - escrow.settled_nano - escrow.refunded_nano, 0)
    <> COALESCE(asset.debits_posted - asset.credits_posted, 0);

-- name: movements_equal_transfers
-- Each thing that the chain did is one transfer of its amount and code, and there are no others.
WITH moved AS (
    SELECT
        entry.id,
        entry.day,
        entry.amount,
        CASE entry.code WHEN 'withdrawal' THEN 'fee' ELSE entry.code END AS kind
    FROM transfers AS entry
    INNER JOIN accounts AS debited ON entry.debit_account_id = debited.id
    WHERE
        entry.phase = 'single'
        AND (
            entry.code IN ('settle', 'refund', 'forgone', 'paid', 'returned', 'withdrawal')
            OR (entry.code = 'deposit' AND debited.kind = 'escrow_asset')
        )
)

SELECT
    'movement ' || COALESCE(seen.transfer_id, moved.id) AS subject,
    COALESCE(seen.amount_nano, -1) AS expected,
    COALESCE(moved.amount, -1) AS actual
FROM chain_movements AS seen
FULL JOIN moved ON seen.transfer_id = moved.id AND seen.day = moved.day AND seen.kind = moved.kind
WHERE seen.amount_nano IS DISTINCT FROM moved.amount;

-- name: movements_equal_contracts
-- What movements add up to, against the cumulative amounts of their contracts.
WITH sums AS (
    SELECT
        subject,
        CASE kind WHEN 'forgone' THEN 'refund' ELSE kind END AS kind,
        SUM(amount_nano) AS total
    FROM chain_movements
    GROUP BY subject, CASE kind WHEN 'forgone' THEN 'refund' ELSE kind END
),

contracts AS (
    SELECT
        address AS subject,
        UNNEST(ARRAY['deposit', 'settle', 'refund']) AS kind,
        UNNEST(ARRAY[deposited_nano, settled_nano, refunded_nano]) AS total
    FROM escrows
    UNION ALL
    SELECT
        account AS subject,
        UNNEST(ARRAY['paid', 'returned']) AS kind,
        UNNEST(ARRAY[paid_nano, returned_nano]) AS total
    FROM payees
    UNION ALL
    SELECT
        address AS subject,
        'fee' AS kind,
        fee_withdrawn_nano AS total
    FROM payout_contract
)

SELECT
    COALESCE(contracts.kind, sums.kind) || ' of ' || COALESCE(contracts.subject, sums.subject) AS subject,
    COALESCE(contracts.total, 0) AS expected,
    COALESCE(sums.total, 0) AS actual
FROM contracts
FULL JOIN sums ON contracts.subject = sums.subject AND contracts.kind = sums.kind
WHERE COALESCE(contracts.total, 0) <> COALESCE(sums.total, 0);

-- name: payees_equal_accounts
-- What a payee may claim and has not had, against its account.
WITH latest AS (
    SELECT
        payee_id,
        MAX(cumulative_nano) AS cumulative_nano
    FROM epoch_leaves
    GROUP BY payee_id
),

flight AS (
    SELECT
        owner,
        debits_posted,
        credits_posted
    FROM accounts
    WHERE kind = 'payout_in_flight'
)

SELECT
    'payee ' || COALESCE(payee.wallet, flight.owner::text) AS subject,
    COALESCE(latest.cumulative_nano, 0) - COALESCE(payee.paid_nano - payee.returned_nano, 0) AS expected,
    COALESCE(flight.credits_posted - flight.debits_posted, 0) AS actual
FROM payees AS payee
LEFT JOIN latest ON payee.id = latest.payee_id
FULL JOIN flight ON payee.id = flight.owner
WHERE
    COALESCE(latest.cumulative_nano, 0) - COALESCE(payee.paid_nano - payee.returned_nano, 0)
    <> COALESCE(flight.credits_posted - flight.debits_posted, 0);

-- name: payout_equals_account
-- What escrows have settled, less what was paid and withdrawn, against the payout contract's account.
WITH flows AS (
    SELECT
        COALESCE(SUM(CASE kind WHEN 'settle' THEN amount_nano WHEN 'returned' THEN amount_nano END), 0)
        - COALESCE(SUM(CASE kind WHEN 'paid' THEN amount_nano WHEN 'fee' THEN amount_nano END), 0) AS total
    FROM chain_movements
)

SELECT
    'payout contract' AS subject,
    flows.total AS expected,
    asset.debits_posted - asset.credits_posted AS actual
FROM flows
CROSS JOIN accounts AS asset
WHERE asset.kind = 'payout_asset' AND flows.total <> asset.debits_posted - asset.credits_posted;

-- name: epochs_equal_leaves
-- An epoch's total is the sum of its leaves; no leaf is smaller than in the epoch before.
SELECT
    'epoch ' || epoch.epoch AS subject,
    epoch.total_nano AS expected,
    COALESCE(SUM(leaf.cumulative_nano), 0) AS actual
FROM epochs AS epoch
LEFT JOIN epoch_leaves AS leaf ON epoch.epoch = leaf.epoch
GROUP BY epoch.epoch, epoch.total_nano
HAVING epoch.total_nano <> COALESCE(SUM(leaf.cumulative_nano), 0)
UNION ALL
SELECT
    'epoch ' || before.epoch + 1 || ' payee ' || before.payee_id AS subject,
    before.cumulative_nano AS expected,
    COALESCE(after.cumulative_nano, 0) AS actual
FROM epoch_leaves AS before
INNER JOIN epochs AS following ON before.epoch + 1 = following.epoch
LEFT JOIN epoch_leaves AS after ON following.epoch = after.epoch AND before.payee_id = after.payee_id
WHERE COALESCE(after.cumulative_nano, 0) < before.cumulative_nano;

-- name: escrows_charge_what_was_charged
-- What a customer's escrows were given of its charges is no more than the charges that were given out, and those no
-- more than there were.
SELECT
    'customer ' || cursor.customer_id AS subject,
    LEAST(cursor.attributed_nano, COALESCE(spent.debits_posted, 0)) AS expected,
    GREATEST(COALESCE(SUM(escrow.charged_nano), 0), cursor.attributed_nano) AS actual
FROM escrow_customers AS cursor
LEFT JOIN escrows AS escrow ON cursor.customer_id = escrow.customer_id
LEFT JOIN accounts AS spent
    ON cursor.customer_id = spent.owner AND spent.kind = 'customer_leased' AND spent.asset = 'TON'
GROUP BY cursor.customer_id, cursor.attributed_nano, spent.debits_posted
HAVING
    COALESCE(SUM(escrow.charged_nano), 0) > cursor.attributed_nano
    OR cursor.attributed_nano > COALESCE(spent.debits_posted, 0);
