-- Transfers, open holds and usage rows.
--
-- Everything recorded about a job lies in the partition of the UTC day inside its UUIDv7, so that every unique
-- constraint, replays included, can contain the day. No foreign key to accounts: it would cost two look-ups and two
-- row locks a transfer on the hot path; billing/postgres/check.sql proves the same from the sums.

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is insert-only', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END
$$;

-- Phases: `single` moves at once; `pending` reserves; `post`, `void` and `expire` resolve the pending transfer
-- `pending_id`, once. A post moves `amount`, which may be less than was reserved, and releases the rest.
CREATE TABLE transfers (
    day date NOT NULL,
    id uuid NOT NULL,
    phase text NOT NULL,
    code text NOT NULL,
    pending_id uuid,
    debit_account_id bigint NOT NULL,
    credit_account_id bigint NOT NULL,
    amount bigint NOT NULL,
    body_digest bytea,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (day, id),
    CONSTRAINT transfers_resolved_once UNIQUE (day, pending_id),
    CONSTRAINT transfers_phase_known CHECK (phase IN ('single', 'pending', 'post', 'void', 'expire')),
    CONSTRAINT transfers_resolution_names_pending CHECK (
        (pending_id IS NOT NULL) = (phase IN ('post', 'void', 'expire'))
    ),
    CONSTRAINT transfers_code_form CHECK (code ~ '^[a-z_]{1,32}$'),
    CONSTRAINT transfers_amount_not_negative CHECK (amount >= 0),
    CONSTRAINT transfers_two_accounts CHECK (debit_account_id <> credit_account_id),
    CONSTRAINT transfers_digest_form CHECK (body_digest IS NULL OR length(body_digest) = 32)
) PARTITION BY RANGE (day);

CREATE TRIGGER transfers_insert_only BEFORE UPDATE OR DELETE ON transfers
FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- The working set of unresolved holds: a row lives as long as its hold. `expires_at` is database time.
CREATE TABLE open_holds (
    id uuid PRIMARY KEY,
    day date NOT NULL,
    customer_id uuid NOT NULL,
    debit_account_id bigint NOT NULL,
    credit_account_id bigint NOT NULL,
    amount bigint NOT NULL,
    expires_at timestamptz NOT NULL,
    CONSTRAINT open_holds_amount_not_negative CHECK (amount >= 0)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

CREATE INDEX open_holds_due ON open_holds (expires_at);

-- One row for one relayed attempt. The amounts are this row's part of the aggregated charge, share and fee transfers
-- of its day. `numerator` is in 10^-6 nano. `body_digest` is of the whole settlement and tells replays from conflicts.
CREATE TABLE usage (
    day date NOT NULL,
    job_id uuid NOT NULL,
    attempt smallint NOT NULL,
    customer_id uuid NOT NULL,
    key_id uuid NOT NULL,
    worker_id uuid,
    model text NOT NULL,
    asset text NOT NULL,
    price_version bigint NOT NULL,
    share_bps smallint NOT NULL,
    prompt_tokens bigint NOT NULL,
    cached_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    numerator numeric(39, 0) NOT NULL,
    charge_nano bigint NOT NULL,
    share_nano bigint NOT NULL,
    fee_nano bigint NOT NULL,
    outcome text NOT NULL,
    finish_reason text NOT NULL,
    started_at timestamptz NOT NULL,
    first_token_at timestamptz,
    ended_at timestamptz NOT NULL,
    receipt_head bytea,
    receipt_signature bytea,
    body_digest bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (day, job_id, attempt),
    CONSTRAINT usage_attempt_range CHECK (attempt BETWEEN 0 AND 255),
    CONSTRAINT usage_tokens_range CHECK (
        cached_tokens >= 0 AND cached_tokens <= prompt_tokens AND completion_tokens >= 0
    ),
    CONSTRAINT usage_amounts_not_negative CHECK (
        numerator >= 0 AND charge_nano >= 0 AND share_nano >= 0 AND fee_nano >= 0
    ),
    CONSTRAINT usage_share_range CHECK (share_bps BETWEEN 0 AND 10000),
    CONSTRAINT usage_outcome_known CHECK (outcome IN ('completed', 'client_gone', 'broken')),
    CONSTRAINT usage_broken_is_free CHECK (
        outcome <> 'broken' OR (numerator = 0 AND charge_nano = 0 AND share_nano = 0 AND fee_nano = 0)
    ),
    CONSTRAINT usage_model_form CHECK (length(model) BETWEEN 1 AND 128),
    CONSTRAINT usage_finish_form CHECK (length(finish_reason) <= 64),
    CONSTRAINT usage_digest_form CHECK (length(body_digest) = 32)
) PARTITION BY RANGE (day);

-- A job is charged at most once, whatever the number of attempts; also the index of a customer's day.
CREATE UNIQUE INDEX usage_charged_once ON usage (day, customer_id, job_id)
WHERE outcome IN ('completed', 'client_gone');

CREATE TRIGGER usage_insert_only BEFORE UPDATE OR DELETE ON usage
FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- Create the missing day partitions between two days, both included; returns how many were created. Idempotent; two
-- callers take turns. ATTACH locks the parent against schema changes only, so that it never stops an insert.
CREATE FUNCTION ensure_day_partitions(first_day date, last_day date) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    parent text;
    partition text;
    a_day date;
    created integer := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(4848484801);
    FOR a_day IN SELECT generate_series(first_day, last_day, interval '1 day')::date LOOP
        FOREACH parent IN ARRAY ARRAY['transfers', 'usage'] LOOP
            partition := parent || '_' || to_char(a_day, 'YYYYMMDD');
            CONTINUE WHEN to_regclass(partition) IS NOT NULL;
            EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL)', partition, parent);
            EXECUTE format(
                'ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                parent, partition, a_day, a_day + 1
            );
            created := created + 1;
        END LOOP;
    END LOOP;
    RETURN created;
END
$$;
