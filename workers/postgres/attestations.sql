-- Challenges, keysets, and what was found about them.

-- name: issue_challenge
-- One more nonce for a key, unless $4 of its are open. Old ones make room.
WITH gone AS (
    DELETE FROM enrolment_challenges
    WHERE enrolment_challenges.key_id = $2 AND enrolment_challenges.expires_at <= now()
)

INSERT INTO enrolment_challenges (nonce, key_id, expires_at)
SELECT
    $1::bytea AS nonce,
    $2::uuid AS key_id,
    now() + make_interval(secs => $3::double precision) AS expires_at
WHERE
    $4::bigint > (
        SELECT count(*)
        FROM enrolment_challenges AS c
        WHERE c.key_id = $2 AND c.expires_at > now()
    )
RETURNING enrolment_challenges.nonce;

-- name: take_challenge
-- The nonce of this key, once.
DELETE FROM enrolment_challenges
WHERE nonce = $1 AND key_id = $2
RETURNING expires_at > now() AS fresh;

-- name: lock_hardware
-- Two enrolments on one machine are judged one after the other.
SELECT pg_advisory_xact_lock(hashtextextended('cocoon/hardware', 0));

-- name: neighbours
-- Other workers that are attested now, on the same machine or with one of these GPUs.
SELECT
    w.name,
    k.hardware_id = $2 AS same_machine,
    k.gpu_serials && $3::text[] AS same_gpu
FROM workers AS w
INNER JOIN enrolled_keysets AS k ON w.keyset_digest = k.digest
INNER JOIN api_keys AS a ON w.key_id = a.id
WHERE
    w.worker_id <> $1
    AND w.state = 'enrolled'
    AND k.outcome = 'admitted'
    AND k.attested_until > now()
    AND a.revoked_at IS NULL
    AND (a.expires_at IS NULL OR a.expires_at > now())
    AND (k.hardware_id = $2 OR k.gpu_serials && $3::text[]);

-- name: keysets_before
-- The keyset that a worker is enrolled with now, if it is another one.
SELECT w.keyset_digest
FROM workers AS w
WHERE w.worker_id = $1 AND w.keyset_digest <> $2;

-- name: put_endorsements
INSERT INTO endorsements (sha256, content)
VALUES ($1, $2)
ON CONFLICT (sha256) DO NOTHING;

-- name: put_policy
INSERT INTO policies (sha256, content)
VALUES ($1, $2)
ON CONFLICT (sha256) DO NOTHING
RETURNING sha256;

-- name: put_keyset
-- None when the keyset is another worker's.
INSERT INTO enrolled_keysets (
    digest, keyset, worker_id, name, outcome, tee_type, level, nonce, evidence, endorsements_sha256, verdict, reasons,
    policy_sha256, hardware_id, gpu_serials, attested_until
)
VALUES (
    $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11::jsonb, $12::jsonb, $13, $14, $15,
    to_timestamp($16::double precision)
)
ON CONFLICT (digest) DO UPDATE
    SET
        name = excluded.name,
        outcome = excluded.outcome,
        tee_type = excluded.tee_type,
        level = excluded.level,
        nonce = excluded.nonce,
        evidence = excluded.evidence,
        endorsements_sha256 = excluded.endorsements_sha256,
        verdict = excluded.verdict,
        reasons = excluded.reasons,
        policy_sha256 = excluded.policy_sha256,
        hardware_id = excluded.hardware_id,
        gpu_serials = excluded.gpu_serials,
        judged_at = now(),
        attested_until = excluded.attested_until,
        refusal = NULL,
        refused_at = NULL
    WHERE enrolled_keysets.worker_id = excluded.worker_id
RETURNING digest;

-- name: forget_refusals
-- Of a worker that was never admitted, only the last refusal is kept.
DELETE FROM enrolled_keysets
WHERE worker_id = $1 AND outcome = 'refused' AND digest <> $2;

-- name: put_refusal
-- What was refused; an earlier admission of the same keyset stays in force to its end.
INSERT INTO enrolled_keysets (
    digest, keyset, worker_id, name, outcome, tee_type, level, reasons, refusal, refused_at
)
VALUES ($1, $2, $3, $4, 'refused', $5, 'none', $6::jsonb, $6::jsonb, now())
ON CONFLICT (digest) DO UPDATE
    SET
        refusal = excluded.refusal,
        refused_at = now(),
        reasons = CASE
            WHEN enrolled_keysets.outcome = 'refused' THEN excluded.reasons
            ELSE enrolled_keysets.reasons
        END
    WHERE enrolled_keysets.worker_id = excluded.worker_id;

-- name: list_attestations
-- Every enrolled worker with the state of its evidence, and those whose first evidence was refused in the last day.
SELECT
    w.worker_id,
    w.name,
    w.url,
    k.outcome,
    k.tee_type,
    k.level,
    k.reasons,
    k.refusal,
    k.refused_at,
    k.judged_at,
    k.attested_until,
    k.digest
FROM workers AS w
INNER JOIN enrolled_keysets AS k ON w.keyset_digest = k.digest
WHERE w.state = 'enrolled'
UNION ALL
SELECT
    r.worker_id,
    r.name,
    '' AS url,
    r.outcome,
    r.tee_type,
    r.level,
    r.reasons,
    r.refusal,
    r.refused_at,
    r.judged_at,
    r.attested_until,
    r.digest
FROM enrolled_keysets AS r
WHERE
    r.outcome = 'refused'
    AND r.refused_at > now() - interval '1 day'
    AND r.worker_id NOT IN (
        SELECT o.worker_id
        FROM workers AS o
        WHERE o.state = 'enrolled'
    )
ORDER BY name, worker_id;

-- name: shown
-- What was shown for these keysets and admitted.
SELECT
    k.digest,
    k.evidence,
    k.endorsements,
    k.verdict
FROM keysets AS k
WHERE
    k.digest = any($1::bytea[])
    AND k.outcome = 'admitted'
    AND k.evidence IS NOT NULL;

-- name: stored
-- All that a judgement of a keyset's evidence rested on.
SELECT
    k.evidence,
    k.endorsements,
    k.nonce,
    k.verdict
FROM keysets AS k
WHERE k.digest = $1 AND k.outcome = 'admitted' AND k.evidence IS NOT NULL;

-- name: stake_configs
-- What is known of the configurations of these stakes.
SELECT
    s.address,
    s.config
FROM stakes AS s
WHERE s.address = any($1::text[]) AND s.config IS NOT NULL;
