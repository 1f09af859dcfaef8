-- Organisation -> project -> key, and who changed what.
--
-- An organisation is the customer that pays: its row is the one in `customers`, and its accounts are that customer's.
-- A key belongs to a project for ever, so that every usage row, which names its key, belongs to one as well. The
-- previous release inserts keys that name no project: they fall to the customer's project `default`.

-- NULL is unlimited. Spend limits are nano of charges within a UTC day and a UTC month.
CREATE TABLE projects (
    id uuid PRIMARY KEY,
    customer_id uuid NOT NULL REFERENCES customers (id),
    name text NOT NULL,
    requests_per_min integer,
    tokens_per_min bigint,
    concurrency_max integer,
    spend_day_nano_max bigint,
    spend_month_nano_max bigint,
    archived_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT projects_name_unique UNIQUE (customer_id, name),
    -- What a key's foreign key refers to: its project is one of its customer's.
    CONSTRAINT projects_of_customer UNIQUE (id, customer_id),
    CONSTRAINT projects_name_form CHECK (length(name) BETWEEN 1 AND 128),
    CONSTRAINT projects_default_stays CHECK (name <> 'default' OR archived_at IS NULL),
    CONSTRAINT projects_limits_positive CHECK (
        requests_per_min > 0 AND tokens_per_min > 0 AND concurrency_max > 0
        AND spend_day_nano_max > 0 AND spend_month_nano_max > 0
    )
);

-- The project that takes what names none; made when a customer's first key is.
CREATE FUNCTION default_project(of_customer uuid) RETURNS uuid LANGUAGE plpgsql AS $$
DECLARE
    found uuid;
BEGIN
    INSERT INTO projects (id, customer_id, name) VALUES (gen_random_uuid(), of_customer, 'default')
    ON CONFLICT (customer_id, name) DO NOTHING;
    SELECT id INTO found FROM projects WHERE customer_id = of_customer AND name = 'default';
    RETURN found;
END
$$;

-- `organisation_admin` lets a customer's key manage its own organisation's projects and keys. It is no new role: the
-- previous release would not know it and stop believing any key.
-- `previous_sha256` is the secret before the last rotation, which is believed until `previous_expires_at`;
-- `rotation_id` names that rotation, so that it can be asked for again.
ALTER TABLE api_keys
ADD COLUMN project_id uuid,
ADD COLUMN spend_day_nano_max bigint,
ADD COLUMN spend_month_nano_max bigint,
ADD COLUMN organisation_admin boolean NOT NULL DEFAULT FALSE,
ADD COLUMN previous_sha256 bytea,
ADD COLUMN previous_expires_at timestamptz,
ADD COLUMN rotation_id uuid;

-- The table is as short as the list of keys, and nobody else can write to it before this transaction ends.
UPDATE api_keys SET project_id = default_project(customer_id)
WHERE project_id IS NULL;

-- NOT VALID spares the scan of rows that were written above.
ALTER TABLE api_keys
ADD CONSTRAINT api_keys_has_project CHECK (project_id IS NOT NULL) NOT VALID,
ADD CONSTRAINT api_keys_project_of_customer FOREIGN KEY (project_id, customer_id)
REFERENCES projects (id, customer_id) NOT VALID,
ADD CONSTRAINT api_keys_spend_positive CHECK (spend_day_nano_max > 0 AND spend_month_nano_max > 0) NOT VALID,
ADD CONSTRAINT api_keys_organisation_admin_is_customer CHECK (NOT organisation_admin OR role = 'customer') NOT VALID,
ADD CONSTRAINT api_keys_previous_form CHECK (
    (previous_sha256 IS NULL) = (previous_expires_at IS NULL)
    AND (previous_sha256 IS NULL OR (length(previous_sha256) = 32 AND rotation_id IS NOT NULL))
) NOT VALID;

-- As short as the table.
-- squawk-ignore require-concurrent-index-creation
CREATE INDEX api_keys_of_project ON api_keys (project_id);

CREATE FUNCTION place_key() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    new.project_id := default_project(new.customer_id);
    RETURN new;
END
$$;

CREATE FUNCTION refuse_key_move() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a key stays in its project' USING ERRCODE = 'restrict_violation';
END
$$;

CREATE TRIGGER api_keys_placed BEFORE INSERT ON api_keys
FOR EACH ROW WHEN (new.project_id IS NULL) EXECUTE FUNCTION place_key();

CREATE TRIGGER api_keys_stay BEFORE UPDATE ON api_keys
FOR EACH ROW WHEN (new.project_id IS DISTINCT FROM old.project_id OR new.customer_id <> old.customer_id)
EXECUTE FUNCTION refuse_key_move();

-- A project's limits are part of its keys in memory: whoever follows the keys hears of them key by key.
CREATE FUNCTION notify_project_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('cocoon_keys', id::text) FROM api_keys WHERE project_id = new.id AND revoked_at IS NULL;
    RETURN NULL;
END
$$;

CREATE TRIGGER projects_notify AFTER UPDATE ON projects
FOR EACH ROW WHEN (new.* IS DISTINCT FROM old.*) EXECUTE FUNCTION notify_project_change();

-- Who changed what, written in the transaction of the change. `actor` is the key's id or the account that ran the
-- command; `detail` holds names and limits, never a secret. `customer_id` is the organisation concerned, if one is.
CREATE TABLE audit_log (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    created_at timestamptz NOT NULL DEFAULT now(),
    actor text NOT NULL,
    action text NOT NULL,
    customer_id uuid,
    subject_id uuid NOT NULL,
    detail jsonb NOT NULL DEFAULT '{}',
    CONSTRAINT audit_log_actor_form CHECK (length(actor) BETWEEN 1 AND 160),
    CONSTRAINT audit_log_action_form CHECK (action ~ '^[a-z]{1,32}\.[a-z_]{1,32}$'),
    CONSTRAINT audit_log_detail_size CHECK (length(detail::text) <= 16384)
);

CREATE INDEX audit_log_of_customer ON audit_log (customer_id, id);

CREATE TRIGGER audit_log_insert_only BEFORE UPDATE OR DELETE ON audit_log
FOR EACH ROW EXECUTE FUNCTION refuse_change();
