-- What came to a customer and left it other than by charges is read for every statement. Such transfers are a few among
-- the millions that requests make, and an index of only them costs those nothing but a comparison.

-- An index of a partitioned table cannot be built CONCURRENTLY; it reads each partition once, about a second per ten
-- million rows, while writers wait.
-- squawk-ignore require-concurrent-index-creation
CREATE INDEX transfers_border ON transfers (credit_account_id, debit_account_id)
WHERE code IN ('deposit', 'credit', 'reversal', 'loss');
