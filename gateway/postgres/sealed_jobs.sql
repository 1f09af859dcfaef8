-- The ids of sealed jobs. The primary key is what makes replicas agree.

-- name: take_sealed_jobs
INSERT INTO sealed_jobs (job_id)
SELECT asked.job_id FROM UNNEST($1::uuid[]) AS asked (job_id)
ORDER BY asked.job_id
ON CONFLICT (job_id) DO NOTHING
RETURNING job_id;

-- name: give_back_sealed_jobs
DELETE FROM sealed_jobs
WHERE job_id = ANY($1::uuid[]);

-- name: sweep_sealed_jobs
DELETE FROM sealed_jobs
WHERE
    job_id IN (
        SELECT old.job_id
        FROM sealed_jobs AS old
        WHERE old.taken_at < NOW() - MAKE_INTERVAL(secs => $1::double precision)
        ORDER BY old.taken_at
        LIMIT $2
        FOR UPDATE SKIP LOCKED
    );
