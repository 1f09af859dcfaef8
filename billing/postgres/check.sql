-- The books' invariants. Each statement returns the rows that break it: what, expected, actual. None is the goal.

-- name: debits_equal_credits
SELECT
    'asset ' || asset AS subject,
    SUM(debits_posted + debits_pending) AS expected,
    SUM(credits_posted + credits_pending) AS actual
FROM accounts
GROUP BY asset
HAVING SUM(debits_posted) <> SUM(credits_posted) OR SUM(debits_pending) <> SUM(credits_pending);

-- name: counters_equal_transfers
-- What the transfers of an account add up to, against its four counters.
WITH resolved AS (
    SELECT
        resolution.phase,
        resolution.amount,
        pending.amount AS reserved,
        pending.debit_account_id,
        pending.credit_account_id
    FROM transfers AS pending
    LEFT JOIN transfers AS resolution
        ON pending.day = resolution.day AND pending.id = resolution.pending_id
    WHERE pending.phase = 'pending'
),

movements AS (
    SELECT
        debit_account_id,
        credit_account_id,
        amount AS posted,
        0 AS pending
    FROM transfers
    WHERE phase = 'single'
    UNION ALL
    SELECT
        debit_account_id,
        credit_account_id,
        CASE WHEN phase = 'post' THEN amount ELSE 0 END AS posted,
        CASE WHEN phase IS NULL THEN reserved ELSE 0 END AS pending
    FROM resolved
),

sides AS (
    SELECT
        debit_account_id AS account_id,
        posted AS debits_posted,
        0 AS credits_posted,
        pending AS debits_pending,
        0 AS credits_pending
    FROM movements
    UNION ALL
    SELECT
        credit_account_id AS account_id,
        0 AS debits_posted,
        posted AS credits_posted,
        0 AS debits_pending,
        pending AS credits_pending
    FROM movements
),

sums AS (
    SELECT
        account_id,
        SUM(debits_posted) AS debits_posted,
        SUM(credits_posted) AS credits_posted,
        SUM(debits_pending) AS debits_pending,
        SUM(credits_pending) AS credits_pending
    FROM sides
    GROUP BY account_id
),

counters AS (
    SELECT
        COALESCE(accounts.id, sums.account_id) AS account_id,
        COALESCE(accounts.kind, 'no such account') AS kind,
        UNNEST(ARRAY['debits_posted', 'credits_posted', 'debits_pending', 'credits_pending']) AS counter,
        UNNEST(ARRAY[
            COALESCE(sums.debits_posted, 0), COALESCE(sums.credits_posted, 0),
            COALESCE(sums.debits_pending, 0), COALESCE(sums.credits_pending, 0)
        ]) AS expected,
        UNNEST(ARRAY[
            COALESCE(accounts.debits_posted, 0), COALESCE(accounts.credits_posted, 0),
            COALESCE(accounts.debits_pending, 0), COALESCE(accounts.credits_pending, 0)
        ]) AS actual
    FROM accounts
    FULL JOIN sums ON accounts.id = sums.account_id
)

SELECT
    expected,
    actual,
    kind || ' ' || account_id || ' ' || counter AS subject
FROM counters
WHERE expected <> actual;

-- name: no_customer_below_zero
SELECT
    0 AS expected,
    'customer ' || owner AS subject,
    credits_posted - debits_posted - debits_pending AS actual
FROM accounts
WHERE
    kind IN ('customer_available', 'customer_leased', 'lease_recovery')
    AND credits_posted - debits_posted - debits_pending < 0;

-- name: usage_equals_transfers
-- By day and party: what the usage rows say was charged, shared and kept, against the legs that moved it.
WITH claimed AS (
    SELECT
        day,
        asset,
        'charge' AS code,
        customer_id AS party,
        SUM(charge_nano) AS amount
    FROM usage
    GROUP BY day, asset, customer_id
    UNION ALL
    SELECT
        day,
        asset,
        'share' AS code,
        worker_id AS party,
        SUM(share_nano) AS amount
    FROM usage
    WHERE worker_id IS NOT NULL
    GROUP BY day, asset, worker_id
    UNION ALL
    SELECT
        day,
        asset,
        'fee' AS code,
        NULL AS party,
        SUM(fee_nano) AS amount
    FROM usage
    GROUP BY day, asset
),

