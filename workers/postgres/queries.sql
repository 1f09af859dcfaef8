-- Enrolled workers. `models` is a JSON array of served models.

-- name: save_worker
-- Enrolling again under the same worker key and name renews the same worker; the new keyset replaces the old one.
INSERT INTO workers (
    worker_id, key_id, name, url, models, capacity, engine, tee_type, keyset, keyset_digest, enrolled_at, state
)
VALUES ($1, $2, $3, $4, $5::jsonb, $6, $7, $8, $9, $10, now(), 'enrolled')
ON CONFLICT (key_id, name) DO UPDATE
    SET
        url = excluded.url,
        models = excluded.models,
        capacity = excluded.capacity,
        engine = excluded.engine,
        tee_type = excluded.tee_type,
        keyset = excluded.keyset,
        keyset_digest = excluded.keyset_digest,
        enrolled_at = excluded.enrolled_at,
        state = excluded.state
RETURNING worker_id;

-- name: load_workers
-- A worker lives no longer than the key it enrolled with.
SELECT
    w.worker_id,
    w.name,
    w.url,
    w.models,
    w.capacity,
    w.engine,
    w.tee_type,
    w.keyset
FROM workers AS w
INNER JOIN api_keys AS k ON w.key_id = k.id
WHERE
    w.state = 'enrolled'
    AND k.revoked_at IS NULL
    AND (k.expires_at IS NULL OR k.expires_at > now())
ORDER BY w.worker_id;

-- name: remove_worker
UPDATE workers SET state = 'removed'
WHERE worker_id = $1 AND state = 'enrolled'
RETURNING worker_id;
