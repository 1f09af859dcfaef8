-- The transparency log: queue, leaves, tiles, checkpoints.

-- name: keep_envelope
INSERT INTO log_envelopes (leaf_type, digest, envelope) VALUES ($1::smallint, $2::bytea, $3::bytea)
ON CONFLICT (digest, leaf_type) DO NOTHING;

-- name: read_envelope
SELECT envelope FROM log_envelopes
WHERE digest = $1::bytea AND leaf_type = $2::smallint;

-- name: enqueue
-- Digests $2 of type $1 that are neither queued nor in the log.
INSERT INTO log_queue (leaf_type, digest)
SELECT
    $1::smallint,
    asked.digest
FROM UNNEST($2::bytea[]) WITH ORDINALITY AS asked (digest, place)
LEFT JOIN log_leaves AS placed ON asked.digest = placed.digest AND placed.leaf_type = $1::smallint
WHERE placed.leaf_index IS NULL
ORDER BY asked.place
ON CONFLICT (digest, leaf_type) DO NOTHING;

-- name: take_queued
-- The oldest $1 queued entries. `is_placed`: it was queued a second time in the moment that it got its place.
SELECT
    queued.id,
    queued.leaf_type,
    queued.digest,
    placed.leaf_index IS NOT NULL AS is_placed
FROM log_queue AS queued
LEFT JOIN log_leaves AS placed ON queued.digest = placed.digest AND queued.leaf_type = placed.leaf_type
ORDER BY queued.id
LIMIT $1;

-- name: delete_queued
DELETE FROM log_queue
WHERE id = ANY($1::bigint[]);

-- name: insert_leaves
-- Entries in the places from $1 on.
INSERT INTO log_leaves (leaf_index, leaf_type, digest)
SELECT
    $1::bigint + placed.place - 1,
    placed.leaf_type,
    placed.digest
FROM UNNEST($2::smallint[], $3::bytea[]) WITH ORDINALITY AS placed (leaf_type, digest, place);

-- name: put_tiles
INSERT INTO log_tiles (tile_level, tile_index, content)
SELECT
    changed.tile_level,
    changed.tile_index,
    changed.content
FROM UNNEST($1::smallint[], $2::bigint[], $3::bytea[]) AS changed (tile_level, tile_index, content)
ON CONFLICT (tile_level, tile_index) DO UPDATE SET content = excluded.content;

-- name: read_tiles
SELECT
    stored.tile_level,
    stored.tile_index,
    stored.content
FROM UNNEST($1::smallint[], $2::bigint[]) AS asked (tile_level, tile_index)
INNER JOIN log_tiles AS stored ON asked.tile_level = stored.tile_level AND asked.tile_index = stored.tile_index;

-- name: read_tree
SELECT
    size,
    root
FROM log_tree;

-- name: grow_tree
-- From size $1 to size $2 with root $3; no row when somebody else has grown it.
UPDATE log_tree SET size = $2::bigint, root = $3::bytea
WHERE size = $1::bigint
RETURNING size;

-- name: read_checkpoint
-- The last one signed.
SELECT
    size,
    root,
    note
FROM log_checkpoints
ORDER BY size DESC
LIMIT 1;

-- name: read_anchored
-- The last one that the chain knows.
SELECT
    size,
    root,
    note
FROM log_checkpoints
WHERE anchored_at IS NOT NULL
ORDER BY size DESC
LIMIT 1;

-- name: insert_checkpoint
INSERT INTO log_checkpoints (size, root, note) VALUES ($1::bigint, $2::bytea, $3::text);

-- name: find_leaf
SELECT leaf_index FROM log_leaves
WHERE digest = $1::bytea AND leaf_type = $2::smallint;

-- name: read_leaves
-- The entries from $1 on, before $2.
SELECT
    leaf_type,
    digest
FROM log_leaves
WHERE leaf_index >= $1::bigint AND leaf_index < $2::bigint
ORDER BY leaf_index;

-- name: try_lead
SELECT PG_TRY_ADVISORY_LOCK($1::bigint) AS leads;
