-- Receipts of every answer of an agent, for the customers that paid for them (PROTOCOL §4), and evidence of workers
-- that signed two different ones under one number.

-- One row for an attempt: of several heads the one that the books charge, or the first. `batch_*`, `ticket_*` and
-- `countersignature*` prove ticket and charge under a batch that a gateway signed; they are NULL where no gateway could
-- sign when the receipt came. `entry_digest` is the digest of its entry in the transparency log.
CREATE TABLE receipts (
    day date NOT NULL,
    job_id uuid NOT NULL,
    attempt smallint NOT NULL,
    worker_id uuid NOT NULL,
    customer_id uuid NOT NULL,
    keyset_digest bytea NOT NULL,
    head bytea NOT NULL,
    signature bytea NOT NULL,
    body bytea NOT NULL,
    ticket bytea NOT NULL,
    entry_digest bytea NOT NULL,
    batch_head bytea,
    ticket_index integer,
    ticket_path bytea,
    countersignature bytea,
    countersignature_index integer,
    countersignature_path bytea,
    received_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (day, job_id, attempt),
    CONSTRAINT receipts_attempt_range CHECK (attempt BETWEEN 0 AND 255),
    CONSTRAINT receipts_head_form CHECK (length(head) = 124 AND length(signature) = 64),
    CONSTRAINT receipts_body_size CHECK (length(body) <= 4096),
    CONSTRAINT receipts_ticket_form CHECK (length(ticket) = 125),
    CONSTRAINT receipts_ticket_proven CHECK (
        (batch_head IS NULL) = (ticket_index IS NULL) AND (batch_head IS NULL) = (ticket_path IS NULL)
    ),
    CONSTRAINT receipts_countersignature_proven CHECK (
        (countersignature IS NULL) = (countersignature_index IS NULL)
        AND (countersignature IS NULL) = (countersignature_path IS NULL)
        AND (countersignature IS NULL OR batch_head IS NOT NULL)
    )
) PARTITION BY RANGE (day);

-- The signed batches that their proofs lead to, once for each day of the receipts under them.
CREATE TABLE receipt_batches (
    day date NOT NULL,
    head bytea NOT NULL,
    signature bytea NOT NULL,
    delegation bytea NOT NULL,
    PRIMARY KEY (day, head),
    CONSTRAINT receipt_batches_form CHECK (
        length(head) = 52 AND length(signature) = 64 AND length(delegation) = 152
    )
) PARTITION BY RANGE (day);

-- Which head each number of each receipt key stands for: `slot` is receipt_pk32 and seq8. Not partitioned, because the
-- second head of a number may be of any day.
CREATE TABLE receipt_slots (
    slot bytea PRIMARY KEY,
    head bytea NOT NULL,
    signature bytea NOT NULL,
    day date NOT NULL,
    CONSTRAINT receipt_slots_form CHECK (length(slot) = 40 AND length(head) = 124 AND length(signature) = 64)
);

CREATE INDEX receipt_slots_by_day ON receipt_slots (day);

-- Slashing evidence (PROTOCOL §4a): two heads with one number, both signed by the key in `slot`. One pair is enough.
CREATE TABLE equivocations (
    slot bytea PRIMARY KEY,
    worker_id uuid NOT NULL,
    first_head bytea NOT NULL,
    first_signature bytea NOT NULL,
    second_head bytea NOT NULL,
    second_signature bytea NOT NULL,
    found_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT equivocations_differ CHECK (first_head <> second_head),
    CONSTRAINT equivocations_form CHECK (
        length(slot) = 40 AND length(first_head) = 124 AND length(second_head) = 124
        AND length(first_signature) = 64 AND length(second_signature) = 64
    )
);

CREATE TRIGGER equivocations_insert_only BEFORE UPDATE OR DELETE ON equivocations
FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- As in migration 6: a wider constraint takes the place of a narrower one.
-- squawk-ignore ban-drop-constraint
ALTER TABLE discrepancies DROP CONSTRAINT discrepancies_kind_known;
ALTER TABLE discrepancies ADD CONSTRAINT discrepancies_kind_known CHECK (
    kind IN (
        'over_claim', 'counts_differ', 'client_left', 'broken', 'other_attempt', 'unknown_hold', 'hold_released',
        'unfinished', 'above_hold', 'operator_loss', 'equivocation'
    )
) NOT VALID;

-- As in migration 2, with the tables of this one.
CREATE OR REPLACE FUNCTION ensure_day_partitions(first_day date, last_day date) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    parent text;
    partition text;
    a_day date;
    created integer := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(4848484801);
    FOR a_day IN SELECT generate_series(first_day, last_day, interval '1 day')::date LOOP
        FOREACH parent IN ARRAY ARRAY['transfers', 'usage', 'receipts', 'receipt_batches'] LOOP
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

-- Drop the partitions of receipts before a day; returns how many went. What they prove stays in the log as a digest.
CREATE FUNCTION drop_receipts_before(first_day date) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    partition text;
    dropped integer := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(4848484801);
    FOR partition IN
        SELECT child.relname FROM pg_inherits AS link
        INNER JOIN pg_class AS child ON link.inhrelid = child.oid
        WHERE
            link.inhparent IN ('receipts'::regclass, 'receipt_batches'::regclass)
            AND right(child.relname, 8) < to_char(first_day, 'YYYYMMDD')
    LOOP
        EXECUTE format('DROP TABLE %I', partition);
        dropped := dropped + 1;
    END LOOP;
    RETURN dropped;
END
$$;
