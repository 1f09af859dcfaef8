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
    usage_daily.day,
    usage_daily.model,
    usage_daily.key_id,
    api_keys.name AS key_name,
    api_keys.project_id,
    projects.name AS project,
    usage_daily.asset,
    usage_daily.requests,
    usage_daily.prompt_tokens,
    usage_daily.cached_tokens,
    usage_daily.completion_tokens,
    usage_daily.numerator,
    usage_daily.charge_nano
FROM usage_daily
LEFT JOIN api_keys ON usage_daily.key_id = api_keys.id
LEFT JOIN projects ON api_keys.project_id = projects.id
WHERE usage_daily.customer_id = $1 AND usage_daily.day BETWEEN $2 AND $3 AND usage_daily.requests > 0
ORDER BY usage_daily.day DESC, usage_daily.model ASC, usage_daily.key_id ASC, usage_daily.asset ASC
LIMIT $4;

-- name: read_leased
-- What gateway processes have leased of customer $1's credit in asset $2.
SELECT COALESCE(SUM(amount), 0)::bigint
FROM leases
WHERE customer_id = $1 AND asset = $2 AND state = 'active';
