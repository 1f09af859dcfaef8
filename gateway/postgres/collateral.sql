-- Collateral by platform family.

-- name: put_collateral
-- Never replaced by an older judgement, nor by one that begins earlier.
INSERT INTO collateral (fmspc, ca, content, evaluation, starts_at, ends_at)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (fmspc, ca) DO UPDATE
    SET
        content = excluded.content,
        evaluation = excluded.evaluation,
        starts_at = excluded.starts_at,
        ends_at = excluded.ends_at,
        fetched_at = now()
    WHERE collateral.evaluation <= excluded.evaluation AND collateral.starts_at <= excluded.starts_at;

-- name: load_collateral
SELECT
    c.fmspc,
    c.ca,
    c.content
FROM collateral AS c
ORDER BY c.fmspc, c.ca;
