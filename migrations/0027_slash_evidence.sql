-- Evidence that costs a stake (PROTOCOL §4), whole as its contract takes it: no other row is needed to prove it, so
-- that nothing that is dropped with time takes it away. It is never deleted: it holds as long as anything is bonded.

-- `slot` is the receipt key and the number of the head that came last, `job_id` and `attempt` what that was for; one
-- row is enough for each slot and kind. `evidence` is the cell as a bag. States:
--   pending    to be submitted as soon as something is bonded that the biller has seen
--   slashed    the stake is slashed, by this or by other evidence
--   too_late   too little is bonded to be worth a message; pending again when more is
--   refused    the contract would refuse it, or did; `detail` says why
CREATE TABLE slash_evidence (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    stake text NOT NULL,
    worker_id uuid NOT NULL,
    kind text NOT NULL,
    slot bytea NOT NULL,
    job_id uuid NOT NULL,
    attempt smallint NOT NULL,
    evidence bytea NOT NULL,
    state text NOT NULL DEFAULT 'pending',
    detail text NOT NULL DEFAULT '',
    staked_nano bigint,
    created_at timestamptz NOT NULL DEFAULT now(),
    submitted_at timestamptz,
    closed_at timestamptz,
    CONSTRAINT slash_evidence_once UNIQUE (slot, kind),
    CONSTRAINT slash_evidence_stake_form CHECK (stake ~ '^0:[0-9a-f]{64}$'),
    CONSTRAINT slash_evidence_kind_known CHECK (kind IN ('equivocation', 'over_use')),
    CONSTRAINT slash_evidence_slot_form CHECK (length(slot) = 40),
    CONSTRAINT slash_evidence_size CHECK (length(evidence) <= 8192 AND length(detail) <= 256),
    CONSTRAINT slash_evidence_state_known CHECK (state IN ('pending', 'slashed', 'too_late', 'refused')),
    CONSTRAINT slash_evidence_closed CHECK ((closed_at IS NULL) = (state = 'pending')),
    CONSTRAINT slash_evidence_staked CHECK (staked_nano >= 0)
);

COMMENT ON COLUMN slash_evidence.staked_nano IS 'What was bonded and unbonding when it was last seen whole, in nano.';

CREATE INDEX slash_evidence_pending ON slash_evidence (stake) WHERE state = 'pending';

-- Whoever routes by stakes hears of this as of every change of a stake.
CREATE FUNCTION tell_slash_evidence() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('stakes', NEW.stake);
    RETURN NEW;
END
$$;

CREATE TRIGGER slash_evidence_added AFTER INSERT ON slash_evidence
FOR EACH ROW EXECUTE FUNCTION tell_slash_evidence();

CREATE TRIGGER slash_evidence_changed AFTER UPDATE ON slash_evidence
FOR EACH ROW WHEN (old.state <> new.state) EXECUTE FUNCTION tell_slash_evidence();
