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
    requests,
    prompt_tokens,
    cached_tokens,
    completion_tokens,
    numerator,
    charge_nano
FROM usage_daily
WHERE customer_id = $1 AND day BETWEEN $2 AND $3 AND requests > 0
ORDER BY day DESC, model ASC, key_id ASC, asset ASC
LIMIT $4;
