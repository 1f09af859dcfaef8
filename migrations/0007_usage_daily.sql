-- Daily rollups: what a customer's keys used of each model on each UTC day, so that a month of usage is read in a few
-- rows instead of millions.
--
-- A trigger on `usage` keeps them, so that every writer does, the previous release while it still runs included, and
-- always in the writer's own transaction. It runs once a statement, over all the rows of it.
--
-- A row is written only by who has the accounts of its customer locked, so that replicas never wait for each other
-- here, and never in a cycle: accounts by id, then rollups by primary key.

-- `requests`, the tokens and the amounts are those of charged rows (completed, client_gone); `broken` counts the rest.
-- `numerator` is in 10^-6 nano. fillfactor leaves room for heap-only updates: no index holds a counter.
CREATE TABLE usage_daily (
    customer_id uuid NOT NULL,
    day date NOT NULL,
    key_id uuid NOT NULL,
    model text NOT NULL,
    asset text NOT NULL,
    requests bigint NOT NULL,
    broken bigint NOT NULL,
    prompt_tokens numeric(39, 0) NOT NULL,
    cached_tokens numeric(39, 0) NOT NULL,
    completion_tokens numeric(39, 0) NOT NULL,
    numerator numeric(39, 0) NOT NULL,
    charge_nano numeric(39, 0) NOT NULL,
    share_nano numeric(39, 0) NOT NULL,
    fee_nano numeric(39, 0) NOT NULL,
    PRIMARY KEY (customer_id, day, key_id, model, asset),
    CONSTRAINT usage_daily_not_negative CHECK (
        requests >= 0 AND broken >= 0 AND prompt_tokens >= 0 AND cached_tokens >= 0 AND completion_tokens >= 0
        AND numerator >= 0 AND charge_nano >= 0 AND share_nano >= 0 AND fee_nano >= 0
    )
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

-- What every key spent since a day.
CREATE INDEX usage_daily_by_day ON usage_daily (day, key_id);

CREATE FUNCTION roll_up_usage() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO usage_daily (
        customer_id, day, key_id, model, asset, requests, broken, prompt_tokens, cached_tokens, completion_tokens,
        numerator, charge_nano, share_nano, fee_nano
    )
    SELECT
        customer_id,
        day,
        key_id,
        model,
        asset,
        count(*) FILTER (WHERE outcome <> 'broken') AS requests,
        count(*) FILTER (WHERE outcome = 'broken') AS broken,
        coalesce(sum(prompt_tokens) FILTER (WHERE outcome <> 'broken'), 0) AS prompt_tokens,
        coalesce(sum(cached_tokens) FILTER (WHERE outcome <> 'broken'), 0) AS cached_tokens,
        coalesce(sum(completion_tokens) FILTER (WHERE outcome <> 'broken'), 0) AS completion_tokens,
        sum(numerator) AS numerator,
        sum(charge_nano) AS charge_nano,
        sum(share_nano) AS share_nano,
        sum(fee_nano) AS fee_nano
    FROM inserted
    GROUP BY customer_id, day, key_id, model, asset
    ORDER BY customer_id, day, key_id, model, asset
    ON CONFLICT (customer_id, day, key_id, model, asset) DO UPDATE SET
        requests = usage_daily.requests + excluded.requests,
        broken = usage_daily.broken + excluded.broken,
        prompt_tokens = usage_daily.prompt_tokens + excluded.prompt_tokens,
        cached_tokens = usage_daily.cached_tokens + excluded.cached_tokens,
        completion_tokens = usage_daily.completion_tokens + excluded.completion_tokens,
        numerator = usage_daily.numerator + excluded.numerator,
        charge_nano = usage_daily.charge_nano + excluded.charge_nano,
        share_nano = usage_daily.share_nano + excluded.share_nano,
        fee_nano = usage_daily.fee_nano + excluded.fee_nano;
    RETURN NULL;
END
$$;

-- Creating the trigger keeps writers of `usage` out until this transaction ends: what is there now is all there is.
CREATE TRIGGER usage_rolled_up AFTER INSERT ON usage
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION roll_up_usage();

INSERT INTO usage_daily (
    customer_id, day, key_id, model, asset, requests, broken, prompt_tokens, cached_tokens, completion_tokens,
    numerator, charge_nano, share_nano, fee_nano
)
SELECT
    customer_id,
    day,
    key_id,
    model,
    asset,
    count(*) FILTER (WHERE outcome <> 'broken') AS requests,
    count(*) FILTER (WHERE outcome = 'broken') AS broken,
    coalesce(sum(prompt_tokens) FILTER (WHERE outcome <> 'broken'), 0) AS prompt_tokens,
    coalesce(sum(cached_tokens) FILTER (WHERE outcome <> 'broken'), 0) AS cached_tokens,
    coalesce(sum(completion_tokens) FILTER (WHERE outcome <> 'broken'), 0) AS completion_tokens,
    sum(numerator) AS numerator,
    sum(charge_nano) AS charge_nano,
    sum(share_nano) AS share_nano,
    sum(fee_nano) AS fee_nano
FROM usage
GROUP BY customer_id, day, key_id, model, asset;
