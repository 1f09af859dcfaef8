-- Workers' stakes. A change is told on the channel `stakes` by a trigger of migration 23.

-- name: register_stake
-- The stake at address $1 is worker $2's: its keyset names it. A stake belongs to whoever enrolled with it last.
INSERT INTO stakes (address, worker_id)
VALUES ($1, $2)
ON CONFLICT (address) DO UPDATE
    SET worker_id = excluded.worker_id
    WHERE stakes.worker_id <> excluded.worker_id;

-- name: list_stakes
SELECT
    address,
    worker_id,
    owner,
    staked_key,
    operator_key,
    unbond_s,
    state,
    bond_nano,
    unbonding_nano,
    unbond_at,
    seen_seqno,
    seen_at
FROM stakes
ORDER BY address;

-- name: update_stake
-- What block $10 showed of stake $1; an older block changes nothing.
UPDATE stakes
SET
    owner = $2,
    staked_key = $3,
    operator_key = $4,
    unbond_s = $5,
    state = $6,
    bond_nano = $7,
    unbonding_nano = $8,
    unbond_at = $9,
    seen_seqno = $10,
    seen_at = $11
WHERE address = $1 AND COALESCE(seen_seqno, 0) <= $10
RETURNING address;

-- name: refuse_stake
-- Stake $1 is none of this network's.
UPDATE stakes SET state = 'refused', bond_nano = 0, unbonding_nano = 0, unbond_at = 0, seen_seqno = $2, seen_at = $3
WHERE address = $1 AND COALESCE(seen_seqno, 0) <= $2
RETURNING address;