moved AS (
    SELECT
        legs.day,
        parties.asset,
        legs.code,
        parties.owner AS party,
        SUM(legs.amount) AS amount
    FROM transfers AS legs
    INNER JOIN accounts AS parties
        ON parties.id = CASE legs.code WHEN 'charge' THEN legs.debit_account_id ELSE legs.credit_account_id END
    WHERE legs.phase = 'single' AND legs.code IN ('charge', 'share', 'fee')
    GROUP BY legs.day, parties.asset, legs.code, parties.owner
),

differences AS (
    SELECT
        day,
        asset,
        code,
        party,
        SUM(claimed_amount) AS expected,
        SUM(moved_amount) AS actual
    FROM (
        SELECT
            day,
            asset,
            code,
            party,
            amount AS claimed_amount,
            0 AS moved_amount
        FROM claimed
        UNION ALL
        SELECT
            day,
            asset,
            code,
            party,
            0 AS claimed_amount,
            amount AS moved_amount
        FROM moved
    ) AS both_sides
    GROUP BY day, asset, code, party
)

SELECT
    expected,
    actual,
    day || ' ' || code || ' ' || COALESCE(party::text, 'network') || ' ' || asset AS subject
FROM differences
WHERE expected <> actual;

-- name: usage_equals_posts
-- Job by job: what its usage row charged, against the transfer that resolved its hold or what was recovered for it.
WITH posts AS (
    SELECT
        day,
        pending_id,
        amount
    FROM transfers
    WHERE phase = 'post' AND lease_id IS NULL
    UNION ALL
    SELECT
        day,
        job_id AS pending_id,
        drawn_nano + lost_nano AS amount
    FROM recoveries
)

SELECT
    'job ' || COALESCE(charged.job_id, posts.pending_id) AS subject,
    COALESCE(charged.charge_nano, -1) AS expected,
    COALESCE(posts.amount, -1) AS actual
FROM (
    SELECT
        day,
        job_id,
        charge_nano
    FROM usage
    WHERE outcome IN ('completed', 'client_gone') AND lease_id IS NULL
) AS charged
FULL JOIN posts
    ON charged.day = posts.day AND charged.job_id = posts.pending_id
WHERE charged.charge_nano IS DISTINCT FROM posts.amount;

-- name: open_holds_are_unresolved
-- The working set, against the pending transfers without a resolution.
WITH unresolved AS (
    SELECT
        pending.id,
        pending.amount
    FROM transfers AS pending
    LEFT JOIN transfers AS resolution
        ON pending.day = resolution.day AND pending.id = resolution.pending_id
    WHERE pending.phase = 'pending' AND pending.lease_id IS NULL AND resolution.id IS NULL
)

SELECT
    'hold ' || COALESCE(open_holds.id, unresolved.id) AS subject,
    COALESCE(unresolved.amount, -1) AS expected,
    COALESCE(open_holds.amount, -1) AS actual
FROM open_holds
FULL JOIN unresolved
    ON open_holds.id = unresolved.id
WHERE open_holds.amount IS DISTINCT FROM unresolved.amount;

-- name: leases_tie_to_pending_transfers
-- Active leases with credit, against the pending transfers of leases without a resolution.
WITH unresolved AS (
    SELECT
        pending.id,
        pending.lease_id,
        pending.amount
    FROM transfers AS pending
    LEFT JOIN transfers AS resolution
        ON pending.day = resolution.day AND pending.id = resolution.pending_id
    WHERE pending.phase = 'pending' AND pending.lease_id IS NOT NULL AND resolution.id IS NULL
)

SELECT
    'lease ' || COALESCE(active.lease_id, unresolved.lease_id) AS subject,
    COALESCE(unresolved.amount, -1) AS expected,
    COALESCE(active.amount, -1) AS actual
FROM (
    SELECT
        lease_id,
        pending_id,
        amount
    FROM leases
    WHERE state = 'active' AND amount > 0
) AS active
FULL JOIN unresolved
    ON active.lease_id = unresolved.lease_id AND active.pending_id = unresolved.id
WHERE active.amount IS DISTINCT FROM unresolved.amount;

-- name: lease_posts_equal_usage
-- Lease by lease: what its transfers paid while it lived and out of recovery, against what its usage rows charged.
WITH paid AS (
    SELECT
        transfers.lease_id,
        SUM(transfers.amount) AS amount
    FROM transfers
    INNER JOIN accounts ON transfers.credit_account_id = accounts.id AND accounts.kind = 'customer_leased'
    WHERE transfers.lease_id IS NOT NULL AND transfers.phase IN ('post', 'single')
    GROUP BY transfers.lease_id
),

