-- Workers' standing: claims against them, and suspensions.

-- name: suspend_offenders
-- Who has claims about $2 or more jobs within $1 seconds, since its last suspension was lifted; one equivocation, which
-- nobody commits by mistake, is enough.
INSERT INTO worker_suspensions (worker_id, offences)
SELECT
    found.worker_id,
    COUNT(DISTINCT found.job_id) AS offences
FROM discrepancies AS found
WHERE
    found.against_worker
    AND found.created_at > NOW() - MAKE_INTERVAL(secs => $1::double precision)
    AND NOT EXISTS (
        SELECT 1 FROM worker_suspensions AS earlier
        WHERE
            earlier.worker_id = found.worker_id
            AND (earlier.lifted_at IS NULL OR earlier.lifted_at >= found.created_at)
    )
GROUP BY found.worker_id
HAVING COUNT(DISTINCT found.job_id) >= $2::bigint OR BOOL_OR(found.kind = 'equivocation')
ON CONFLICT (worker_id) WHERE lifted_at IS NULL DO NOTHING
RETURNING worker_id, offences;

-- name: read_standing
-- The weight halves every $2 seconds; claims older than $1 seconds, or than a lifted suspension, do not count.
WITH claims AS (
    SELECT
        found.worker_id,
        SUM(
            POWER(0.5, EXTRACT(EPOCH FROM NOW() - found.created_at)::double precision / $2::double precision)
        ) AS weight
    FROM discrepancies AS found
    WHERE
        found.against_worker
        AND found.created_at > NOW() - MAKE_INTERVAL(secs => $1::double precision)
        AND NOT EXISTS (
            SELECT 1 FROM worker_suspensions AS earlier
            WHERE earlier.worker_id = found.worker_id AND earlier.lifted_at >= found.created_at
        )
    GROUP BY found.worker_id
),

suspended AS (
    SELECT open.worker_id
    FROM worker_suspensions AS open
    WHERE open.lifted_at IS NULL
)

SELECT
    suspended.worker_id IS NOT NULL AS suspended,
    COALESCE(claims.worker_id, suspended.worker_id) AS worker_id,
    COALESCE(claims.weight, 0) AS weight
FROM claims
FULL OUTER JOIN suspended ON claims.worker_id = suspended.worker_id;

-- name: list_held
-- The latest $2 workers with claims within $1 seconds or a suspension.
WITH claims AS (
    SELECT
        found.worker_id,
        COUNT(DISTINCT found.job_id) AS jobs,
        SUM(found.claimed_nano) AS claimed_nano,
        COALESCE(SUM(found.booked_nano), 0) AS booked_nano,
        MAX(found.created_at) AS last_at
    FROM discrepancies AS found
    WHERE found.against_worker AND found.created_at > NOW() - MAKE_INTERVAL(secs => $1::double precision)
    GROUP BY found.worker_id
),

suspended AS (
    SELECT
        open.worker_id,
        open.suspended_at
    FROM worker_suspensions AS open
    WHERE open.lifted_at IS NULL
)

SELECT
    named.name,
    own.wallet,
    claims.last_at,
    suspended.suspended_at,
    COALESCE(claims.worker_id, suspended.worker_id) AS worker_id,
    COALESCE(claims.jobs, 0) AS jobs,
    COALESCE(claims.claimed_nano, 0) AS claimed_nano,
    COALESCE(claims.booked_nano, 0) AS booked_nano
FROM claims
FULL OUTER JOIN suspended ON claims.worker_id = suspended.worker_id
LEFT JOIN workers AS named ON COALESCE(claims.worker_id, suspended.worker_id) = named.worker_id
LEFT JOIN api_keys AS own ON named.key_id = own.id
ORDER BY suspended.suspended_at DESC NULLS LAST, claims.last_at DESC
LIMIT $2;

-- name: list_workers
-- Every worker that ever enrolled, the last to enrol first, with the wallet of its key; at most $1.
SELECT
    named.worker_id,
    named.name,
    named.url,
    named.models,
    named.tee_type,
    named.enrolled_at,
    own.wallet,
    open.suspended_at,
    CASE WHEN own.revoked_at IS NULL THEN named.state ELSE 'key revoked' END AS state
FROM workers AS named
INNER JOIN api_keys AS own ON named.key_id = own.id
LEFT JOIN worker_suspensions AS open ON named.worker_id = open.worker_id AND open.lifted_at IS NULL
ORDER BY named.enrolled_at DESC, named.worker_id ASC
LIMIT $1;

-- name: lift_suspension
UPDATE worker_suspensions SET lifted_at = NOW(), lifted_reason = $2
WHERE worker_id = $1 AND lifted_at IS NULL
RETURNING id;
