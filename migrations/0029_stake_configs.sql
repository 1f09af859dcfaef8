-- What a stake's address is hashed from, as its worker showed it: a bag of cells. Whoever verifies a keyset needs it,
-- to see the staked key and that it has delegated the receipt key. Null for stakes that enrolled before it was kept,
-- until they enrol again, which is within six hours.

ALTER TABLE stakes ADD COLUMN config bytea;
ALTER TABLE stakes ADD CONSTRAINT stakes_config_size CHECK (length(config) <= 4096) NOT VALID;
