-- API keys and enrolled workers. Replicas keep both in memory and follow changes by NOTIFY.

-- Only the SHA-256 of a key is stored; `prefix` is its first characters, for people to recognise it by.
CREATE TABLE api_keys (
    id uuid PRIMARY KEY,
    customer_id uuid NOT NULL REFERENCES customers (id),
    name text NOT NULL,
    sha256 bytea NOT NULL CONSTRAINT api_keys_sha256_unique UNIQUE,
    prefix text NOT NULL,
    role text NOT NULL,
    requests_per_min integer,
    tokens_per_min bigint,
    concurrency_max integer,
    allowed_models text[],
    cors_origins text[] NOT NULL DEFAULT '{}',
    expires_at timestamptz,
    revoked_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT api_keys_name_form CHECK (length(name) BETWEEN 1 AND 128),
    CONSTRAINT api_keys_sha256_form CHECK (length(sha256) = 32),
    CONSTRAINT api_keys_prefix_form CHECK (length(prefix) <= 20),
    CONSTRAINT api_keys_role_known CHECK (role IN ('customer', 'admin', 'worker')),
    -- NULL is unlimited; a limit of zero would be a revoked key in disguise.
    CONSTRAINT api_keys_limits_positive CHECK (
        requests_per_min > 0 AND tokens_per_min > 0 AND concurrency_max > 0
    )
);

CREATE UNIQUE INDEX api_keys_live_name ON api_keys (customer_id, name) WHERE revoked_at IS NULL;

CREATE FUNCTION notify_key_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('cocoon_keys', coalesce(new.id, old.id)::text);
    RETURN NULL;
END
$$;

CREATE TRIGGER api_keys_notify AFTER INSERT OR UPDATE OR DELETE ON api_keys
FOR EACH ROW EXECUTE FUNCTION notify_key_change();

-- `models` is the list of served models as enrolled; `keyset` the exact bytes that `keyset_digest` names.
CREATE TABLE workers (
    worker_id uuid PRIMARY KEY,
    key_id uuid NOT NULL REFERENCES api_keys (id),
    name text NOT NULL,
    url text NOT NULL,
    models jsonb NOT NULL,
    capacity integer NOT NULL,
    engine text NOT NULL,
    tee_type text NOT NULL,
    keyset bytea NOT NULL,
    keyset_digest bytea NOT NULL,
    enrolled_at timestamptz NOT NULL DEFAULT now(),
    state text NOT NULL DEFAULT 'enrolled',
    CONSTRAINT workers_name_per_key UNIQUE (key_id, name),
    CONSTRAINT workers_capacity_range CHECK (capacity BETWEEN 1 AND 4096),
    CONSTRAINT workers_digest_form CHECK (length(keyset_digest) = 32),
    CONSTRAINT workers_state_known CHECK (state IN ('enrolled', 'removed'))
);

CREATE FUNCTION notify_worker_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('cocoon_workers', coalesce(new.worker_id, old.worker_id)::text);
    RETURN NULL;
END
$$;

CREATE TRIGGER workers_notify AFTER INSERT OR UPDATE OR DELETE ON workers
FOR EACH ROW EXECUTE FUNCTION notify_worker_change();
