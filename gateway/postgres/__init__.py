"""Keys in Postgres."""
