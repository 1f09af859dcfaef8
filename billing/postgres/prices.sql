-- Models and their price versions.

-- name: list_models
SELECT
    id,
    context_tokens,
    default_max_completion,
    template_tokens_per_message,
    base_tokens,
    media_max
FROM models
ORDER BY id;

-- name: list_prices
-- Every version; which of them is in force is decided in billing/pricing.py, at the database's `at`.
SELECT
    model,
    version,
    asset,
    prompt_nano_per_mtok,
    cached_nano_per_mtok,
    completion_nano_per_mtok,
    share_bps,
    effective_from,
    NOW() AS at
FROM prices
ORDER BY model, version;

-- name: read_now
SELECT NOW() AS at;

-- name: put_model
INSERT INTO models (id, context_tokens, default_max_completion, template_tokens_per_message, base_tokens, media_max)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (id) DO UPDATE
    SET
        context_tokens = excluded.context_tokens,
        default_max_completion = excluded.default_max_completion,
        template_tokens_per_message = excluded.template_tokens_per_message,
        base_tokens = excluded.base_tokens,
        media_max = excluded.media_max;

-- name: lock_model
-- Versions of one model are numbered one after the other.
SELECT id
FROM models
WHERE id = $1
FOR UPDATE;

-- name: add_price
-- The next version of model $1, from $7 or from now on.
INSERT INTO prices (
    model, version, asset, prompt_nano_per_mtok, cached_nano_per_mtok, completion_nano_per_mtok, share_bps,
    effective_from
)
SELECT
    $1 AS model,
    COALESCE(MAX(prices.version), 0) + 1 AS version,
    $2 AS asset,
    $3 AS prompt_nano_per_mtok,
    $4 AS cached_nano_per_mtok,
    $5 AS completion_nano_per_mtok,
    $6 AS share_bps,
    COALESCE($7, NOW()) AS effective_from
FROM prices
WHERE prices.model = $1
RETURNING version, effective_from;
