"""The transparency log: one append-only Merkle tree over receipts, admissions, policies and manifests (PROTOCOL §5).

Pure but for `audit.postgres`. What a verifier needs lies in `cocoon` (merkle, checkpoints, transparency): this package
only makes the log.
"""
