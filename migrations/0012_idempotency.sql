-- Claims on idempotency keys and the outcomes of the requests that made them (PROTOCOL §7).
--
-- `key_tag` and `body_tag` are MACs of the Idempotency-Key and of the body under the customer's API key, of which the
-- database has only the hash: a row tells nobody which key or which prompt it stands for, and two API keys never meet.
-- `outcome` is encrypted under the API key and the job: only its holder, asking again, can open it. Customer and key
-- are those that pay; no foreign keys, because a row lives for a day and each request with the header would pay.
--
-- A running claim is renewed by the process that serves it; past `expires_at` (database time) another request may take
-- the key over. Other states are forgotten past `expires_at`.
CREATE TABLE idempotency_claims (
    key_tag bytea PRIMARY KEY,
    body_tag bytea NOT NULL,
    job_id uuid NOT NULL,
    customer_id uuid NOT NULL,
    key_id uuid NOT NULL,
    state text NOT NULL DEFAULT 'running',
    outcome bytea,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    CONSTRAINT idempotency_claims_tags_form CHECK (length(key_tag) = 32 AND length(body_tag) = 32),
    CONSTRAINT idempotency_claims_state_known CHECK (state IN ('running', 'kept', 'completed', 'charged')),
    CONSTRAINT idempotency_claims_outcome_kept CHECK ((state = 'kept') = (outcome IS NOT NULL)),
    CONSTRAINT idempotency_claims_outcome_size CHECK (length(outcome) <= 2097152)
);

-- Ciphertext does not compress: trying costs every write for nothing.
ALTER TABLE idempotency_claims ALTER COLUMN outcome SET STORAGE EXTERNAL;

CREATE INDEX idempotency_claims_expiry ON idempotency_claims (expires_at);
