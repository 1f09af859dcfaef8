"""The log in Postgres: queue, tiles, checkpoints and the one sequencer."""
