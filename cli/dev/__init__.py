"""The development network: the real servers, embedded, and the supervisor that keeps them.

`EmbeddedPostgres` and `EmbeddedRedis` stand alone, so that tests can start, kill and restart them.
"""
