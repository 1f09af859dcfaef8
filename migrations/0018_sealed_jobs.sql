-- The ids of sealed jobs, which their clients choose (PROTOCOL §3): an id is used once, at whichever replica.
--
-- A row outlives the time within which its id is accepted at all, and is then forgotten; what was charged under the id
-- stays unique in `usage`. No customer, because ids are unique over all of them.
CREATE TABLE sealed_jobs (
    job_id uuid PRIMARY KEY,
    taken_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX sealed_jobs_age ON sealed_jobs (taken_at);
