-- More of the books' invariants, in the form of check.sql: what was charged is what the versions say.

-- name: usage_is_priced_at_its_version
-- Charged rows, against their counts at the price or ask that their version names and the customer's part of it.
WITH versions AS (
    SELECT
        model,
        version,
        prompt_nano_per_mtok,
        cached_nano_per_mtok,
        completion_nano_per_mtok
    FROM prices
    UNION ALL
    SELECT
        model,
        version,
        prompt_nano_per_mtok,
        cached_nano_per_mtok,
        completion_nano_per_mtok
    FROM asks
),

priced AS (
    SELECT
        usage.job_id,
        usage.numerator,
        (usage.prompt_tokens - usage.cached_tokens)
        * DIV(versions.prompt_nano_per_mtok::numeric * COALESCE(usage.customer_bps, 10000) + 9999, 10000)
        + usage.cached_tokens
        * DIV(versions.cached_nano_per_mtok::numeric * COALESCE(usage.customer_bps, 10000) + 9999, 10000)
        + usage.completion_tokens
        * DIV(versions.completion_nano_per_mtok::numeric * COALESCE(usage.customer_bps, 10000) + 9999, 10000)
            AS expected
    FROM usage
    INNER JOIN versions ON usage.model = versions.model AND usage.price_version = versions.version
    WHERE usage.outcome IN ('completed', 'client_gone')
)

SELECT
    expected,
    numerator AS actual,
    'job ' || job_id AS subject
FROM priced
WHERE numerator <> expected;
