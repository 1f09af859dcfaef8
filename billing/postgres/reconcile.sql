-- What `cocoon reconcile` compares with the chain and with receipts, read in one snapshot.

-- name: seen_last
-- The contract that the books have seen as of the latest block, of those that are compared; no row before the first.
SELECT
    seen.contract,
    seen.seqno
FROM (
    SELECT
        address AS contract,
        seen_seqno AS seqno
    FROM escrows
    UNION ALL
    SELECT
        account AS contract,
        seen_seqno AS seqno
    FROM payees
    UNION ALL
    SELECT
        address AS contract,
        seen_seqno AS seqno
    FROM payout_contract
) AS seen
WHERE seen.seqno IS NOT NULL
ORDER BY seen.seqno DESC, seen.contract ASC
LIMIT 1;

-- name: receipts_that_differ
-- Charged usage rows whose receipt says other counts, with the reason where one is recorded. The counts are the last
-- twelve bytes of a head (PROTOCOL §4).
WITH heads AS (
    SELECT
        day,
        job_id,
        outcome,
        prompt_tokens,
        cached_tokens,
        completion_tokens,
        ('x' || ENCODE(SUBSTRING(receipt_head FROM 113 FOR 4), 'hex'))::bit(32)::bigint AS prompt,
        ('x' || ENCODE(SUBSTRING(receipt_head FROM 117 FOR 4), 'hex'))::bit(32)::bigint AS cached,
        ('x' || ENCODE(SUBSTRING(receipt_head FROM 121 FOR 4), 'hex'))::bit(32)::bigint AS completion
    FROM usage
    WHERE LENGTH(receipt_head) = 124 AND SUBSTRING(receipt_head FROM 1 FOR 4) = 'CRH1'::bytea
),

known AS (
    SELECT
        day,
        job_id,
        MIN(kind) AS kind
    FROM discrepancies
    GROUP BY day, job_id
)

SELECT
    heads.job_id,
    heads.outcome,
    known.kind AS recorded,
    heads.prompt_tokens + heads.cached_tokens + heads.completion_tokens AS booked,
    heads.prompt + heads.cached + heads.completion AS claimed
FROM heads
LEFT JOIN known ON heads.day = known.day AND heads.job_id = known.job_id
WHERE
    (heads.prompt_tokens, heads.cached_tokens, heads.completion_tokens)
    IS DISTINCT FROM (heads.prompt, heads.cached, heads.completion)
ORDER BY heads.job_id
LIMIT 1000;

-- name: usage_totals
-- All usage, and that of it which no receipt is kept for.
SELECT
    COUNT(*) AS requests,
    COALESCE(SUM(charge_nano), 0) AS charged,
    COALESCE(SUM(share_nano), 0) AS shared,
    COUNT(*) FILTER (WHERE receipt_head IS NULL) AS without_receipt,
    COALESCE(SUM(charge_nano) FILTER (WHERE receipt_head IS NULL), 0) AS charged_without_receipt
FROM usage;

-- name: account_totals
-- Balances by kind: credits less debits.
SELECT
    kind,
    SUM(credits_posted - debits_posted) AS balance,
    SUM(credits_posted) AS credits,
    SUM(debits_posted) AS debits
FROM accounts
GROUP BY kind;

-- name: contract_in_the_books
SELECT
    address,
    received_nano,
    paid_nano,
    fee_withdrawn_nano,
    active_epoch,
    anchor_count,
    anchor_size,
    anchor_root
FROM payout_contract;

-- name: epochs_with_leaves
-- Every epoch: its total, its root, and what it added.
SELECT
    epoch.epoch,
    epoch.root,
    epoch.total_nano,
    epoch.posted_at,
    epoch.active_at,
    epoch.total_nano - COALESCE(LAG(epoch.total_nano) OVER (ORDER BY epoch.epoch), 0) AS added_nano
FROM epochs AS epoch
ORDER BY epoch.epoch;

-- name: earned_by_payee
-- What the workers of each wallet were ever credited and have still payable.
SELECT
    own.wallet,
    SUM(account.credits_posted) AS earned,
    SUM(account.credits_posted - account.debits_posted) AS payable
FROM accounts AS account
INNER JOIN workers AS named ON account.owner = named.worker_id
INNER JOIN api_keys AS own ON named.key_id = own.id
WHERE account.kind = 'worker_payable' AND own.wallet IS NOT NULL
GROUP BY own.wallet
ORDER BY own.wallet;
