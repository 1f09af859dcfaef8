-- Settlement on TON: escrows, vouchers, stakes, payees and epochs, and what the chain moved in the books.
--
-- Amounts are integer nano. Everything that is said of a contract is its state at a block that was read with proofs
-- (`seen_seqno`, a masterchain block; `seen_at` the chain's time of it), never what a message claimed. Addresses are in
-- their raw form, workchain 0.

-- What the payout contract holds: one account of the network's own.
--
-- Each constraint is replaced by a wider one in the same transaction, so that clients lose no guarantee; NOT VALID
-- spares the scan of rows that have passed the narrower one.
-- squawk-ignore ban-drop-constraint
ALTER TABLE accounts DROP CONSTRAINT accounts_kind_known;
ALTER TABLE accounts ADD CONSTRAINT accounts_kind_known CHECK (
    kind IN (
        'customer_available', 'customer_leased', 'lease_recovery', 'worker_payable', 'payout_in_flight',
        'network_revenue', 'rounding', 'escrow_asset', 'payout_asset', 'stake_memo', 'suspense', 'operator_loss'
    )
) NOT VALID;

-- squawk-ignore ban-drop-constraint
ALTER TABLE accounts DROP CONSTRAINT accounts_network_has_no_owner;
ALTER TABLE accounts ADD CONSTRAINT accounts_network_has_no_owner CHECK (
    (owner IS NULL) = (kind IN ('network_revenue', 'rounding', 'payout_asset', 'suspense', 'operator_loss'))
) NOT VALID;

-- squawk-ignore ban-drop-constraint
ALTER TABLE accounts DROP CONSTRAINT accounts_credit_not_overdrawn;
ALTER TABLE accounts ADD CONSTRAINT accounts_credit_not_overdrawn CHECK (
    kind IN ('escrow_asset', 'payout_asset', 'suspense', 'operator_loss')
    OR debits_posted + debits_pending <= credits_posted
) NOT VALID;

-- What the network holds on chain: no contract pays what it did not receive.
-- squawk-ignore ban-drop-constraint
ALTER TABLE accounts DROP CONSTRAINT accounts_escrow_not_overdrawn;
ALTER TABLE accounts ADD CONSTRAINT accounts_escrow_not_overdrawn CHECK (
    kind NOT IN ('escrow_asset', 'payout_asset') OR credits_posted + credits_pending <= debits_posted
) NOT VALID;

INSERT INTO accounts (kind, owner, asset) VALUES ('payout_asset', NULL, 'TON');

-- Refunds cross the border of a customer's accounts too. The narrower index goes when this one is there.
-- squawk-ignore require-concurrent-index-creation
CREATE INDEX transfers_crossing ON transfers (credit_account_id, debit_account_id)
WHERE code IN ('deposit', 'credit', 'reversal', 'loss', 'refund');

-- squawk-ignore require-concurrent-index-deletion
DROP INDEX transfers_border;

-- A customer's escrows. `id` owns the escrow_asset account. `config` is the bag of cells that its address is hashed
-- from. deposited, settled, owed and refunded are what the books have: they change with their transfers, in one
-- transaction. `charged_nano` is what the customer was charged under this escrow: the most that it owes.
-- close_requested_at and allow_time are Unix seconds of the chain, 0 for never.
CREATE TABLE escrows (
    id uuid PRIMARY KEY,
    customer_id uuid NOT NULL REFERENCES customers (id),
    address text NOT NULL CONSTRAINT escrows_address_unique UNIQUE,
    code_hash bytea NOT NULL,
    config bytea NOT NULL,
    client text NOT NULL,
    epoch bigint NOT NULL,
    voucher_key bytea,
    operator_key bytea,
    challenge_s bigint NOT NULL,
    allow_max_nano bigint NOT NULL,
    allow_rate_nano bigint NOT NULL,
    state text NOT NULL DEFAULT 'registered',
    deposited_nano bigint NOT NULL DEFAULT 0,
    settled_nano bigint NOT NULL DEFAULT 0,
    owed_nano bigint NOT NULL DEFAULT 0,
    refunded_nano bigint NOT NULL DEFAULT 0,
    charged_nano bigint NOT NULL DEFAULT 0,
    allow_at_nano bigint NOT NULL,
    allow_time bigint NOT NULL DEFAULT 0,
    close_requested_at bigint NOT NULL DEFAULT 0,
    usage_root bytea NOT NULL DEFAULT '\x0000000000000000000000000000000000000000000000000000000000000000',
    seen_seqno bigint,
    seen_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT escrows_address_form CHECK (address ~ '^0:[0-9a-f]{64}$'),
    CONSTRAINT escrows_client_form CHECK (client ~ '^(0|-1):[0-9a-f]{64}$'),
    CONSTRAINT escrows_hash_forms CHECK (length(code_hash) = 32 AND length(usage_root) = 32),
    CONSTRAINT escrows_config_size CHECK (length(config) <= 2048),
    CONSTRAINT escrows_keys CHECK (
        coalesce(length(voucher_key), 32) = 32 AND coalesce(length(operator_key), 32) = 32
        AND (voucher_key IS NOT NULL OR operator_key IS NOT NULL)
    ),
    CONSTRAINT escrows_state_known CHECK (state IN ('registered', 'open', 'closing', 'closed')),
    CONSTRAINT escrows_amounts_in_order CHECK (
        owed_nano >= 0 AND owed_nano <= settled_nano AND settled_nano <= deposited_nano
        AND charged_nano >= 0 AND charged_nano <= deposited_nano
        AND refunded_nano >= 0 AND settled_nano + refunded_nano <= deposited_nano
    ),
    CONSTRAINT escrows_refunded_at_the_end CHECK (refunded_nano = 0 OR state = 'closed'),
    CONSTRAINT escrows_registered_is_empty CHECK (state <> 'registered' OR deposited_nano = 0),
    CONSTRAINT escrows_closing_was_requested CHECK (state <> 'closing' OR close_requested_at > 0),
    CONSTRAINT escrows_seen_when CHECK ((seen_seqno IS NULL) = (seen_at IS NULL)),
    CONSTRAINT escrows_terms_range CHECK (
        challenge_s >= 0 AND allow_max_nano >= 0 AND allow_rate_nano >= 0 AND allow_at_nano >= 0 AND epoch >= 0
    )
);

CREATE INDEX escrows_of_customer ON escrows (customer_id);
CREATE INDEX escrows_watched ON escrows (id)
WHERE state <> 'closed' OR owed_nano > 0 OR settled_nano + refunded_nano < deposited_nano;

-- How far a customer's charges were given to its escrows: `attributed_nano` of them, in the order in which the escrows
-- were registered. What no escrow covers is charged to credit that came otherwise.
CREATE TABLE escrow_customers (
    customer_id uuid PRIMARY KEY REFERENCES customers (id),
    attributed_nano bigint NOT NULL,
    CONSTRAINT escrow_customers_not_negative CHECK (attributed_nano >= 0)
);

-- Vouchers as they were signed; the highest of each signer counts.
CREATE TABLE vouchers (
    escrow_id uuid NOT NULL REFERENCES escrows (id),
    signer text NOT NULL,
    cumulative_nano bigint NOT NULL,
    usage_root bytea NOT NULL,
    signature bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (escrow_id, signer, cumulative_nano),
    CONSTRAINT vouchers_signer_known CHECK (signer IN ('session', 'operator')),
    CONSTRAINT vouchers_cumulative_positive CHECK (cumulative_nano > 0),
    CONSTRAINT vouchers_forms CHECK (length(usage_root) = 32 AND length(signature) = 64)
);

CREATE TRIGGER vouchers_insert_only BEFORE UPDATE OR DELETE ON vouchers
FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- Workers' stakes, by the address that their keysets name. Registered by enrolment, filled by the biller; a change is
-- told on the channel `stakes` with the address.
CREATE TABLE stakes (
    address text PRIMARY KEY,
    worker_id uuid NOT NULL,
    owner text,
    staked_key bytea,
    operator_key bytea,
    unbond_s bigint,
    state text NOT NULL DEFAULT 'registered',
    bond_nano bigint NOT NULL DEFAULT 0,
    unbonding_nano bigint NOT NULL DEFAULT 0,
    unbond_at bigint NOT NULL DEFAULT 0,
    seen_seqno bigint,
    seen_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT stakes_address_form CHECK (address ~ '^0:[0-9a-f]{64}$'),
    CONSTRAINT stakes_owner_form CHECK (owner IS NULL OR owner ~ '^(0|-1):[0-9a-f]{64}$'),
    CONSTRAINT stakes_keys CHECK (coalesce(length(staked_key), 32) = 32 AND coalesce(length(operator_key), 32) = 32),
    CONSTRAINT stakes_state_known CHECK (state IN ('registered', 'live', 'slashed', 'refused')),
    CONSTRAINT stakes_amounts CHECK (bond_nano >= 0 AND unbonding_nano >= 0 AND unbond_at >= 0),
    CONSTRAINT stakes_known_when_live CHECK (
        state NOT IN ('live', 'slashed') OR (owner IS NOT NULL AND staked_key IS NOT NULL AND unbond_s IS NOT NULL)
    ),
    CONSTRAINT stakes_seen_when CHECK ((seen_seqno IS NULL) = (seen_at IS NULL))
);

CREATE INDEX stakes_of_worker ON stakes (worker_id);

CREATE FUNCTION tell_stake() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('stakes', NEW.address);
    RETURN NEW;
END
$$;

CREATE TRIGGER stakes_inserted AFTER INSERT ON stakes FOR EACH ROW EXECUTE FUNCTION tell_stake();

CREATE TRIGGER stakes_changed AFTER UPDATE ON stakes FOR EACH ROW
WHEN (
    (old.worker_id, old.state, old.bond_nano, old.unbonding_nano, old.unbond_at)
    IS DISTINCT FROM (new.worker_id, new.state, new.bond_nano, new.unbonding_nano, new.unbond_at)
)
EXECUTE FUNCTION tell_stake();

-- The payout contract of this network, of which there is one; amounts as the books have them.
CREATE TABLE payout_contract (
    singleton boolean PRIMARY KEY DEFAULT TRUE,
    address text NOT NULL,
    received_nano bigint NOT NULL DEFAULT 0,
    paid_nano bigint NOT NULL DEFAULT 0,
    fee_withdrawn_nano bigint NOT NULL DEFAULT 0,
    active_epoch bigint NOT NULL DEFAULT 0,
    anchor_count bigint NOT NULL DEFAULT 0,
    anchor_size bigint NOT NULL DEFAULT 0,
    anchor_root bytea,
    seen_seqno bigint,
    seen_at timestamptz,
    CONSTRAINT payout_contract_singleton CHECK (singleton),
    CONSTRAINT payout_contract_address_form CHECK (address ~ '^0:[0-9a-f]{64}$'),
    CONSTRAINT payout_contract_pays_what_came CHECK (
        paid_nano >= 0 AND fee_withdrawn_nano >= 0 AND paid_nano + fee_withdrawn_nano <= received_nano
    ),
    CONSTRAINT payout_contract_counts CHECK (active_epoch >= 0 AND anchor_count >= 0 AND anchor_size >= 0),
    CONSTRAINT payout_contract_seen_when CHECK ((seen_seqno IS NULL) = (seen_at IS NULL))
);

-- Whom epochs pay: one row for each wallet. `id` owns the payout_in_flight account; `account` is the wallet's child of
-- the payout contract. claimed and owed are the child's; `paid_nano` less `returned_nano` is what the books have paid:
-- a payment that a wallet bounced comes back, and is paid again.
CREATE TABLE payees (
    id uuid PRIMARY KEY,
    wallet text NOT NULL CONSTRAINT payees_wallet_unique UNIQUE,
    account text CONSTRAINT payees_account_unique UNIQUE,
    claimed_nano bigint NOT NULL DEFAULT 0,
    owed_nano bigint NOT NULL DEFAULT 0,
    paid_nano bigint NOT NULL DEFAULT 0,
    returned_nano bigint NOT NULL DEFAULT 0,
    seen_seqno bigint,
    seen_at timestamptz,
    CONSTRAINT payees_wallet_form CHECK (wallet ~ '^(0|-1):[0-9a-f]{64}$'),
    CONSTRAINT payees_account_form CHECK (account IS NULL OR account ~ '^0:[0-9a-f]{64}$'),
    CONSTRAINT payees_amounts_in_order CHECK (
        owed_nano >= 0 AND owed_nano <= claimed_nano AND returned_nano >= 0 AND returned_nano <= paid_nano
        AND paid_nano - returned_nano <= claimed_nano
    ),
    CONSTRAINT payees_seen_when CHECK ((seen_seqno IS NULL) = (seen_at IS NULL))
);

-- Epochs from 1 on, without a gap. The leaves are fixed in the transaction that moves what they add to
-- payout_in_flight, before anything is sent. `total_nano` is the sum of the leaves, `earned_nano` of all shares.
CREATE TABLE epochs (
    epoch bigint PRIMARY KEY,
    root bytea NOT NULL,
    total_nano bigint NOT NULL,
    earned_nano bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    posted_at timestamptz,
    active_at timestamptz,
    CONSTRAINT epochs_from_one CHECK (epoch >= 1),
    CONSTRAINT epochs_root_form CHECK (length(root) = 32),
    CONSTRAINT epochs_amounts CHECK (total_nano >= 0 AND earned_nano >= 0),
    CONSTRAINT epochs_posted_before_active CHECK (active_at IS NULL OR posted_at IS NOT NULL)
);

CREATE TRIGGER epochs_insert_only BEFORE UPDATE OF epoch, root, total_nano, earned_nano, created_at OR DELETE ON epochs
FOR EACH ROW EXECUTE FUNCTION refuse_change();

CREATE TABLE epoch_leaves (
    epoch bigint NOT NULL REFERENCES epochs (epoch),
    payee_id uuid NOT NULL REFERENCES payees (id),
    cumulative_nano bigint NOT NULL,
    PRIMARY KEY (epoch, payee_id),
    CONSTRAINT epoch_leaves_positive CHECK (cumulative_nano > 0)
);

CREATE TRIGGER epoch_leaves_insert_only BEFORE UPDATE OR DELETE ON epoch_leaves
FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- Claims that were handed to the outbox: at most one for each leaf is on its way.
CREATE TABLE payout_claims (
    epoch bigint NOT NULL,
    payee_id uuid NOT NULL,
    attempt integer NOT NULL,
    outbox_key text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (epoch, payee_id, attempt),
    CONSTRAINT payout_claims_of_leaf FOREIGN KEY (epoch, payee_id) REFERENCES epoch_leaves (epoch, payee_id),
    CONSTRAINT payout_claims_attempt_range CHECK (attempt BETWEEN 1 AND 1000)
);

-- What the chain did, once: the contract `subject` (an address) had reached `cumulative_nano` of `kind` at block
-- `seqno`, and the transfer `transfer_id` of `day` moved the `amount_nano` that it had grown by.
CREATE TABLE chain_movements (
    subject text NOT NULL,
    kind text NOT NULL,
    cumulative_nano bigint NOT NULL,
    amount_nano bigint NOT NULL,
    day date NOT NULL,
    transfer_id uuid NOT NULL CONSTRAINT chain_movements_transfer_unique UNIQUE,
    seqno bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (subject, kind, cumulative_nano),
    CONSTRAINT chain_movements_kind_known CHECK (
        kind IN ('deposit', 'settle', 'refund', 'forgone', 'paid', 'returned', 'fee')
    ),
    CONSTRAINT chain_movements_amounts CHECK (amount_nano > 0 AND cumulative_nano >= amount_nano)
);

CREATE TRIGGER chain_movements_insert_only BEFORE UPDATE OR DELETE ON chain_movements
FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- What an operator has to know of now. One row is open for each kind and subject.
CREATE TABLE biller_alarms (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind text NOT NULL,
    subject text NOT NULL,
    detail text NOT NULL,
    raised_at timestamptz NOT NULL DEFAULT now(),
    cleared_at timestamptz,
    CONSTRAINT biller_alarms_kind_form CHECK (kind ~ '^[a-z_]{1,32}$'),
    CONSTRAINT biller_alarms_detail_size CHECK (length(detail) <= 1024 AND length(subject) <= 128)
);

CREATE UNIQUE INDEX biller_alarms_open ON biller_alarms (kind, subject) WHERE cleared_at IS NULL;
