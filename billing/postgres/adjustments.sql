-- Movements that no request makes.

-- name: adjustment_facts
-- The database's time, if there is an organisation $1.
SELECT clock_timestamp() AS now
FROM customers
WHERE id = $1;
