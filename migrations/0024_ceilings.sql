-- What is served to a customer with escrows before its client has signed for it.

-- `unsigned_max_nano`: how far charges and leases may go beyond the highest session voucher (PROTOCOL §6).
ALTER TABLE escrow_customers ADD COLUMN unsigned_max_nano bigint NOT NULL DEFAULT 500000000;
ALTER TABLE escrow_customers ADD CONSTRAINT escrow_customers_unsigned_range CHECK (unsigned_max_nano >= 0) NOT VALID;

-- A close request freezes admission: holders of leases are asked to give up what is idle, as when credit is short.
CREATE FUNCTION recall_escrow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('cocoon_recall', NEW.customer_id::text || ' escrow');
    RETURN NEW;
END
$$;

CREATE TRIGGER escrows_closing AFTER UPDATE ON escrows FOR EACH ROW
WHEN (old.state IS DISTINCT FROM new.state AND new.state IN ('closing', 'closed'))
EXECUTE FUNCTION recall_escrow();
