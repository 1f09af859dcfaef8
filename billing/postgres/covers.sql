-- What gateway processes may dispatch against stakes. Claims of one stake are decided one after the other, under a lock
-- on its row; every statement after the first sees what the claim before it did.

-- name: read_headroom
-- What stakes $1 cover, as of the last block.
SELECT
    address,
    worker_id,
    state,
    headroom_nano
FROM stake_headroom
WHERE address = ANY($1::text[]);

-- name: lock_stakes
SELECT address
FROM stakes
WHERE address = ANY($1::text[])
ORDER BY address
FOR NO KEY UPDATE;

-- name: mark_earnings
-- A mark for each of stakes $1 that has none of the last $2 seconds, or whose worker is another than then.
INSERT INTO stake_earnings (address, worker_id, credits_nano, earned_nano)
SELECT
    address,
    worker_id,
    credits_nano,
    earned_nano
FROM stake_totals
WHERE
    address = ANY($1::text[])
    AND (
        marked_at IS NULL OR marked_worker_id <> worker_id
        OR marked_at <= STATEMENT_TIMESTAMP() - MAKE_INTERVAL(secs => $2::double precision)
    )
RETURNING address;

-- name: forget_earnings
-- Marks of stakes $1 that say nothing any more: a later one is older than $2 seconds, too.
DELETE FROM stake_earnings AS old
WHERE
    old.address = ANY($1::text[])
    AND EXISTS (
        SELECT 1 FROM stake_earnings AS newer
        WHERE
            newer.address = old.address AND newer.id > old.id
            AND newer.marked_at <= STATEMENT_TIMESTAMP() - MAKE_INTERVAL(secs => $2::double precision)
    );

-- name: forget_covers
DELETE FROM stake_covers
WHERE address = ANY($1::text[]) AND counts_until <= STATEMENT_TIMESTAMP();

-- name: claim_covers
-- Holder $1's claims, of number $2: stakes $3, of which it uses $4, keeps $5 until it hears the answer, and wants $6
-- beyond what it uses. What is granted counts for $7 seconds; earnings of the last $8 seconds are exposed. Nobody who
-- uses a stake less than it wants keeps more of it than an eighth of what is free.
WITH asked AS (
    SELECT
        entry.address,
        entry.used_nano,
        entry.kept_nano,
        entry.wanted_nano
    FROM UNNEST($3::text[], $4::bigint[], $5::bigint[], $6::bigint[])
        AS entry (address, used_nano, kept_nano, wanted_nano)
),

rest AS (
    SELECT
        asked.address,
        asked.used_nano,
        asked.kept_nano,
        asked.wanted_nano,
        GREATEST(
            0,
            room.headroom_nano
            - STAKE_EARNED_WITHIN(asked.address, $8::double precision)
            - asked.used_nano
            - (
                SELECT COALESCE(SUM(other.amount_nano), 0)
                FROM stake_covers AS other
                WHERE
                    other.address = asked.address AND other.holder <> $1::uuid
                    AND other.counts_until > STATEMENT_TIMESTAMP()
            )
        )::bigint AS free_nano
    FROM asked
    INNER JOIN stake_headroom AS room ON asked.address = room.address
),

granted AS (
    SELECT
        rest.address,
        rest.kept_nano,
        rest.used_nano + LEAST(rest.free_nano, GREATEST(rest.wanted_nano, rest.free_nano / 8)) AS amount_nano
    FROM rest
),

kept AS (
    INSERT INTO stake_covers (address, holder, amount_nano, seq, counts_until)
    SELECT
        granted.address,
        $1::uuid AS holder,
        GREATEST(granted.amount_nano, granted.kept_nano) AS amount_nano,
        $2::bigint AS seq,
        STATEMENT_TIMESTAMP() + MAKE_INTERVAL(secs => $7::double precision) AS counts_until
    FROM granted
    ON CONFLICT (address, holder) DO UPDATE
        SET amount_nano = excluded.amount_nano, seq = excluded.seq, counts_until = excluded.counts_until
        WHERE stake_covers.seq < excluded.seq
    RETURNING address
)

SELECT
    granted.address,
    granted.amount_nano
FROM granted
INNER JOIN kept ON granted.address = kept.address;

-- name: drop_covers
-- Holder $1 uses nothing of stakes $2, and never will again.
DELETE FROM stake_covers
WHERE holder = $1 AND address = ANY($2::text[]);

-- name: list_exposures
-- Every stake, with what is exposed under it: earnings of the last $1 seconds, and what processes hold for dispatches.
SELECT
    s.address,
    s.worker_id,
    named.name,
    room.state,
    s.bond_nano,
    s.unbonding_nano,
    room.headroom_nano,
    STAKE_EARNED_WITHIN(s.address, $1::double precision) AS earned_nano,
    (
        SELECT COALESCE(SUM(one.amount_nano), 0)::bigint
        FROM stake_covers AS one
        WHERE one.address = s.address AND one.counts_until > STATEMENT_TIMESTAMP()
    ) AS covered_nano
FROM stakes AS s
INNER JOIN stake_headroom AS room ON s.address = room.address
LEFT JOIN workers AS named ON s.worker_id = named.worker_id
ORDER BY named.name, s.address;
