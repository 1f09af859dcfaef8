-- Thresholds, what crossed them, and the messages that say so.

-- name: find_customer
SELECT customers.id
FROM customers
WHERE customers.name = $1;

-- name: drop_webhook
UPDATE webhooks SET removed_at = NOW()
WHERE webhooks.customer_id = $1 AND webhooks.removed_at IS NULL
RETURNING webhooks.webhook_id;

-- name: add_webhook
INSERT INTO webhooks (webhook_id, customer_id, url, secret) VALUES ($1, $2, $3, $4);

-- name: add_rule
-- The same rule again is the rule that is there.
INSERT INTO alert_rules (rule_id, customer_id, kind, threshold_nano) VALUES ($1, $2, $3, $4)
ON CONFLICT (customer_id, kind, asset, threshold_nano) WHERE removed_at IS NULL DO NOTHING;

-- name: count_rules
SELECT COUNT(*) AS rules
FROM alert_rules
WHERE alert_rules.customer_id = $1 AND alert_rules.removed_at IS NULL;

-- name: find_rule
SELECT alert_rules.rule_id
FROM alert_rules
WHERE
    alert_rules.customer_id = $1
    AND alert_rules.kind = $2
    AND alert_rules.threshold_nano = $3
    AND alert_rules.removed_at IS NULL;

-- name: drop_rule
UPDATE alert_rules SET removed_at = NOW()
WHERE alert_rules.rule_id = $1 AND alert_rules.removed_at IS NULL
RETURNING alert_rules.rule_id;

-- name: list_rules
-- Of customer $1, or of all.
SELECT
    alert_rules.rule_id,
    customers.name AS customer,
    alert_rules.kind,
    alert_rules.threshold_nano,
    alert_rules.occurrences,
    webhooks.url
FROM alert_rules
INNER JOIN customers ON alert_rules.customer_id = customers.id
LEFT JOIN webhooks ON alert_rules.customer_id = webhooks.customer_id AND webhooks.removed_at IS NULL
WHERE alert_rules.removed_at IS NULL AND ($1::uuid IS NULL OR alert_rules.customer_id = $1)
ORDER BY customers.name ASC, alert_rules.kind ASC, alert_rules.threshold_nano ASC;

-- name: list_alerts
-- The last $2 messages of customer $1, newest first.
SELECT
    alert_outbox.alert_id,
    alert_outbox.state,
    alert_outbox.attempts,
    alert_outbox.last_outcome,
    alert_outbox.created_at,
    alert_outbox.body
FROM alert_outbox
WHERE alert_outbox.customer_id = $1
ORDER BY alert_outbox.created_at DESC
LIMIT $2;

-- name: rearm
-- Balances that are back.
UPDATE alert_rules SET armed = TRUE
FROM accounts AS available
LEFT JOIN accounts AS recovery
    ON
        available.owner = recovery.owner
        AND available.asset = recovery.asset
        AND recovery.kind = 'lease_recovery'
WHERE
    NOT alert_rules.armed
    AND alert_rules.removed_at IS NULL
    AND alert_rules.kind = 'balance_low'
    AND available.kind = 'customer_available'
    AND available.owner = alert_rules.customer_id
    AND available.asset = alert_rules.asset
    AND available.credits_posted - available.debits_posted
    + COALESCE(recovery.credits_posted - recovery.debits_posted, 0) >= alert_rules.threshold_nano;

-- name: find_crossings
-- At most $1 rules that are crossed and have not said so. Only accounts' counters and daily rollups are read, without a
-- lock on either: whoever writes usage never waits for this. Who has no webhook has nobody to tell, and stays armed.
WITH watched AS (
    SELECT
        alert_rules.rule_id,
        alert_rules.customer_id,
        customers.name AS customer,
        alert_rules.kind,
        alert_rules.asset,
        alert_rules.threshold_nano,
        alert_rules.armed,
        alert_rules.fired_for,
        alert_rules.occurrences,
        CASE alert_rules.kind
            WHEN 'spend_day' THEN (NOW() AT TIME ZONE 'UTC')::date
            WHEN 'spend_month' THEN DATE_TRUNC('month', NOW() AT TIME ZONE 'UTC')::date
        END AS period
    FROM alert_rules
    INNER JOIN customers ON alert_rules.customer_id = customers.id
    INNER JOIN webhooks ON alert_rules.customer_id = webhooks.customer_id AND webhooks.removed_at IS NULL
    WHERE alert_rules.removed_at IS NULL
),

