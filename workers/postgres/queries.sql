-- Enrolled workers and their asks. `models` and `asks` are JSON arrays: served models, and asks with their versions.

-- name: save_worker
-- Enrolling again under the same worker key and name renews the same worker; the new keyset replaces the old one.
INSERT INTO workers (
    worker_id, key_id, name, url, models, capacity, engine, tee_type, keyset, keyset_digest, asks, enrolled_at, state
)
VALUES ($1, $2, $3, $4, $5::jsonb, $6, $7, $8, $9, $10, $11::jsonb, now(), 'enrolled')
ON CONFLICT (key_id, name) DO UPDATE
    SET
        url = excluded.url,
        models = excluded.models,
        capacity = excluded.capacity,
        engine = excluded.engine,
        tee_type = excluded.tee_type,
        keyset = excluded.keyset,
        keyset_digest = excluded.keyset_digest,
        asks = excluded.asks,
        enrolled_at = excluded.enrolled_at,
        state = excluded.state
RETURNING worker_id;

-- name: put_ask
-- The version of this ask: the worker's last one for the model when that says the same, else a new one. None when the
-- worker had $7 new ones for it within a day.
WITH latest AS (
    SELECT
        asks.version,
        (asks.prompt_nano_per_mtok, asks.cached_nano_per_mtok, asks.completion_nano_per_mtok, asks.or_ceiling)
        = ($3, $4, $5, $6) AS same
    FROM asks
    WHERE
        asks.worker_id = $1
        AND asks.model = $2
    ORDER BY asks.version DESC
    LIMIT 1
),

made AS (
    INSERT INTO asks (
        worker_id, model, prompt_nano_per_mtok, cached_nano_per_mtok, completion_nano_per_mtok, or_ceiling
    )
    SELECT
        $1::uuid,
        $2::text,
        $3::bigint,
        $4::bigint,
        $5::bigint,
        $6::boolean
    WHERE
        coalesce((SELECT latest.same FROM latest), FALSE) IS FALSE
        AND $7::bigint > (
            SELECT count(*)
            FROM asks
            WHERE asks.worker_id = $1 AND asks.model = $2 AND asks.created_at > now() - interval '1 day'
        )
    RETURNING asks.version
)

SELECT latest.version
FROM latest
WHERE latest.same
UNION ALL
SELECT made.version
FROM made;

-- name: load_workers
-- A worker lives no longer than the key it enrolled with; what was found about its evidence stands with its keyset.
SELECT
    w.worker_id,
    w.name,
    w.url,
    w.models,
    w.capacity,
    w.engine,
    w.tee_type,
    w.keyset,
    w.asks,
    e.outcome,
    e.tee_type AS shown_tee,
    e.level,
    e.policy_sha256,
    extract(EPOCH FROM e.attested_until)::bigint AS attested_until
FROM workers AS w
INNER JOIN api_keys AS k ON w.key_id = k.id
LEFT JOIN enrolled_keysets AS e ON w.keyset_digest = e.digest AND w.worker_id = e.worker_id
WHERE
    w.state = 'enrolled'
    AND k.revoked_at IS NULL
    AND (k.expires_at IS NULL OR k.expires_at > now())
ORDER BY w.worker_id;

-- name: lock_stake
-- Two enrolments that name one stake are judged one after the other.
SELECT pg_advisory_xact_lock(hashtextextended('cocoon/stake/' || $1::text, 0));

-- name: register_stake
-- None while the stake is that of another worker: a bond answers for one worker at one operator (PROTOCOL 4). It is
-- another's for $3 seconds after that enrolled, unless it was removed or its worker key revoked.
WITH held AS (
    SELECT s.worker_id
    FROM stakes AS s
    INNER JOIN workers AS w ON s.worker_id = w.worker_id
    INNER JOIN api_keys AS k ON w.key_id = k.id
    WHERE
        s.address = $1
        AND s.worker_id <> $2
        AND w.state = 'enrolled'
        AND w.enrolled_at > now() - make_interval(secs => $3::double precision)
        AND k.revoked_at IS NULL
)

INSERT INTO stakes (address, worker_id, config)
SELECT
    $1::text AS address,
    $2::uuid AS worker_id,
    $4::bytea AS config
WHERE NOT EXISTS (SELECT FROM held)
ON CONFLICT (address) DO UPDATE
    SET worker_id = excluded.worker_id, config = coalesce(excluded.config, stakes.config)
RETURNING address;

-- name: remove_worker
UPDATE workers SET state = 'removed'
WHERE worker_id = $1 AND state = 'enrolled'
RETURNING keyset_digest;
