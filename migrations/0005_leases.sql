-- Credit leases: what a gateway process may promise to a customer's requests without asking again.
--
-- An active lease's credit is the pending transfer `pending_id` of day `pending_day`, from the customer's available to
-- its leased account. A change of the amount ends that transfer and makes the next one, `version` counting them. What
-- an expired lease had left lies in the customer's lease_recovery account until `returns_at`.

-- Which lease a transfer or a charge belongs to; NULL for what needs none. No default, so no row is rewritten.
ALTER TABLE transfers ADD COLUMN lease_id uuid;
ALTER TABLE usage ADD COLUMN lease_id uuid;

-- `fence` grows with every lease and is quoted with every row: a holder that lost its lease cannot pass for its
-- successor. `change_seq` and `change_delta` are the last change and what it did, so that it can be sent again.
-- `answered_at` is when the holder last gave up what it did not need. All times are database time.
CREATE TABLE leases (
    lease_id uuid PRIMARY KEY,
    customer_id uuid NOT NULL,
    asset text NOT NULL,
    holder text NOT NULL,
    fence bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT leases_fence_unique UNIQUE,
    state text NOT NULL DEFAULT 'active',
    available_id bigint NOT NULL,
    leased_id bigint NOT NULL,
    amount bigint NOT NULL,
    version bigint NOT NULL DEFAULT 0,
    pending_day date,
    pending_id uuid,
    change_seq bigint NOT NULL,
    change_delta bigint NOT NULL,
    answered_at timestamptz,
    expires_at timestamptz NOT NULL,
    returns_at timestamptz,
    closed_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT leases_holder_form CHECK (length(holder) BETWEEN 1 AND 128),
    CONSTRAINT leases_state_known CHECK (state IN ('active', 'recovering', 'closed')),
    CONSTRAINT leases_amount_not_negative CHECK (amount >= 0),
    CONSTRAINT leases_pending_is_the_amount CHECK (
        (pending_id IS NOT NULL) = (state = 'active' AND amount > 0) AND (pending_id IS NULL) = (pending_day IS NULL)
    ),
    CONSTRAINT leases_recovering_returns CHECK ((returns_at IS NOT NULL) = (state = 'recovering')),
    CONSTRAINT leases_closed_is_empty CHECK (
        (closed_at IS NOT NULL) = (state = 'closed') AND (state <> 'closed' OR amount = 0)
    )
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

CREATE INDEX leases_due ON leases (expires_at) WHERE state = 'active';
CREATE INDEX leases_returning ON leases (returns_at) WHERE state = 'recovering';
CREATE INDEX leases_closed ON leases (closed_at) WHERE state = 'closed';
CREATE INDEX leases_of_customer ON leases (customer_id) WHERE state = 'active';

-- Usage that could not be charged, with the reason: nothing is dropped silently. `body` is the settlement as msgpack.
CREATE TABLE refused_usage (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id uuid NOT NULL,
    attempt smallint NOT NULL,
    customer_id uuid NOT NULL,
    lease_id uuid,
    reason text NOT NULL,
    body_digest bytea NOT NULL,
    body bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT refused_usage_once UNIQUE (job_id, attempt, body_digest),
    CONSTRAINT refused_usage_attempt_range CHECK (attempt BETWEEN 0 AND 255),
    CONSTRAINT refused_usage_reason_form CHECK (reason ~ '^[a-z_]{1,32}$'),
    CONSTRAINT refused_usage_digest_form CHECK (length(body_digest) = 32),
    CONSTRAINT refused_usage_body_size CHECK (length(body) <= 65536)
);

CREATE TRIGGER refused_usage_insert_only BEFORE UPDATE OR DELETE ON refused_usage
FOR EACH ROW EXECUTE FUNCTION refuse_change();
