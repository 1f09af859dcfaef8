-- Day partitions; the function is part of migration 2.

-- name: ensure_day_partitions
-- From $1 days back to $2 days ahead of the database's UTC day; returns how many were created.
SELECT ensure_day_partitions(
    (now() AT TIME ZONE 'utc')::date - $1::integer, (now() AT TIME ZONE 'utc')::date + $2::integer
);
