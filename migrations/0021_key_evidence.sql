-- What a key demands of every worker that answers it, whatever a request says.
ALTER TABLE api_keys ADD COLUMN required_evidence text NOT NULL DEFAULT 'any';
ALTER TABLE api_keys ADD CONSTRAINT api_keys_evidence_known
CHECK (required_evidence IN ('any', 'tdx', 'tdx+gpu')) NOT VALID;
