-- Worker keys of wallets. `wallet` is an address in its raw form.

-- name: lock_wallet
-- One proof of a wallet at a time: its first key is made once.
SELECT PG_ADVISORY_XACT_LOCK(HASHTEXTEXTENDED('cocoon/wallet/' || $1::text, 0));

-- name: spend_challenge
-- None when it was used before. It ends by the clock of the process that judged it; an hour more is kept here.
INSERT INTO wallet_proofs (challenge_sha256, wallet, first, expires_at)
VALUES ($1, $2, $3, NOW() + MAKE_INTERVAL(secs => $4::double precision) + interval '1 hour')
ON CONFLICT (challenge_sha256) DO NOTHING
RETURNING challenge_sha256;

-- name: count_proofs
-- Of wallet $1 within a day, and of wallets that had no key before, within an hour.
SELECT
    (
        SELECT COUNT(*) FROM wallet_proofs AS own
        WHERE own.wallet = $1 AND own.proven_at > NOW() - interval '1 day'
    ) AS own,
    (
        SELECT COUNT(*) FROM wallet_proofs AS others
        WHERE others.first AND others.proven_at > NOW() - interval '1 hour'
    ) AS first;

-- name: forget_proofs
-- Neither a challenge that could come again nor a limit needs them any more.
DELETE FROM wallet_proofs
WHERE challenge_sha256 IN (
    SELECT old.challenge_sha256
    FROM wallet_proofs AS old
    WHERE old.expires_at < NOW() AND old.proven_at < NOW() - interval '1 day'
    ORDER BY old.proven_at
    LIMIT 100
    FOR UPDATE SKIP LOCKED
);

-- name: find_wallet_key
SELECT
    id,
    revoked_at
FROM api_keys
WHERE wallet = $1
FOR UPDATE;
