-- A client may ask the operator to agree on what its escrow owes, and then close it at once (PROTOCOL §6, CoClose).

-- `close_asked_at`: from then on nothing is served on the escrow. `agreed_nano` is what it owes in all, and
-- `agreed_signature` the operator's under the terms; a signature cannot be taken back, so neither can they.
ALTER TABLE escrows ADD COLUMN close_asked_at timestamptz;
ALTER TABLE escrows ADD COLUMN agreed_nano bigint;
ALTER TABLE escrows ADD COLUMN agreed_signature bytea;
ALTER TABLE escrows ADD CONSTRAINT escrows_agreed_when_asked CHECK (
    (agreed_nano IS NULL) = (agreed_signature IS NULL) AND (agreed_nano IS NULL OR close_asked_at IS NOT NULL)
) NOT VALID;
ALTER TABLE escrows ADD CONSTRAINT escrows_agreed_is_charged CHECK (agreed_nano = charged_nano) NOT VALID;
ALTER TABLE escrows ADD CONSTRAINT escrows_agreed_signature_form CHECK (length(agreed_signature) = 64) NOT VALID;

CREATE FUNCTION keep_agreed_close() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'what an escrow owes was signed' USING ERRCODE = 'restrict_violation';
END
$$;

CREATE TRIGGER escrows_agreed_for_good BEFORE UPDATE ON escrows FOR EACH ROW
WHEN (
    old.agreed_nano IS NOT NULL AND (
        new.agreed_nano IS DISTINCT FROM old.agreed_nano
        OR new.agreed_signature IS DISTINCT FROM old.agreed_signature
        OR new.close_asked_at IS DISTINCT FROM old.close_asked_at
    )
)
EXECUTE FUNCTION keep_agreed_close();

-- As when a close is requested on the chain: holders of leases give up what is idle.
CREATE TRIGGER escrows_close_asked AFTER UPDATE ON escrows FOR EACH ROW
WHEN (old.close_asked_at IS NULL AND new.close_asked_at IS NOT NULL)
EXECUTE FUNCTION recall_escrow();
