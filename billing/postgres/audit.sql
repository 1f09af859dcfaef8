-- Who changed what. The table is insert-only.

-- name: insert_audit
INSERT INTO audit_log (actor, action, customer_id, subject_id, detail)
VALUES ($1, $2, $3, $4, $5::jsonb);

-- name: list_audit
-- Newest first: of organisation $1 (of all when NULL), older than row $2, at most $3.
SELECT
    id,
    created_at,
    actor,
    action,
    customer_id,
    subject_id,
    detail::text AS detail
FROM audit_log
WHERE ($1::uuid IS NULL OR customer_id = $1) AND ($2::bigint IS NULL OR id < $2)
ORDER BY id DESC
LIMIT $3;
