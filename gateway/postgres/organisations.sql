-- Organisations, which are the customers, and their projects.

-- name: insert_organisation
INSERT INTO customers (id, name) VALUES ($1, $2)
ON CONFLICT DO NOTHING
RETURNING id;

-- name: find_organisation
SELECT
    id,
    name,
    created_at
FROM customers
WHERE id = $1;

-- name: find_organisation_by_name
SELECT
    id,
    name,
    created_at
FROM customers
WHERE name = $1;

-- name: list_organisations
-- By age: after organisation $1 if given, at most $2.
SELECT
    id,
    name,
    created_at
FROM customers
WHERE
    $1::uuid IS NULL
    OR (created_at, id) > (
        SELECT
            last_shown.created_at,
            last_shown.id
        FROM customers AS last_shown
        WHERE last_shown.id = $1
    )
ORDER BY created_at, id
LIMIT $2;

-- name: make_default_project
SELECT default_project($1);

-- name: insert_project
INSERT INTO projects (
    id, customer_id, name, requests_per_min, tokens_per_min, concurrency_max, spend_day_nano_max, spend_month_nano_max
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
ON CONFLICT DO NOTHING
RETURNING id;

-- name: find_project
-- Project $1 of organisation $2 (of any when NULL).
SELECT
    id,
    customer_id,
    name,
    requests_per_min,
    tokens_per_min,
    concurrency_max,
    spend_day_nano_max,
    spend_month_nano_max,
    archived_at,
    created_at
FROM projects
WHERE id = $1 AND ($2::uuid IS NULL OR customer_id = $2);

-- name: find_project_by_name
SELECT
    id,
    customer_id,
    name,
    requests_per_min,
    tokens_per_min,
    concurrency_max,
    spend_day_nano_max,
    spend_month_nano_max,
    archived_at,
    created_at
FROM projects
WHERE customer_id = $1 AND name = $2;

-- name: list_projects
-- Of organisation $1 by age: archived ones only when $2, after project $3 if given, at most $4.
SELECT
    id,
    customer_id,
    name,
    requests_per_min,
    tokens_per_min,
    concurrency_max,
    spend_day_nano_max,
    spend_month_nano_max,
    archived_at,
    created_at
FROM projects
WHERE
    customer_id = $1
    AND ($2 OR archived_at IS NULL)
    AND (
        $3::uuid IS NULL
        OR (created_at, id) > (
            SELECT
                last_shown.created_at,
                last_shown.id
            FROM projects AS last_shown
            WHERE last_shown.id = $3
        )
    )
ORDER BY created_at, id
LIMIT $4;

-- name: limit_project
-- All limits at once; those not given are none. The trigger projects_notify tells every replica.
UPDATE projects
SET
    requests_per_min = $3,
    tokens_per_min = $4,
    concurrency_max = $5,
    spend_day_nano_max = $6,
    spend_month_nano_max = $7
WHERE id = $1 AND ($2::uuid IS NULL OR customer_id = $2) AND archived_at IS NULL
RETURNING id;

-- name: archive_project
UPDATE projects
SET archived_at = now()
WHERE id = $1 AND ($2::uuid IS NULL OR customer_id = $2) AND archived_at IS NULL
RETURNING id;

-- name: has_foreign_keys
-- Whether project $1 has live keys that are not of roles $2.
SELECT exists(
    SELECT 1
    FROM api_keys
    WHERE project_id = $1 AND revoked_at IS NULL AND role <> all($2::text[])
);

-- name: revoke_keys_of_project
UPDATE api_keys
SET revoked_at = now()
WHERE project_id = $1 AND revoked_at IS NULL
RETURNING id;
