-- Workers that are kept out of rotation because they claimed more than they were owed, again and again.
--
-- A row is never removed: a lifted one says since when a worker's earlier claims count no more.
CREATE TABLE worker_suspensions (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    worker_id uuid NOT NULL,
    offences integer NOT NULL,
    suspended_at timestamptz NOT NULL DEFAULT now(),
    lifted_at timestamptz,
    lifted_reason text,
    CONSTRAINT worker_suspensions_offences_positive CHECK (offences > 0),
    CONSTRAINT worker_suspensions_lifted_with_reason CHECK ((lifted_at IS NULL) = (lifted_reason IS NULL)),
    CONSTRAINT worker_suspensions_reason_form CHECK (length(lifted_reason) BETWEEN 1 AND 512)
);

CREATE UNIQUE INDEX worker_suspensions_open ON worker_suspensions (worker_id) WHERE lifted_at IS NULL;
CREATE INDEX worker_suspensions_of_worker ON worker_suspensions (worker_id, lifted_at);
