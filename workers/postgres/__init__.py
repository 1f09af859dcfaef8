"""Enrolments on PostgreSQL: stored once, followed by every gateway process."""
