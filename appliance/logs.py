"""Log lines: one event each, stable names, no patient data: UIDs and AE titles, never names, ids or dates of people."""

import logging
import sys
import warnings

import structlog


def configure(process: str) -> structlog.stdlib.BoundLogger:
    """Console lines on a terminal, JSON lines elsewhere (journald, files); both on standard error."""
    _silence_libraries()
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
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),  # one write a line: processes share the pipe
    )
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(process=process)
    return logger


def _silence_libraries() -> None:
    """DICOM libraries quote values of the data set in their warnings and log lines: patient data (P10)."""
    warnings.simplefilter("ignore")
    for name in ("pydicom", "highdicom", "pynetdicom"):
        logger = logging.getLogger(name)
        logger.handlers = [logging.NullHandler()]
        logger.propagate = False
