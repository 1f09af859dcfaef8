"""Fixtures that every folder of tests may ask for."""

pytest_plugins = ["tests.fixtures_postgres", "tests.fixtures_redis", "tests.fixtures_gateway"]
