"""Logs: one line per event on stderr, text on a terminal and JSON elsewhere. A fault that repeats is counted, not repeated."""

from __future__ import annotations

import logging
import sys

import structlog


def start_logging(form: str, level: int = logging.INFO) -> None:
    """Set the process's logging up: *form* is auto, text or json; less than *level* is left out."""
    as_text = form == "text" or (form == "auto" and sys.stderr.isatty())
    last = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()) if as_text else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.CRITICAL)  # libraries: what matters of theirs is translated where they are imported


class Repeated:
    """Tells whether a fault is news: the same text again is only counted."""

    def __init__(self) -> None:
        self._text = ""
        self.count = 0

    def is_news(self, text: str) -> bool:
        """Return True for a fault that differs from the last one; *count* then begins anew."""
        if text == self._text:
            self.count += 1
            return False
        self._text, self.count = text, 1
        return True
