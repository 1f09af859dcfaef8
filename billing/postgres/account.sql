-- What a customer sees of its own account.

-- name: put_customer
-- Idempotent by name; the id of an existing customer stays.
INSERT INTO customers (id, name) VALUES ($1, $2)
ON CONFLICT (name) DO NOTHING;

-- name: find_customer
SELECT id
FROM customers
WHERE name = $1;

-- name: usage_by_day
-- Charged usage of customer $1 on the days $2 to $3, by day, model and key; at most $4 lines, newest day first.
SELECT
    day,
    model,
    key_id,
    asset,
    COUNT(*) AS requests,
    SUM(prompt_tokens) AS prompt_tokens,
    SUM(cached_tokens) AS cached_tokens,
    SUM(completion_tokens) AS completion_tokens,
    SUM(numerator) AS numerator,
    SUM(charge_nano) AS charge_nano
FROM usage
WHERE customer_id = $1 AND day BETWEEN $2 AND $3 AND outcome IN ('completed', 'client_gone')
GROUP BY day, model, key_id, asset
ORDER BY day DESC, model ASC, key_id ASC
LIMIT $4;
