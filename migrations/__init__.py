"""The schema, forward only: numbered SQL files that `billing.postgres.migrate` runs."""
