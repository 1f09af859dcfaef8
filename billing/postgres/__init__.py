"""The books in PostgreSQL. Only this package speaks SQL about money."""
