-- API keys. A live key is one that is neither revoked nor, by the database's clock, expired for long; expiry to the
-- second is the table's business in memory.

-- name: insert_key
INSERT INTO api_keys (
    id, customer_id, name, sha256, prefix, role, requests_per_min, tokens_per_min, concurrency_max, allowed_models,
    cors_origins, expires_at
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12);

-- name: find_hash
SELECT id
FROM api_keys
WHERE sha256 = $1;

-- name: live_keys
-- Every key that may be used, or those of $1 when it is given, with its project's limits.
SELECT
    api_keys.id,
    api_keys.customer_id,
    api_keys.name,
    api_keys.sha256,
    api_keys.role,
    api_keys.organisation_admin,
    api_keys.requests_per_min,
    api_keys.tokens_per_min,
    api_keys.concurrency_max,
    api_keys.spend_day_nano_max,
    api_keys.spend_month_nano_max,
    api_keys.allowed_models,
    api_keys.cors_origins,
    api_keys.expires_at,
    api_keys.project_id,
    projects.requests_per_min AS project_requests_per_min,
    projects.tokens_per_min AS project_tokens_per_min,
    projects.concurrency_max AS project_concurrency_max,
    projects.spend_day_nano_max AS project_spend_day_nano_max,
    projects.spend_month_nano_max AS project_spend_month_nano_max
FROM api_keys
INNER JOIN projects ON api_keys.project_id = projects.id
WHERE
    api_keys.revoked_at IS NULL
    AND projects.archived_at IS NULL
    AND (api_keys.expires_at IS NULL OR api_keys.expires_at > NOW() - MAKE_INTERVAL(days => 1))
    AND ($1::uuid[] IS NULL OR api_keys.id = ANY($1::uuid[]));

-- name: list_keys
-- For people: never the hash. Revoked keys only when $1.
SELECT
    api_keys.id,
    api_keys.name,
    api_keys.prefix,
    api_keys.role,
    api_keys.requests_per_min,
    api_keys.tokens_per_min,
    api_keys.concurrency_max,
    api_keys.allowed_models,
    api_keys.cors_origins,
    api_keys.expires_at,
    api_keys.revoked_at,
    api_keys.created_at,
    customers.name AS customer
FROM api_keys
INNER JOIN customers ON api_keys.customer_id = customers.id
WHERE $1 OR api_keys.revoked_at IS NULL
ORDER BY customers.name, api_keys.created_at, api_keys.id
LIMIT $2;

-- name: revoke_key
-- By id or by displayed prefix; a prefix that several live keys share revokes none of them.
UPDATE api_keys
SET revoked_at = NOW()
WHERE
    revoked_at IS NULL
    AND id = (
        SELECT MIN(candidate.id::text)::uuid AS only_id
        FROM api_keys AS candidate
        WHERE candidate.revoked_at IS NULL AND (candidate.id::text = $1 OR candidate.prefix = $1)
        HAVING COUNT(*) = 1
    )
RETURNING id;

-- name: heartbeat
SELECT 1 AS alive;