charged AS (
    SELECT
        lease_id,
        SUM(charge_nano) AS amount
    FROM usage
    WHERE lease_id IS NOT NULL
    GROUP BY lease_id
)

SELECT
    'lease ' || COALESCE(charged.lease_id, paid.lease_id) AS subject,
    COALESCE(charged.amount, 0) AS expected,
    COALESCE(paid.amount, 0) AS actual
FROM charged
FULL JOIN paid
    ON charged.lease_id = paid.lease_id
WHERE COALESCE(charged.amount, 0) <> COALESCE(paid.amount, 0);

-- name: recovery_equals_expired_leases
-- What lies in recovery, against what expired leases had left and nobody has claimed yet.
WITH expired AS (
    SELECT
        customer_id,
        asset,
        SUM(amount) AS amount
    FROM leases
    WHERE state = 'recovering'
    GROUP BY customer_id, asset
),

kept AS (
    SELECT
        owner,
        asset,
        credits_posted - debits_posted - debits_pending AS amount
    FROM accounts
    WHERE kind = 'lease_recovery'
)

SELECT
    'customer ' || COALESCE(expired.customer_id, kept.owner) AS subject,
    COALESCE(expired.amount, 0) AS expected,
    COALESCE(kept.amount, 0) AS actual
FROM expired
FULL JOIN kept
    ON expired.customer_id = kept.owner AND expired.asset = kept.asset
WHERE COALESCE(expired.amount, 0) <> COALESCE(kept.amount, 0);

-- name: resolutions_have_a_hold
SELECT
    1 AS expected,
    0 AS actual,
    'resolution of ' || resolution.pending_id AS subject
FROM transfers AS resolution
LEFT JOIN transfers AS pending
    ON resolution.day = pending.day AND resolution.pending_id = pending.id AND pending.phase = 'pending'
WHERE resolution.pending_id IS NOT NULL AND (pending.id IS NULL OR resolution.amount > pending.amount);

-- name: recoveries_equal_transfers
-- What was drawn from customers and lost by the operator, recovery by recovery, against the transfers that moved it.
WITH claimed AS (
    SELECT
        day,
        drawn_id AS id,
        drawn_nano AS amount
    FROM recoveries
    WHERE drawn_id IS NOT NULL
    UNION ALL
    SELECT
        day,
        lost_id AS id,
        lost_nano AS amount
    FROM recoveries
    WHERE lost_id IS NOT NULL
),

moved AS (
    SELECT
        day,
        id,
        amount
    FROM transfers
    WHERE phase = 'single' AND code IN ('recovered', 'loss')
)

SELECT
    'transfer ' || COALESCE(claimed.id, moved.id) AS subject,
    COALESCE(claimed.amount, -1) AS expected,
    COALESCE(moved.amount, -1) AS actual
FROM claimed
FULL JOIN moved
    ON claimed.day = moved.day AND claimed.id = moved.id
WHERE claimed.amount IS DISTINCT FROM moved.amount;

-- name: recovered_holds_had_expired
-- A job is charged from its receipt only after its hold, or the lease that stood for it, gave the credit back.
SELECT
    1 AS expected,
    0 AS actual,
    'recovery of ' || recoveries.job_id AS subject
FROM recoveries
LEFT JOIN transfers AS pending
    ON recoveries.hold_id = pending.id AND pending.phase = 'pending'
LEFT JOIN transfers AS resolution
    ON pending.day = resolution.day AND pending.id = resolution.pending_id
LEFT JOIN leases
    ON recoveries.hold_id = leases.lease_id
WHERE
    (pending.id IS NOT NULL AND resolution.phase IS DISTINCT FROM 'expire')
    OR (leases.lease_id IS NOT NULL AND leases.state <> 'closed');

-- name: charges_are_distributed
-- Charges, against shares, fees and what waits in the rounding account.
SELECT
    'asset ' || accounts.asset AS subject,
    COALESCE(SUM(legs.amount) FILTER (WHERE legs.code = 'charge'), 0) AS expected,
    COALESCE(SUM(legs.amount) FILTER (WHERE legs.code IN ('share', 'fee')), 0)
    + MAX(accounts.credits_posted - accounts.debits_posted) AS actual
