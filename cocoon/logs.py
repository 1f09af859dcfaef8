"""Structured logs: one JSON object a line on standard error.

Events are snake_case in the past tense; ids are fields. Prompts, completions, keys and raw quotes never are.
"""

import logging
import sys

import structlog


def configure_logging(process: str, *, level: int = logging.INFO) -> None:
    """Set up structlog for this process; call once at start-up."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(process=process)
