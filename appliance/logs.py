"""Log lines: one event each, stable names, no patient data: UIDs and AE titles, never names, ids or dates of people."""

import io
import logging
import sys
import warnings
from contextlib import suppress
from typing import TextIO, cast

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
        # One write a line: processes share the pipe.
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", _Lines())),
    )
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(process=process)
    return logger


class _Lines(io.TextIOBase):
    """Standard error, as long as somebody takes it: who lost the log's reader goes on working."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            sys.stderr.flush()


def _silence_libraries() -> None:
    """DICOM libraries quote values of the data set in their warnings and log lines: patient data (P10)."""
    warnings.simplefilter("ignore")
    for name in ("pydicom", "highdicom", "pynetdicom"):
        logger = logging.getLogger(name)
        logger.handlers = [logging.NullHandler()]
        logger.propagate = False
