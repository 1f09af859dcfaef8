-- What Intel says about platforms, by family: fetched by the replica that needs it, served on while it cannot be.

-- `content` is the canonical encoding of `attestation.tdx.collateral.Collateral`; the times are its validity.
CREATE TABLE collateral (
    fmspc text NOT NULL,
    ca text NOT NULL,
    content bytea NOT NULL,
    evaluation integer NOT NULL,
    starts_at timestamptz NOT NULL,
    ends_at timestamptz NOT NULL,
    fetched_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (fmspc, ca),
    CONSTRAINT collateral_ca_known CHECK (ca IN ('platform', 'processor')),
    CONSTRAINT collateral_size CHECK (length(content) <= 16777216)
);
