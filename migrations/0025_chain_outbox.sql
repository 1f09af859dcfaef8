-- What shall happen on the chain once: messages of the operator's wallet, and the signed bodies that carry them. A body
-- is stored before it is broadcast; at most one of a wallet is open, and none has the seqno of one that was executed.
-- 'expired' is one that can never be executed: the chain is past its time, or its seqno was used by something else.
CREATE TABLE chain_outbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    wallet text NOT NULL CHECK (wallet ~ '^(0|-1):[0-9a-f]{64}$'),
    seqno bigint NOT NULL CHECK (seqno >= 0),
    -- Unix seconds of the chain.
    valid_until bigint NOT NULL CHECK (valid_until > 0),
    boc bytea NOT NULL,
    state text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'executed', 'expired')),
    -- The logical time of the wallet's transaction.
    lt bigint,
    stored_at timestamptz NOT NULL DEFAULT now(),
    closed_at timestamptz,
    CHECK ((state = 'executed') = (lt IS NOT NULL)),
    CHECK ((state = 'open') = (closed_at IS NULL))
);
CREATE UNIQUE INDEX chain_outbox_one_open ON chain_outbox (wallet) WHERE state = 'open';
CREATE UNIQUE INDEX chain_outbox_seqno ON chain_outbox (wallet, seqno) WHERE state <> 'expired';

CREATE TABLE chain_intents (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    wallet text NOT NULL CHECK (wallet ~ '^(0|-1):[0-9a-f]{64}$'),
    key text NOT NULL CHECK (length(key) BETWEEN 1 AND 200),
    -- The message as the wallet sends it, a bag of cells.
    message bytea NOT NULL,
    -- The open body that it is in, or the executed one that delivered it; none while it waits.
    body_id bigint REFERENCES chain_outbox (id),
    -- Where it stands in that body.
    place integer,
    delivered_lt bigint,
    attempts integer NOT NULL DEFAULT 0,
    queued_at timestamptz NOT NULL DEFAULT now(),
    delivered_at timestamptz,
    UNIQUE (wallet, key),
    CHECK ((delivered_lt IS NULL) = (delivered_at IS NULL)),
    CHECK ((body_id IS NULL) = (place IS NULL)),
    CHECK (delivered_lt IS NULL OR body_id IS NOT NULL)
);
CREATE INDEX chain_intents_queued ON chain_intents (wallet, id) WHERE body_id IS NULL;
CREATE INDEX chain_intents_body ON chain_intents (body_id) WHERE body_id IS NOT NULL;
