"""Log lines: one event each, stable names, no patient data: UIDs and AE titles, never names, ids or dates of people."""

import logging
import sys

import structlog


def configure(process: str) -> structlog.stdlib.BoundLogger:
    """Console lines on a terminal, JSON lines elsewhere (journald, files); both on standard error."""
    renderer = (
        structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer(sort_keys=True)
    )
    structlog.configure(
        processors=[
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.add_log_level,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(process=process)
    return logger
