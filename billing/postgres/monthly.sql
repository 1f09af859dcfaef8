-- Monthly statements: what came, what was charged, what is left. Read in one snapshot.

-- name: border_movements
-- Nano that crossed the border of customer $1's accounts in asset $2 other than as a charge: before day $3, and from
-- $3 up to but not including $4, by reason. Moves between its own accounts are none of these codes.
WITH mine AS (
    SELECT id
    FROM accounts
    WHERE owner = $1 AND asset = $2 AND kind IN ('customer_available', 'customer_leased', 'lease_recovery')
),

crossed AS (
    SELECT
        day,
        code,
        amount
    FROM transfers
    WHERE
        code IN ('deposit', 'credit', 'reversal', 'loss', 'refund')
        AND day < $4 AND phase = 'single' AND credit_account_id IN (SELECT mine.id FROM mine)
    UNION ALL
    SELECT
        day,
        code,
        amount
    FROM transfers
    WHERE
        code IN ('deposit', 'credit', 'reversal', 'loss', 'refund')
        AND day < $4 AND phase = 'single' AND debit_account_id IN (SELECT mine.id FROM mine)
)

SELECT
    code,
    COALESCE(SUM(amount) FILTER (WHERE day < $3), 0) AS before,
    COALESCE(SUM(amount) FILTER (WHERE day >= $3), 0) AS within
FROM crossed
GROUP BY code;

-- name: charged_before
-- Nano that customer $1 was charged in asset $2 before day $3.
SELECT COALESCE(SUM(charge_nano), 0)
FROM usage_daily
WHERE customer_id = $1 AND asset = $2 AND day < $3;

-- name: charges_by_model
-- What customer $1 was charged in asset $2 from day $3 up to but not including $4.
SELECT
    model,
    SUM(requests) AS requests,
    SUM(prompt_tokens) AS prompt_tokens,
    SUM(cached_tokens) AS cached_tokens,
    SUM(completion_tokens) AS completion_tokens,
    SUM(charge_nano) AS charge_nano
FROM usage_daily
WHERE customer_id = $1 AND asset = $2 AND day >= $3 AND day < $4 AND requests > 0
GROUP BY model
ORDER BY model;
