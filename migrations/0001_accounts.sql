-- Customers and the chart of accounts.
--
-- Amounts are integer nano (10^-9) of the account's asset. Limits are CHECK constraints from the first migration on:
-- whatever a program believes, the database refuses to overdraw anybody.

CREATE TABLE customers (
    id uuid PRIMARY KEY,
    name text NOT NULL CONSTRAINT customers_name_unique UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT customers_name_form CHECK (length(name) BETWEEN 1 AND 128)
);

-- `numerator` is the cumulative, unrounded basis of what moved: in 10^-6 nano for customer_leased (what the customer
-- was charged for), in 10^-10 nano for worker_payable and network_revenue (tokens x price x basis points).
-- `owner` is the customer, the worker or the escrow; the network's own accounts have none.
-- fillfactor leaves room for heap-only updates of the four hot counters.
CREATE TABLE accounts (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind text NOT NULL,
    owner uuid,
    asset text NOT NULL,
    debits_posted numeric(39, 0) NOT NULL DEFAULT 0,
    credits_posted numeric(39, 0) NOT NULL DEFAULT 0,
    debits_pending numeric(39, 0) NOT NULL DEFAULT 0,
    credits_pending numeric(39, 0) NOT NULL DEFAULT 0,
    numerator numeric(39, 0) NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT accounts_one_per_owner UNIQUE NULLS NOT DISTINCT (kind, owner, asset),
    CONSTRAINT accounts_kind_known CHECK (
        kind IN (
            'customer_available', 'customer_leased', 'lease_recovery', 'worker_payable', 'payout_in_flight',
            'network_revenue', 'rounding', 'escrow_asset', 'stake_memo', 'suspense'
        )
    ),
    CONSTRAINT accounts_network_has_no_owner CHECK (
        (owner IS NULL) = (kind IN ('network_revenue', 'rounding', 'suspense'))
    ),
    CONSTRAINT accounts_asset_form CHECK (length(asset) BETWEEN 1 AND 16),
    CONSTRAINT accounts_counters_not_negative CHECK (
        debits_posted >= 0 AND credits_posted >= 0 AND debits_pending >= 0 AND credits_pending >= 0 AND numerator >= 0
    ),
    -- What is owed to somebody never goes below zero, reservations included.
    CONSTRAINT accounts_credit_not_overdrawn CHECK (
        kind IN ('escrow_asset', 'suspense') OR debits_posted + debits_pending <= credits_posted
    ),
    -- What the network holds on chain is the mirror image.
    CONSTRAINT accounts_escrow_not_overdrawn CHECK (
        kind <> 'escrow_asset' OR credits_posted + credits_pending <= debits_posted
    )
) WITH (fillfactor = 50);

INSERT INTO accounts (kind, owner, asset) VALUES
('network_revenue', NULL, 'TON'),
('rounding', NULL, 'TON'),
('suspense', NULL, 'TON');
