-- What workers showed for their keysets, and what was found about it. Receipts name a keyset by its digest, so these
-- rows stay when their worker has left.

-- A nonce that a worker key was given for one enrolment; a row goes when it is answered or too old.
CREATE TABLE enrolment_challenges (
    nonce bytea PRIMARY KEY,
    key_id uuid NOT NULL,
    expires_at timestamptz NOT NULL,
    CONSTRAINT enrolment_challenges_nonce_form CHECK (length(nonce) = 32)
);

CREATE INDEX enrolment_challenges_of_key ON enrolment_challenges (key_id, expires_at);

-- Vendors' documents are the same for many keysets; they are kept once, under the digest of their exact bytes.
CREATE TABLE endorsements (
    sha256 bytea PRIMARY KEY,
    content bytea NOT NULL,
    first_seen_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT endorsements_sha256_form CHECK (length(sha256) = 32)
);

-- Texts of the policies that verdicts name.
CREATE TABLE policies (
    sha256 bytea PRIMARY KEY,
    content bytea NOT NULL,
    first_seen_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT policies_sha256_form CHECK (length(sha256) = 32)
);

-- The latest judgement about each keyset. Without a TEE there is no evidence and no verdict. `attested_until` is the
-- earliest end of what the verdict rests on; `hardware_id` (PPID or chip id) and `gpu_serials` are what it proved.
-- `refusal` is the last refused attempt to show fresh evidence, which leaves an earlier admission in force to its end.
CREATE TABLE enrolled_keysets (
    digest bytea PRIMARY KEY,
    keyset bytea NOT NULL,
    worker_id uuid NOT NULL,
    name text NOT NULL,
    outcome text NOT NULL,
    tee_type text NOT NULL,
    level text NOT NULL,
    nonce bytea,
    evidence bytea,
    endorsements_sha256 bytea REFERENCES endorsements (sha256),
    verdict jsonb,
    reasons jsonb NOT NULL DEFAULT '[]',
    policy_sha256 bytea,
    hardware_id bytea,
    gpu_serials text[] NOT NULL DEFAULT '{}',
    first_seen_at timestamptz NOT NULL DEFAULT now(),
    judged_at timestamptz NOT NULL DEFAULT now(),
    attested_until timestamptz,
    refusal jsonb,
    refused_at timestamptz,
    CONSTRAINT enrolled_keysets_digest_form CHECK (length(digest) = 32),
    CONSTRAINT enrolled_keysets_outcome_known CHECK (outcome IN ('admitted', 'quarantined', 'refused')),
    CONSTRAINT enrolled_keysets_level_known CHECK (level IN ('none', 'tdx', 'tdx+gpu')),
    CONSTRAINT enrolled_keysets_evidence_judged CHECK (
        (evidence IS NULL) = (verdict IS NULL) AND (evidence IS NULL) = (policy_sha256 IS NULL)
    ),
    CONSTRAINT enrolled_keysets_level_proven CHECK (level = 'none' OR (outcome = 'admitted' AND evidence IS NOT NULL)),
    CONSTRAINT enrolled_keysets_refusal_dated CHECK ((refusal IS NULL) = (refused_at IS NULL))
);

CREATE INDEX enrolled_keysets_of_worker ON enrolled_keysets (worker_id, judged_at);

-- For readers: a keyset with everything that was shown for it.
CREATE VIEW keysets AS
SELECT
    k.digest,
    k.keyset,
    k.worker_id,
    k.name,
    k.outcome,
    k.tee_type,
    k.level,
    k.nonce,
    k.evidence,
    e.content AS endorsements,
    k.verdict,
    k.reasons,
    k.policy_sha256,
    k.first_seen_at,
    k.judged_at,
    k.attested_until
FROM enrolled_keysets AS k
LEFT JOIN endorsements AS e ON k.endorsements_sha256 = e.sha256;
