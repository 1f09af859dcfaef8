-- Receipts as the second copy of usage: what was recovered from them, and where they contradict the books.

-- What the network pays for itself: charges that a customer could no longer cover when they were recovered.
--
-- Each constraint is replaced by a wider one in the same transaction, so that clients lose no guarantee; NOT VALID
-- spares the scan of rows that have passed the narrower one.
-- squawk-ignore ban-drop-constraint
ALTER TABLE accounts DROP CONSTRAINT accounts_kind_known;
ALTER TABLE accounts ADD CONSTRAINT accounts_kind_known CHECK (
    kind IN (
        'customer_available', 'customer_leased', 'lease_recovery', 'worker_payable', 'payout_in_flight',
        'network_revenue', 'rounding', 'escrow_asset', 'stake_memo', 'suspense', 'operator_loss'
    )
) NOT VALID;

-- squawk-ignore ban-drop-constraint
ALTER TABLE accounts DROP CONSTRAINT accounts_network_has_no_owner;
ALTER TABLE accounts ADD CONSTRAINT accounts_network_has_no_owner CHECK (
    (owner IS NULL) = (kind IN ('network_revenue', 'rounding', 'suspense', 'operator_loss'))
) NOT VALID;

-- A loss is what was given away: it has no credit side to overdraw.
-- squawk-ignore ban-drop-constraint
ALTER TABLE accounts DROP CONSTRAINT accounts_credit_not_overdrawn;
ALTER TABLE accounts ADD CONSTRAINT accounts_credit_not_overdrawn CHECK (
    kind IN ('escrow_asset', 'suspense', 'operator_loss') OR debits_posted + debits_pending <= credits_posted
) NOT VALID;

INSERT INTO accounts (kind, owner, asset) VALUES ('operator_loss', NULL, 'TON');

-- One row for one job that was charged from its receipt after its hold had expired. `drawn_nano` came from the
-- customer's available credit (transfer `drawn_id`), `lost_nano` from the operator (transfer `lost_id`); together they
-- are the charge of the usage row. Ticket and body are kept: with the usage row's head they are the proof.
CREATE TABLE recoveries (
    day date NOT NULL,
    job_id uuid NOT NULL,
    attempt smallint NOT NULL,
    hold_id uuid NOT NULL,
    worker_id uuid NOT NULL,
    customer_id uuid NOT NULL,
    drawn_nano bigint NOT NULL,
    lost_nano bigint NOT NULL,
    drawn_id uuid,
    lost_id uuid,
    ticket bytea NOT NULL,
    receipt_body bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (day, job_id),
    CONSTRAINT recoveries_attempt_range CHECK (attempt BETWEEN 0 AND 255),
    CONSTRAINT recoveries_amounts_not_negative CHECK (drawn_nano >= 0 AND lost_nano >= 0),
    CONSTRAINT recoveries_drawn_has_transfer CHECK ((drawn_nano > 0) = (drawn_id IS NOT NULL)),
    CONSTRAINT recoveries_lost_has_transfer CHECK ((lost_nano > 0) = (lost_id IS NOT NULL)),
    CONSTRAINT recoveries_ticket_form CHECK (length(ticket) = 125)
);

CREATE TRIGGER recoveries_insert_only BEFORE UPDATE OR DELETE ON recoveries
FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- An authentic receipt that says something else than the books, with both sides' numbers. `booked_*` is the usage row
-- (NULL without one), `claimed_*` the receipt before any cap, `claimed_nano` its price rounded up. The first receipt
-- of each kind for an attempt is kept, so that a worker cannot fill the table.
CREATE TABLE discrepancies (
    day date NOT NULL,
    job_id uuid NOT NULL,
    attempt smallint NOT NULL,
    kind text NOT NULL,
    worker_id uuid NOT NULL,
    customer_id uuid NOT NULL,
    against_worker boolean NOT NULL,
    booked_attempt smallint,
    booked_prompt_tokens bigint,
    booked_cached_tokens bigint,
    booked_completion_tokens bigint,
    booked_nano bigint,
    claimed_prompt_tokens bigint NOT NULL,
    claimed_cached_tokens bigint NOT NULL,
    claimed_completion_tokens bigint NOT NULL,
    claimed_nano numeric(39, 0) NOT NULL,
    receipt_head bytea NOT NULL,
    receipt_signature bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (day, job_id, attempt, kind),
    CONSTRAINT discrepancies_kind_known CHECK (
        kind IN (
            'over_claim', 'counts_differ', 'client_left', 'broken', 'other_attempt', 'unknown_hold', 'hold_released',
            'unfinished', 'above_hold', 'operator_loss'
        )
    )
);

CREATE INDEX discrepancies_against_worker ON discrepancies (worker_id, created_at) WHERE against_worker;

CREATE TRIGGER discrepancies_insert_only BEFORE UPDATE OR DELETE ON discrepancies
FOR EACH ROW EXECUTE FUNCTION refuse_change();
