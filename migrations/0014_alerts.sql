-- Alerts: thresholds of a customer's balance and spending, and the signed webhooks that say they were crossed.

-- Where a customer hears of its alerts. The secret signs and must be known to do so; it is shown once and never listed.
CREATE TABLE webhooks (
    webhook_id uuid PRIMARY KEY,
    customer_id uuid NOT NULL REFERENCES customers (id),
    url text NOT NULL,
    secret bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    removed_at timestamptz,
    CONSTRAINT webhooks_url_form CHECK (length(url) BETWEEN 1 AND 512),
    CONSTRAINT webhooks_secret_form CHECK (length(secret) = 32)
);

CREATE UNIQUE INDEX webhooks_one_per_customer ON webhooks (customer_id) WHERE removed_at IS NULL;

-- `armed` is false from a crossing of a balance threshold until the balance is back above it. `fired_for` is the first
-- day of the last period (day or month, UTC) whose spending crossed; `occurrences` counts crossings.
CREATE TABLE alert_rules (
    rule_id uuid PRIMARY KEY,
    customer_id uuid NOT NULL REFERENCES customers (id),
    kind text NOT NULL,
    asset text NOT NULL DEFAULT 'TON',
    threshold_nano bigint NOT NULL,
    armed boolean NOT NULL DEFAULT TRUE,
    fired_for date,
    occurrences bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    removed_at timestamptz,
    CONSTRAINT alert_rules_kind_known CHECK (kind IN ('balance_low', 'spend_day', 'spend_month')),
    CONSTRAINT alert_rules_threshold_positive CHECK (threshold_nano > 0)
);

CREATE UNIQUE INDEX alert_rules_once ON alert_rules (customer_id, kind, asset, threshold_nano) WHERE removed_at IS NULL;

-- What is to be sent: written in the transaction that notes the crossing, with the bytes that every attempt sends.
-- `next_at` is database time.
CREATE TABLE alert_outbox (
    alert_id uuid PRIMARY KEY,
    rule_id uuid NOT NULL,
    occurrence bigint NOT NULL,
    customer_id uuid NOT NULL,
    body bytea NOT NULL,
    state text NOT NULL DEFAULT 'pending',
    attempts integer NOT NULL DEFAULT 0,
    next_at timestamptz NOT NULL DEFAULT now(),
    last_outcome text,
    created_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz,
    CONSTRAINT alert_outbox_once UNIQUE (rule_id, occurrence),
    CONSTRAINT alert_outbox_state_known CHECK (state IN ('pending', 'delivered', 'given_up')),
    CONSTRAINT alert_outbox_ended CHECK ((ended_at IS NULL) = (state = 'pending')),
    CONSTRAINT alert_outbox_body_size CHECK (length(body) BETWEEN 1 AND 4096),
    CONSTRAINT alert_outbox_outcome_size CHECK (length(last_outcome) <= 64)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

CREATE INDEX alert_outbox_due ON alert_outbox (next_at) WHERE state = 'pending';
CREATE INDEX alert_outbox_of_customer ON alert_outbox (customer_id, created_at);
