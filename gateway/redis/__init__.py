"""Rate limits on Redis."""
