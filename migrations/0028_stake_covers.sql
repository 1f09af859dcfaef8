-- What stakes answer for: what gateway processes may dispatch against them, and what their workers earned of late.
--
-- exposure = what is in flight + what was earned within the audit window; it never passes the bond (PROTOCOL §6).

-- What a stake covers, as of the block that was seen last: `bond_nano` has no part of what is unbonding. Nothing where
-- the chain was not seen for as long as unbonding takes, because by now the bond may have left, nor where evidence
-- waits for the chain, because it slashes the whole of it.
CREATE VIEW stake_headroom AS
SELECT
    s.address,
    s.worker_id,
    s.state,
    CASE
        WHEN
            s.state = 'live'
            AND s.seen_at > statement_timestamp() - make_interval(secs => s.unbond_s::double precision)
            AND NOT EXISTS (
                SELECT 1 FROM slash_evidence AS found
                WHERE found.stake = s.address AND found.state IN ('pending', 'too_late')
            )
            THEN s.bond_nano
        ELSE 0
    END AS headroom_nano
FROM stakes AS s;

-- What one process (`holder`) may dispatch against a stake. A row counts against every other holder's until
-- `counts_until`, which is later than the holder itself counts on: tickets of a process that died may still be worked
-- on. `seq` is the holder's: an older claim that arrives late changes nothing.
CREATE TABLE stake_covers (
    address text NOT NULL REFERENCES stakes (address),
    holder uuid NOT NULL,
    amount_nano bigint NOT NULL,
    seq bigint NOT NULL,
    counts_until timestamptz NOT NULL,
    PRIMARY KEY (address, holder),
    CONSTRAINT stake_covers_amount_not_negative CHECK (amount_nano >= 0)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

-- What a stake's worker had earned under it in all at some moments, so that earnings of a window are a difference.
-- `credits_nano` are all credits of the worker's account then: a stake that another worker takes over keeps its sum.
CREATE TABLE stake_earnings (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    address text NOT NULL REFERENCES stakes (address),
    worker_id uuid NOT NULL,
    credits_nano bigint NOT NULL,
    earned_nano bigint NOT NULL,
    marked_at timestamptz NOT NULL DEFAULT statement_timestamp(),
    CONSTRAINT stake_earnings_not_negative CHECK (credits_nano >= 0 AND earned_nano >= 0)
);

CREATE INDEX stake_earnings_of_stake ON stake_earnings (address, id);

-- What stakes' workers have earned in all, and when that was last marked. Under a stake that has no mark nothing was
-- dispatched yet: the first claim makes one.
CREATE VIEW stake_totals AS
SELECT
    s.address,
    s.worker_id,
    mark.marked_at,
    mark.worker_id AS marked_worker_id,
    coalesce(payable.credits_posted, 0)::bigint AS credits_nano,
    coalesce(mark.earned_nano, 0)
    + CASE
        WHEN mark.worker_id = s.worker_id THEN coalesce(payable.credits_posted, 0)::bigint - mark.credits_nano
        ELSE 0
    END AS earned_nano
FROM stakes AS s
LEFT JOIN accounts AS payable
    ON s.worker_id = payable.owner AND payable.kind = 'worker_payable' AND payable.asset = 'TON'
LEFT JOIN LATERAL (
    SELECT
        m.marked_at,
        m.worker_id,
        m.credits_nano,
        m.earned_nano
    FROM stake_earnings AS m
    WHERE m.address = s.address
    ORDER BY m.id DESC
    LIMIT 1
) AS mark ON TRUE;

-- What was earned under a stake within so many seconds. Marks lie apart, so it may be the earnings of a little longer,
-- never of less; where nobody marked for a while, of as long.
CREATE FUNCTION stake_earned_within(stake text, seconds double precision) RETURNS bigint LANGUAGE sql STABLE AS $$
SELECT
    total.earned_nano - coalesce(
        (
            SELECT m.earned_nano FROM stake_earnings AS m
            WHERE m.address = stake AND m.marked_at <= statement_timestamp() - make_interval(secs => seconds)
            ORDER BY m.id DESC LIMIT 1
        ),
        (SELECT m.earned_nano FROM stake_earnings AS m WHERE m.address = stake ORDER BY m.id LIMIT 1),
        0
    )
FROM stake_totals AS total
WHERE total.address = stake
$$;
