-- What single customers pay of the prices, in basis points: less than 10000 is a discount, more a surcharge.

-- Versioned, effective-dated and insert-only, as prices are. A worker's part is never touched by it.
CREATE TABLE customer_multipliers (
    customer_id uuid NOT NULL REFERENCES customers (id),
    version bigint NOT NULL,
    customer_bps integer NOT NULL,
    effective_from timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (customer_id, version),
    CONSTRAINT customer_multipliers_version_positive CHECK (version >= 1),
    CONSTRAINT customer_multipliers_range CHECK (customer_bps BETWEEN 0 AND 100000),
    CONSTRAINT customer_multipliers_not_dated_back CHECK (effective_from >= created_at)
);

CREATE TRIGGER customer_multipliers_insert_only BEFORE UPDATE OR DELETE ON customer_multipliers
FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- What a row's customer paid of its price (NULL: all of it), and what the worker's part is a part of: the numerator
-- before the multiplier (NULL: `numerator` itself). No default, so no row is rewritten.
ALTER TABLE usage
ADD COLUMN customer_bps integer,
ADD COLUMN worker_numerator numeric(39, 0);

-- The network's part may shrink to nothing; it is never less.
ALTER TABLE usage
ADD CONSTRAINT usage_multiplied_whole CHECK ((customer_bps IS NULL) = (worker_numerator IS NULL)) NOT VALID,
ADD CONSTRAINT usage_discount_is_the_networks CHECK (
    worker_numerator IS NULL OR worker_numerator * share_bps <= numerator * 10000
) NOT VALID;
