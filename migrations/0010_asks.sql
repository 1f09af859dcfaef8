-- What workers ask for their work: at or below the network's price, which is a ceiling (PROTOCOL §6).

-- Insert-only, as prices are: a ticket, a receipt's stub and a usage row name a version, and whoever reads one later
-- finds the very numbers. Versions of asks and of prices share the 32 bits that a ticket has for them: prices count up
-- from 1, asks from 2^31, so that one number never means both. With `or_ceiling` the worker would rather work at the
-- network's price than not at all where that is the lower one.
CREATE TABLE asks (
    version bigint GENERATED ALWAYS AS IDENTITY (MINVALUE 2147483648 MAXVALUE 4294967295) PRIMARY KEY,
    worker_id uuid NOT NULL,
    model text NOT NULL REFERENCES models (id),
    prompt_nano_per_mtok bigint NOT NULL,
    cached_nano_per_mtok bigint NOT NULL,
    completion_nano_per_mtok bigint NOT NULL,
    or_ceiling boolean NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT asks_not_negative CHECK (
        prompt_nano_per_mtok >= 0 AND completion_nano_per_mtok >= 0
        AND cached_nano_per_mtok BETWEEN 0 AND prompt_nano_per_mtok
    )
);

CREATE INDEX asks_of_worker ON asks (worker_id, model, version);

CREATE TRIGGER asks_insert_only BEFORE UPDATE OR DELETE ON asks
FOR EACH ROW EXECUTE FUNCTION refuse_change();

ALTER TABLE prices ADD CONSTRAINT prices_version_below_asks CHECK (version < 2147483648) NOT VALID;

-- The asks in force, as a JSON array; their versions are rows of `asks`.
ALTER TABLE workers ADD COLUMN asks jsonb NOT NULL DEFAULT '[]';