FROM accounts
LEFT JOIN transfers AS legs
    ON accounts.id IN (legs.debit_account_id, legs.credit_account_id) AND legs.phase = 'single'
WHERE accounts.kind = 'rounding'
GROUP BY accounts.asset
HAVING
    COALESCE(SUM(legs.amount) FILTER (WHERE legs.code = 'charge'), 0)
    <> COALESCE(SUM(legs.amount) FILTER (WHERE legs.code IN ('share', 'fee')), 0)
    + MAX(accounts.credits_posted - accounts.debits_posted);

-- name: numerators_equal_usage
-- Cumulative numerators, against the usage rows that they come from.
WITH sums AS (
    SELECT
        'customer_leased' AS kind,
        customer_id AS owner,
        asset,
        SUM(numerator) AS numerator
    FROM usage
    GROUP BY customer_id, asset
    UNION ALL
    SELECT
        'worker_payable' AS kind,
        worker_id AS owner,
        asset,
        SUM(COALESCE(worker_numerator, numerator) * share_bps) AS numerator
    FROM usage
    WHERE worker_id IS NOT NULL
    GROUP BY worker_id, asset
    UNION ALL
    SELECT
        'network_revenue' AS kind,
        NULL AS owner,
        asset,
        SUM(
            numerator * 10000
            - CASE WHEN worker_id IS NULL THEN 0 ELSE COALESCE(worker_numerator, numerator) * share_bps END
        ) AS numerator
    FROM usage
    GROUP BY asset
)

SELECT
    accounts.numerator AS actual,
    accounts.kind || ' ' || accounts.id AS subject,
    COALESCE(sums.numerator, 0) AS expected
FROM accounts
LEFT JOIN sums
    ON
        accounts.kind = sums.kind AND accounts.asset = sums.asset
        AND accounts.owner IS NOT DISTINCT FROM sums.owner
WHERE accounts.numerator <> COALESCE(sums.numerator, 0);

-- name: rollups_equal_usage
-- Counter by counter: the daily rollups, against the usage rows of their day.
WITH sums AS (
    SELECT
        customer_id,
        day,
        key_id,
        model,
        asset,
        COUNT(*) FILTER (WHERE outcome <> 'broken') AS requests,
        COUNT(*) FILTER (WHERE outcome = 'broken') AS broken,
        SUM(prompt_tokens) FILTER (WHERE outcome <> 'broken') AS prompt_tokens,
        SUM(cached_tokens) FILTER (WHERE outcome <> 'broken') AS cached_tokens,
        SUM(completion_tokens) FILTER (WHERE outcome <> 'broken') AS completion_tokens,
        SUM(numerator) AS numerator,
        SUM(charge_nano) AS charge_nano,
        SUM(share_nano) AS share_nano,
        SUM(fee_nano) AS fee_nano
    FROM usage
    GROUP BY customer_id, day, key_id, model, asset
),

counters AS (
    SELECT
        COALESCE(sums.day, usage_daily.day) AS day,
        COALESCE(sums.key_id, usage_daily.key_id) AS key_id,
        COALESCE(sums.model, usage_daily.model) AS model,
        UNNEST(ARRAY[
            'requests', 'broken', 'prompt_tokens', 'cached_tokens', 'completion_tokens', 'numerator', 'charge_nano',
            'share_nano', 'fee_nano'
        ]) AS counter,
        UNNEST(ARRAY[
            sums.requests, sums.broken, sums.prompt_tokens, sums.cached_tokens, sums.completion_tokens,
            sums.numerator, sums.charge_nano, sums.share_nano, sums.fee_nano
        ]) AS expected,
        UNNEST(ARRAY[
            usage_daily.requests, usage_daily.broken, usage_daily.prompt_tokens, usage_daily.cached_tokens,
            usage_daily.completion_tokens, usage_daily.numerator, usage_daily.charge_nano, usage_daily.share_nano,
            usage_daily.fee_nano
        ]) AS actual
    FROM sums
    FULL JOIN usage_daily
        ON
            sums.customer_id = usage_daily.customer_id AND sums.day = usage_daily.day
            AND sums.key_id = usage_daily.key_id AND sums.model = usage_daily.model AND sums.asset = usage_daily.asset
)

SELECT
    'rollup ' || day || ' ' || key_id || ' ' || model || ' ' || counter AS subject,
    COALESCE(expected, 0) AS expected,
    COALESCE(actual, 0) AS actual
