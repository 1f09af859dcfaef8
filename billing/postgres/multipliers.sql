-- What single customers pay of the prices.

-- name: read_multipliers
-- Those in force now that change anything.
SELECT
    latest.customer_id,
    latest.customer_bps
FROM (
    SELECT DISTINCT ON (customer_multipliers.customer_id)
        customer_multipliers.customer_id,
        customer_multipliers.customer_bps
    FROM customer_multipliers
    WHERE customer_multipliers.effective_from <= NOW()
    ORDER BY
        customer_multipliers.customer_id ASC, customer_multipliers.effective_from DESC,
        customer_multipliers.version DESC
) AS latest
WHERE latest.customer_bps <> 10000;

-- name: list_multipliers
SELECT
    customers.name,
    customer_multipliers.customer_id,
    customer_multipliers.version,
    customer_multipliers.customer_bps,
    customer_multipliers.effective_from
FROM customer_multipliers
INNER JOIN customers ON customer_multipliers.customer_id = customers.id
ORDER BY customers.name ASC, customer_multipliers.version ASC;

-- name: lock_customer
-- Versions of one customer are numbered one after the other.
SELECT customers.id
FROM customers
WHERE customers.name = $1
FOR NO KEY UPDATE;

-- name: highest_share
-- The largest part of a price that a worker has, now or in a version that is still to come.
WITH now_in_force AS (
    SELECT
        in_force.model,
        MAX(in_force.effective_from) AS since
    FROM prices AS in_force
    WHERE in_force.effective_from <= NOW()
    GROUP BY in_force.model
)

SELECT COALESCE(MAX(prices.share_bps), 0) AS share_bps
FROM prices
LEFT JOIN now_in_force ON prices.model = now_in_force.model
WHERE now_in_force.since IS NULL OR prices.effective_from >= now_in_force.since;

-- name: add_multiplier
-- The next version for customer $1, from $3 or from now on.
INSERT INTO customer_multipliers (customer_id, version, customer_bps, effective_from)
SELECT
    $1 AS customer_id,
    COALESCE(MAX(customer_multipliers.version), 0) + 1 AS version,
    $2 AS customer_bps,
    COALESCE($3, NOW()) AS effective_from
FROM customer_multipliers
WHERE customer_multipliers.customer_id = $1
RETURNING version, effective_from;