valued AS (
    SELECT
        watched.rule_id,
        watched.customer_id,
        watched.customer,
        watched.kind,
        watched.asset,
        watched.threshold_nano,
        watched.period,
        watched.occurrences,
        CASE watched.kind
            WHEN 'balance_low'
                THEN
                    available.credits_posted - available.debits_posted
                    + COALESCE(recovery.credits_posted - recovery.debits_posted, 0)
            ELSE COALESCE(spent.nano, 0)
        END AS value_nano
    FROM watched
    INNER JOIN accounts AS available
        ON
            watched.customer_id = available.owner
            AND watched.asset = available.asset
            AND available.kind = 'customer_available'
    LEFT JOIN accounts AS recovery
        ON
            watched.customer_id = recovery.owner
            AND watched.asset = recovery.asset
            AND recovery.kind = 'lease_recovery'
    LEFT JOIN LATERAL (
        SELECT SUM(usage_daily.charge_nano) AS nano
        FROM usage_daily
        WHERE
            usage_daily.customer_id = watched.customer_id
            AND usage_daily.asset = watched.asset
            AND usage_daily.day >= watched.period
    ) AS spent ON TRUE
    WHERE watched.armed AND (watched.period IS NULL OR watched.fired_for IS DISTINCT FROM watched.period)
)

SELECT
    valued.rule_id,
    valued.customer_id,
    valued.customer,
    valued.kind,
    valued.asset,
    valued.threshold_nano,
    valued.period,
    valued.occurrences,
    valued.value_nano,
    NOW() AS at
FROM valued
WHERE
    (valued.kind = 'balance_low' AND valued.value_nano < valued.threshold_nano)
    OR (valued.kind <> 'balance_low' AND valued.value_nano >= valued.threshold_nano)
ORDER BY valued.rule_id
LIMIT $1;

-- name: note_crossings
-- A crossing is noted once: whoever counted from the same number before has it.
UPDATE alert_rules
SET
    armed = alert_rules.kind <> 'balance_low',
    fired_for = crossed.period,
    occurrences = crossed.occurrence
FROM UNNEST($1::uuid[], $2::bigint[], $3::date[]) AS crossed (rule_id, occurrence, period)
WHERE alert_rules.rule_id = crossed.rule_id AND alert_rules.occurrences = crossed.occurrence - 1
RETURNING alert_rules.rule_id;

-- name: add_alerts
INSERT INTO alert_outbox (alert_id, rule_id, occurrence, customer_id, body)
SELECT
    entry.alert_id,
    entry.rule_id,
    entry.occurrence,
    entry.customer_id,
    entry.body
FROM
    UNNEST($1::uuid[], $2::uuid[], $3::bigint[], $4::uuid[], $5::bytea[])
        AS entry (alert_id, rule_id, occurrence, customer_id, body);

-- name: due_alerts
SELECT
    alert_outbox.alert_id,
    alert_outbox.body,
    alert_outbox.attempts,
    webhooks.url,
    webhooks.secret
FROM alert_outbox
INNER JOIN webhooks ON alert_outbox.customer_id = webhooks.customer_id AND webhooks.removed_at IS NULL
WHERE alert_outbox.state = 'pending' AND alert_outbox.next_at <= NOW()
ORDER BY alert_outbox.next_at
LIMIT $1;

-- name: note_attempt
-- $2 is what became of it; $3 the new state; $4 the seconds until the next attempt.
UPDATE alert_outbox
SET
    attempts = alert_outbox.attempts + 1,
    last_outcome = $2,
    state = $3,
    next_at = NOW() + MAKE_INTERVAL(secs => $4),
    ended_at = CASE WHEN $3 = 'pending' THEN NULL ELSE NOW() END
WHERE alert_outbox.alert_id = $1 AND alert_outbox.state = 'pending';

-- name: drop_old_alerts
-- Messages that ended, and those that nobody took, are kept for $1 days.
DELETE FROM alert_outbox
WHERE alert_outbox.created_at < NOW() - MAKE_INTERVAL(days => $1);

-- name: take_turn
SELECT PG_TRY_ADVISORY_LOCK(4848484803) AS mine;