FROM counters
WHERE COALESCE(expected, 0) <> COALESCE(actual, 0);

-- name: nobody_is_off_by_a_nano
-- Posted charges, shares and fees are the cumulative numerators rounded once: customers up, the others down.
SELECT
    kind || ' ' || id AS subject,
    CASE kind
        WHEN 'customer_leased' THEN DIV(numerator + 999999, 1000000)
        ELSE DIV(numerator, 10000000000)
    END AS expected,
    CASE kind WHEN 'customer_leased' THEN debits_posted ELSE credits_posted END AS actual
FROM accounts
WHERE
    (kind = 'customer_leased' AND debits_posted <> DIV(numerator + 999999, 1000000))
    OR (
        kind IN ('worker_payable', 'network_revenue') AND credits_posted <> DIV(numerator, 10000000000)
    );

-- name: statements_equal_balances
-- What every statement of a customer adds up to (what crossed the border of its accounts, less the rolled-up charges),
-- against what its accounts hold.
WITH crossed AS (
    SELECT
        accounts.owner,
        accounts.asset,
        SUM(CASE WHEN transfers.credit_account_id = accounts.id THEN transfers.amount ELSE -transfers.amount END) AS net
    FROM transfers
    INNER JOIN accounts
        ON
            accounts.id IN (transfers.credit_account_id, transfers.debit_account_id)
            AND accounts.kind IN ('customer_available', 'customer_leased', 'lease_recovery')
    WHERE transfers.code IN ('deposit', 'credit', 'reversal', 'loss', 'refund') AND transfers.phase = 'single'
    GROUP BY accounts.owner, accounts.asset
),

charged AS (
    SELECT
        customer_id AS owner,
        asset,
        SUM(charge_nano) AS charges
    FROM usage_daily
    GROUP BY customer_id, asset
),

held AS (
    SELECT
        owner,
        asset,
        SUM(credits_posted - debits_posted) AS total
    FROM accounts
    WHERE kind IN ('customer_available', 'customer_leased', 'lease_recovery')
    GROUP BY owner, asset
)

SELECT
    held.total AS actual,
    'customer ' || held.owner || ' ' || held.asset AS subject,
    COALESCE(crossed.net, 0) - COALESCE(charged.charges, 0) AS expected
FROM held
LEFT JOIN crossed ON held.owner = crossed.owner AND held.asset = crossed.asset
LEFT JOIN charged ON held.owner = charged.owner AND held.asset = charged.asset
WHERE held.total <> COALESCE(crossed.net, 0) - COALESCE(charged.charges, 0);

-- name: adjustments_are_recorded
-- Credits and reversals are made by people only: each has one line in the audit log, of the same amount. Deposits also
-- come from elsewhere; those that were recorded must have happened.
WITH recorded AS (
    SELECT
        subject_id,
        SUBSTR(action, 8) AS code,
        COUNT(*) AS lines,
        SUM((detail ->> 'amount_nano')::numeric) AS amount
    FROM audit_log
    WHERE action IN ('ledger.deposit', 'ledger.credit', 'ledger.reversal')
    GROUP BY subject_id, action
),

moved AS (
    SELECT
        id,
        code,
        amount
    FROM transfers
    WHERE code IN ('deposit', 'credit', 'reversal') AND phase = 'single'
)

SELECT
    COALESCE(moved.code, recorded.code) || ' ' || COALESCE(moved.id, recorded.subject_id) AS subject,
    COALESCE(moved.amount, -1) AS expected,
    COALESCE(recorded.amount, -1) AS actual
FROM recorded
FULL JOIN moved ON recorded.subject_id = moved.id AND recorded.code = moved.code
WHERE
    (moved.id IS NULL OR recorded.subject_id IS NOT NULL OR moved.code <> 'deposit')
    AND (recorded.amount IS DISTINCT FROM moved.amount OR recorded.lines <> 1);

-- name: usage_has_a_project
-- Usage of a key belongs to the organisation of the key's project.
SELECT
    1 AS expected,
    0 AS actual,
    'key ' || api_keys.id || ' charged to ' || spent.customer_id AS subject
FROM (SELECT DISTINCT
    usage_daily.customer_id,
    usage_daily.key_id
FROM usage_daily) AS spent
INNER JOIN api_keys ON spent.key_id = api_keys.id
LEFT JOIN projects ON api_keys.project_id = projects.id
WHERE projects.customer_id IS DISTINCT FROM spent.customer_id;
