-- API keys. A live key is one that is neither revoked nor, by the database's clock, expired for long; expiry to the
-- second is the table's business in memory.

-- name: insert_key
INSERT INTO api_keys (
    id, customer_id, name, sha256, prefix, role, requests_per_min, tokens_per_min, concurrency_max, allowed_models,
    cors_origins, expires_at, project_id, organisation_admin, spend_day_nano_max, spend_month_nano_max, wallet,
    required_evidence
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18);

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
    api_keys.previous_sha256,
    api_keys.previous_expires_at,
    api_keys.role,
    api_keys.organisation_admin,
    api_keys.requests_per_min,
    api_keys.tokens_per_min,
    api_keys.concurrency_max,
    api_keys.spend_day_nano_max,
    api_keys.spend_month_nano_max,
    api_keys.allowed_models,
    api_keys.required_evidence,
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
-- For people: never a hash. Revoked keys only when $1; at most $2; of organisation $3 (of all when NULL), of roles $4,
-- of project $5 if given, after the key $6 if given.
SELECT
    api_keys.id,
    api_keys.customer_id,
    api_keys.project_id,
    api_keys.name,
    api_keys.prefix,
    api_keys.role,
    api_keys.organisation_admin,
    api_keys.requests_per_min,
    api_keys.tokens_per_min,
    api_keys.concurrency_max,
    api_keys.spend_day_nano_max,
    api_keys.spend_month_nano_max,
    api_keys.allowed_models,
    api_keys.required_evidence,
    api_keys.cors_origins,
    api_keys.expires_at,
    api_keys.previous_expires_at,
    api_keys.revoked_at,
    api_keys.created_at,
    api_keys.wallet,
    customers.name AS customer,
    projects.name AS project
FROM api_keys
INNER JOIN customers ON api_keys.customer_id = customers.id
INNER JOIN projects ON api_keys.project_id = projects.id
WHERE
    ($1 OR api_keys.revoked_at IS NULL)
    AND ($3::uuid IS NULL OR api_keys.customer_id = $3)
    AND api_keys.role = ANY($4::text[])
    AND ($5::uuid IS NULL OR api_keys.project_id = $5)
    AND (
        $6::uuid IS NULL
        OR (customers.name, api_keys.created_at, api_keys.id) > (
            SELECT
                payer.name,
                last_shown.created_at,
                last_shown.id
            FROM api_keys AS last_shown
            INNER JOIN customers AS payer ON last_shown.customer_id = payer.id
            WHERE last_shown.id = $6
        )
    )
ORDER BY customers.name, api_keys.created_at, api_keys.id
LIMIT $2;

-- name: find_key
-- Key $1 if it is of organisation $2 (of any when NULL) and of roles $3.
SELECT
    api_keys.id,
    api_keys.customer_id,
    api_keys.project_id,
    api_keys.name,
    api_keys.prefix,
    api_keys.role,
    api_keys.organisation_admin,
    api_keys.requests_per_min,
    api_keys.tokens_per_min,
    api_keys.concurrency_max,
    api_keys.spend_day_nano_max,
    api_keys.spend_month_nano_max,
    api_keys.allowed_models,
    api_keys.required_evidence,
    api_keys.cors_origins,
    api_keys.expires_at,
    api_keys.previous_expires_at,
    api_keys.revoked_at,
    api_keys.created_at,
    api_keys.wallet,
    customers.name AS customer,
    projects.name AS project
FROM api_keys
INNER JOIN customers ON api_keys.customer_id = customers.id
INNER JOIN projects ON api_keys.project_id = projects.id
WHERE
    api_keys.id = $1 AND ($2::uuid IS NULL OR api_keys.customer_id = $2) AND api_keys.role = ANY($3::text[]);

-- name: limit_key
-- All limits at once; those not given are none.
UPDATE api_keys
SET
    requests_per_min = $4,
    tokens_per_min = $5,
    concurrency_max = $6,
    spend_day_nano_max = $7,
    spend_month_nano_max = $8
WHERE
    id = $1 AND ($2::uuid IS NULL OR customer_id = $2) AND role = ANY($3::text[]) AND revoked_at IS NULL
RETURNING id;

-- name: rotate_key
-- The hash $4 takes the place of the key's; the old one is kept for $7 seconds. The rotation $6 asked for again leaves
-- what it kept: only the secret that nobody saw is replaced.
UPDATE api_keys
SET
    sha256 = $4,
    prefix = $5,
    rotation_id = $6,
    previous_sha256 = CASE WHEN rotation_id = $6 THEN previous_sha256 WHEN $7 > 0 THEN sha256 END,
    previous_expires_at = CASE
        WHEN rotation_id = $6 THEN previous_expires_at
        WHEN $7 > 0 THEN NOW() + MAKE_INTERVAL(secs => $7)
    END
WHERE
    id = $1 AND ($2::uuid IS NULL OR customer_id = $2) AND role = ANY($3::text[]) AND revoked_at IS NULL
RETURNING id;

-- name: revoke_key
-- By id or by displayed prefix, within organisation $2 (any when NULL) and roles $3; a prefix that several live keys
-- share revokes none of them.
UPDATE api_keys
SET revoked_at = NOW()
WHERE
    revoked_at IS NULL
    AND id = (
        SELECT MIN(candidate.id::text)::uuid AS only_id
        FROM api_keys AS candidate
        WHERE
            candidate.revoked_at IS NULL
            AND (candidate.id::text = $1 OR candidate.prefix = $1)
            AND ($2::uuid IS NULL OR candidate.customer_id = $2)
            AND candidate.role = ANY($3::text[])
        HAVING COUNT(*) = 1
    )
RETURNING id;

-- name: resolve_key
-- The live key whose id or displayed prefix is $1; none when several share the prefix.
SELECT MIN(id::text)::uuid AS only_id
FROM api_keys
WHERE revoked_at IS NULL AND (id::text = $1 OR prefix = $1)
HAVING COUNT(*) = 1;

-- name: lock_live_project
-- Keeps project $1 of organisation $2 from being archived while a key is put into it.
SELECT id
FROM projects
WHERE id = $1 AND customer_id = $2 AND archived_at IS NULL
FOR SHARE;

-- name: heartbeat
SELECT 1 AS alive;
