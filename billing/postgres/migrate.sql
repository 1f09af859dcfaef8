-- The migration runner's own statements.

-- name: create_schema_migrations
CREATE TABLE IF NOT EXISTS schema_migrations (
    version bigint PRIMARY KEY,
    name text NOT NULL,
    sha256 bytea NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);

-- name: lock_migrations
-- Held until the connection ends: runners take turns.
SELECT pg_advisory_lock($1);

-- name: set_timeout
-- For the rest of the transaction when $3, else of the session.
SELECT set_config($1, $2, $3);

-- name: list_applied
SELECT
    version,
    name,
    sha256
FROM schema_migrations
ORDER BY version;

-- name: record_applied
INSERT INTO schema_migrations (version, name, sha256) VALUES ($1, $2, $3);
