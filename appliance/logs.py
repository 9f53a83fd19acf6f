"""Log lines: one event each, stable names, no patient data: UIDs and AE titles, never names, ids or dates of people."""

import io
import json
import logging
import sys
import threading
import warnings
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Protocol, TextIO, cast


class Logger(Protocol):
    """What each process says what happened with."""

    def info(self, event: str, **words: Any) -> None: ...
    def error(self, event: str, **words: Any) -> None: ...


def configure(process: str) -> Logger:
    """Console lines on a terminal, JSON lines elsewhere (journald, files); both on standard error."""
    _silence_libraries()
    return _console(process) if sys.stderr.isatty() else _JsonLines(process)


class _JsonLines:
    def __init__(self, process: str) -> None:
        self._process = process
        self._out, self._lock = _Lines(), threading.Lock()

    def info(self, event: str, **words: Any) -> None:
        self._say(event, "info", words)

    def error(self, event: str, **words: Any) -> None:
        self._say(event, "error", words)

    def _say(self, event: str, level: str, words: dict[str, Any]) -> None:
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        line = {"process": self._process, **words, "event": event, "level": level, "timestamp": now}
        text = json.dumps(line, sort_keys=True, default=repr) + "\n"
        with self._lock:
            self._out.write(text)  # at once: processes share the pipe
            self._out.flush()


def _console(process: str) -> Logger:
    import structlog  # noqa: PLC0415 - it takes a fifth of the start of a process that writes JSON

    structlog.configure(
        processors=[
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.add_log_level,
            structlog.dev.ConsoleRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", _Lines())),
    )
    logger: Logger = structlog.get_logger(process=process)
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
