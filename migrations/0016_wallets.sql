-- Worker keys that a wallet's owner got by proving it, and the proofs that were accepted.

-- The wallet's address in its raw form; NULL for a key that an operator of the network made by hand.
ALTER TABLE api_keys ADD COLUMN wallet text;

-- NOT VALID spares the scan: no row has one yet.
ALTER TABLE api_keys
ADD CONSTRAINT api_keys_wallet_form CHECK (
    wallet IS NULL OR (wallet ~ '^(0|-1):[0-9a-f]{64}$' AND role = 'worker')
) NOT VALID;

-- One key for each wallet, revoked or not: a revoked one bars its wallet. As short as the list of keys.
-- squawk-ignore require-concurrent-index-creation
CREATE UNIQUE INDEX api_keys_of_wallet ON api_keys (wallet) WHERE wallet IS NOT NULL;

-- A challenge is accepted once; `first` proofs made a key, others gave it a new secret.
CREATE TABLE wallet_proofs (
    challenge_sha256 bytea PRIMARY KEY,
    wallet text NOT NULL,
    first boolean NOT NULL,
    proven_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    CONSTRAINT wallet_proofs_digest_form CHECK (length(challenge_sha256) = 32)
);

CREATE INDEX wallet_proofs_of_wallet ON wallet_proofs (wallet, proven_at);
CREATE INDEX wallet_proofs_by_age ON wallet_proofs (proven_at);
