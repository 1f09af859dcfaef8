-- What is sold and at which price. Prices are nano per million tokens, versioned and insert-only: a job keeps the
-- version that it was quoted.

CREATE TABLE models (
    id text PRIMARY KEY,
    context_tokens integer NOT NULL,
    default_max_completion integer NOT NULL DEFAULT 4096,
    template_tokens_per_message integer NOT NULL DEFAULT 16,
    base_tokens integer NOT NULL DEFAULT 64,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT models_id_form CHECK (id ~ '^[A-Za-z0-9][A-Za-z0-9._/:-]{0,127}$'),
    CONSTRAINT models_tokens_range CHECK (
        context_tokens >= 1 AND default_max_completion >= 1 AND template_tokens_per_message >= 0 AND base_tokens >= 0
    )
);

CREATE TABLE prices (
    model text NOT NULL REFERENCES models (id),
    version bigint NOT NULL,
    asset text NOT NULL DEFAULT 'TON',
    prompt_nano_per_mtok bigint NOT NULL,
    cached_nano_per_mtok bigint NOT NULL,
    completion_nano_per_mtok bigint NOT NULL,
    share_bps smallint NOT NULL,
    effective_from timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (model, version),
    -- A version travels in a ticket as an unsigned 32-bit integer.
    CONSTRAINT prices_version_range CHECK (version BETWEEN 1 AND 4294967295),
    CONSTRAINT prices_not_negative CHECK (
        prompt_nano_per_mtok >= 0 AND completion_nano_per_mtok >= 0
        AND cached_nano_per_mtok BETWEEN 0 AND prompt_nano_per_mtok
    ),
    CONSTRAINT prices_share_range CHECK (share_bps BETWEEN 0 AND 10000)
);

CREATE TRIGGER prices_insert_only BEFORE UPDATE OR DELETE ON prices
FOR EACH ROW EXECUTE FUNCTION refuse_change();
