-- Outcomes of requests that came with an Idempotency-Key (PROTOCOL §7). The outcome is encrypted under the API key, of
-- which the database only has the hash: nobody but the key's holder, asking again, can open it.

CREATE TABLE idempotent_requests (
    customer_id uuid NOT NULL REFERENCES customers (id),
    key_sha256 bytea NOT NULL,
    body_sha256 bytea NOT NULL,
    job_id uuid NOT NULL,
    state text NOT NULL DEFAULT 'running',
    outcome bytea,
    -- A running request that its process never ended stops blocking its key here; a finished one is forgotten here.
    expires_at timestamptz NOT NULL,
    CONSTRAINT idempotent_requests_pkey PRIMARY KEY (customer_id, key_sha256),
    CONSTRAINT idempotent_requests_digests_form CHECK (length(key_sha256) = 32 AND length(body_sha256) = 32),
    CONSTRAINT idempotent_requests_state_known CHECK (state IN ('running', 'kept', 'charged')),
    CONSTRAINT idempotent_requests_outcome_kept CHECK ((state = 'kept') = (outcome IS NOT NULL))
);

CREATE INDEX idempotent_requests_expiry ON idempotent_requests (expires_at);
