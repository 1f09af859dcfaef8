-- Evidence that costs a stake. Nothing deletes it; migration 27 says what its states mean.

-- name: keep_evidence
-- Against stake $1, unless $8 pieces are kept already: one is enough, more are for the case that it is refused.
INSERT INTO slash_evidence (stake, worker_id, kind, slot, job_id, attempt, evidence)
SELECT
    $1::text,
    $2::uuid,
    $3::text,
    $4::bytea,
    $5::uuid,
    $6::smallint,
    $7::bytea
WHERE
    (
        SELECT COUNT(*) FROM slash_evidence AS kept
        WHERE kept.stake = $1::text AND kept.state <> 'refused'
    ) < $8::integer
ON CONFLICT (slot, kind) DO NOTHING
RETURNING id;

-- name: follow_stakes
-- Bring evidence in line with what the chain showed of its stake, where less than $1 nano are not worth a message.
-- Returns what has changed.
UPDATE slash_evidence AS kept
SET
    state = found.state,
    closed_at = CASE WHEN found.state <> 'pending' THEN NOW() END,
    detail = CASE WHEN found.state = 'refused' THEN 'the stake is none of this network''s' ELSE kept.detail END,
    staked_nano = CASE WHEN found.state = 'too_late' THEN found.staked_nano ELSE kept.staked_nano END
FROM (
    SELECT
        one.id,
        stakes.bond_nano + stakes.unbonding_nano AS staked_nano,
        CASE
            WHEN stakes.state IN ('slashed', 'refused') THEN stakes.state
            WHEN stakes.state = 'live' AND stakes.bond_nano + stakes.unbonding_nano < $1::bigint THEN 'too_late'
            ELSE 'pending'
        END AS state
    FROM slash_evidence AS one
    INNER JOIN stakes ON one.stake = stakes.address
    WHERE one.state IN ('pending', 'too_late')
) AS found
WHERE kept.id = found.id AND kept.state <> found.state
RETURNING kept.id, kept.stake, kept.worker_id, kept.state, kept.staked_nano;

-- name: charges
-- Pending evidence against live stakes: of each stake first what was submitted first.
SELECT
    kept.id,
    kept.stake,
    kept.worker_id,
    kept.kind,
    kept.slot,
    kept.job_id,
    kept.attempt,
    kept.evidence,
    kept.state,
    kept.detail,
    kept.staked_nano,
    kept.created_at,
    kept.submitted_at,
    kept.closed_at,
    stakes.staked_key,
    stakes.operator_key,
    stakes.bond_nano + stakes.unbonding_nano AS live_nano
FROM slash_evidence AS kept
INNER JOIN stakes ON kept.stake = stakes.address
WHERE kept.state = 'pending' AND stakes.state = 'live'
ORDER BY kept.stake, kept.submitted_at NULLS LAST, kept.id
LIMIT $1;

-- name: mark_submitted
UPDATE slash_evidence SET submitted_at = NOW(), staked_nano = $2
WHERE id = $1 AND submitted_at IS NULL;

-- name: refuse_evidence
UPDATE slash_evidence SET state = 'refused', detail = $2, closed_at = NOW()
WHERE id = $1 AND state = 'pending'
RETURNING id;

-- name: refused_since
-- Evidence that was refused in the last $1 seconds.
SELECT
    id,
    stake,
    detail
FROM slash_evidence
WHERE state = 'refused' AND closed_at > NOW() - MAKE_INTERVAL(secs => $1::double precision)
ORDER BY id
LIMIT $2;

-- name: list_evidence
-- The newest first.
SELECT
    id,
    stake,
    worker_id,
    kind,
    slot,
    job_id,
    attempt,
    evidence,
    state,
    detail,
    staked_nano,
    created_at,
    submitted_at,
    closed_at
FROM slash_evidence
WHERE $1::bigint IS NULL OR id = $1
ORDER BY id DESC
LIMIT $2;

-- name: count_unproven
-- Misdeeds that are known and have no evidence of their own, by kind.
SELECT
    known.kind,
    COUNT(*) AS count
FROM (
    SELECT
        job_id,
        attempt,
        CASE kind WHEN 'over_claim' THEN 'over_use' ELSE kind END AS kind
    FROM discrepancies
    WHERE kind IN ('over_claim', 'equivocation')
) AS known
LEFT JOIN slash_evidence AS kept
    ON known.job_id = kept.job_id AND known.attempt = kept.attempt AND known.kind = kept.kind
WHERE kept.id IS NULL
GROUP BY known.kind
ORDER BY known.kind;
