-- The transparency log (RFC 6962): what waits for it, what is in it, and what was signed about it.

-- Entries that wait for their place. `digest` is the envelope's SHA-256. A row is written in the transaction of what it
-- is about, and deleted in the one that gives it its place.
CREATE TABLE log_queue (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    leaf_type smallint NOT NULL,
    digest bytea NOT NULL,
    queued_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT log_queue_once UNIQUE (digest, leaf_type),
    CONSTRAINT log_queue_type_range CHECK (leaf_type BETWEEN 1 AND 255),
    CONSTRAINT log_queue_digest_form CHECK (length(digest) = 32)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

-- What public entries are about. Receipts are not here: theirs belong to customers.
CREATE TABLE log_envelopes (
    leaf_type smallint NOT NULL,
    digest bytea NOT NULL,
    envelope bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (digest, leaf_type),
    CONSTRAINT log_envelopes_type_range CHECK (leaf_type BETWEEN 1 AND 255),
    CONSTRAINT log_envelopes_digest_form CHECK (digest = sha256(envelope)),
    CONSTRAINT log_envelopes_size CHECK (length(envelope) <= 1048576)
);

CREATE TRIGGER log_envelopes_insert_only BEFORE UPDATE OR DELETE ON log_envelopes
FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- The entries in their places, from 0 without a gap.
CREATE TABLE log_leaves (
    leaf_index bigint PRIMARY KEY,
    leaf_type smallint NOT NULL,
    digest bytea NOT NULL,
    CONSTRAINT log_leaves_once UNIQUE (digest, leaf_type),
    CONSTRAINT log_leaves_index_not_negative CHECK (leaf_index >= 0),
    CONSTRAINT log_leaves_type_range CHECK (leaf_type BETWEEN 1 AND 255),
    CONSTRAINT log_leaves_digest_form CHECK (length(digest) = 32)
);

CREATE TRIGGER log_leaves_insert_only BEFORE UPDATE OR DELETE ON log_leaves
FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- Hashes of complete subtrees in rows of up to 256 (C2SP tlog-tiles). Only the last row of a level grows, and only at
-- its end.
CREATE TABLE log_tiles (
    tile_level smallint NOT NULL,
    tile_index bigint NOT NULL,
    content bytea NOT NULL,
    PRIMARY KEY (tile_level, tile_index),
    CONSTRAINT log_tiles_level_range CHECK (tile_level BETWEEN 0 AND 7),
    CONSTRAINT log_tiles_index_not_negative CHECK (tile_index >= 0),
    CONSTRAINT log_tiles_content_form CHECK (length(content) BETWEEN 32 AND 8192 AND length(content) % 32 = 0)
);

-- Hashes do not compress: trying costs every write for nothing.
ALTER TABLE log_tiles ALTER COLUMN content SET STORAGE EXTERNAL;

CREATE FUNCTION refuse_log_rewrite() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' OR substr(NEW.content, 1, length(OLD.content)) <> OLD.content THEN
        RAISE EXCEPTION 'the transparency log is never rewritten' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END
$$;

CREATE TRIGGER log_tiles_grow_only BEFORE UPDATE OR DELETE ON log_tiles
FOR EACH ROW EXECUTE FUNCTION refuse_log_rewrite();

-- The one row says how far the tiles go. Nothing of it is a promise: only what a checkpoint says is.
CREATE TABLE log_tree (
    singleton boolean PRIMARY KEY DEFAULT TRUE,
    size bigint NOT NULL,
    root bytea NOT NULL,
    CONSTRAINT log_tree_singleton CHECK (singleton),
    CONSTRAINT log_tree_size_not_negative CHECK (size >= 0),
    CONSTRAINT log_tree_root_form CHECK (length(root) = 32)
);

INSERT INTO log_tree (size, root) VALUES (0, sha256(''));

-- What was signed (C2SP tlog-checkpoint). `anchored_at` is when the chain confirmed this size and root; no later
-- checkpoint may contradict one that is anchored.
CREATE TABLE log_checkpoints (
    size bigint PRIMARY KEY,
    root bytea NOT NULL,
    note text NOT NULL,
    signed_at timestamptz NOT NULL DEFAULT now(),
    anchored_at timestamptz,
    CONSTRAINT log_checkpoints_size_not_negative CHECK (size >= 0),
    CONSTRAINT log_checkpoints_root_form CHECK (length(root) = 32)
);

CREATE INDEX log_checkpoints_anchored ON log_checkpoints (size) WHERE anchored_at IS NOT NULL;

CREATE TRIGGER log_checkpoints_insert_only BEFORE UPDATE OF size, root, note, signed_at OR DELETE ON log_checkpoints
FOR EACH ROW EXECUTE FUNCTION refuse_change();
