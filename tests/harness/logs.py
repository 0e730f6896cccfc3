"""A test fails on any log line of level warning or above that it did not announce.

Lines come from this process (structlog and the standard library's logging) and from files that processes
started by the test wrote (``watch``). In such a file a line that is no JSON object is taken for an error too:
everything that a node means to say, it says in a structured line.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

_LOUD = frozenset({"warning", "warn", "error", "critical", "exception", "fatal"})


@dataclass(frozen=True, slots=True)
class Line:
    """One loud line: where it was seen, its event (or message), and all of it."""

    origin: str
    event: str
    text: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.text}"


@dataclass(slots=True)
class ExpectedLogs:
    """What a test announces, and what was said meanwhile. See the fixture ``expected_logs``."""

    _allowed: list[re.Pattern[str]] = field(default_factory=list)
    _watched: list[Path] = field(default_factory=list)
    _heard: list[Line] = field(default_factory=list)

    def allow(self, *events: str) -> None:
        """Announces events: each a whole event name or message, or a regular expression that matches it whole."""
        self._allowed += [re.compile(event, re.DOTALL) for event in events]

    def watch(self, path: Path) -> None:
        """Adds a log file, or a directory of ``*.log`` files, of processes that the test starts."""
        self._watched.append(path)

    def hear(self, line: Line) -> None:
        """Takes a loud line of this process; any thread may call it."""
        self._heard.append(line)

    @property
    def heard(self) -> list[Line]:
        """Every loud line of this process so far, announced or not."""
        return [*self._heard]

    def unannounced(self) -> list[Line]:
        """Every loud line so far that matches nothing announced."""
        lines = [*self._heard]
        for path in self._watched:
            for file in sorted(path.rglob("*.log")) if path.is_dir() else [path]:
                lines += loud_lines(file) if file.exists() else []
        return [line for line in lines if not any(pattern.fullmatch(line.event) for pattern in self._allowed)]


def loud_lines(file: Path) -> list[Line]:
    """The lines of a process's log that a test must have announced."""
    found = []
    for text in file.read_text(errors="replace").splitlines():
        line = _parse(file.name, text)
        if line is not None:
            found.append(line)
    return found


def _parse(origin: str, text: str) -> Line | None:
    if not text.strip():
        return None
    try:
        fields = json.loads(text)
    except ValueError:
        return Line(origin, text, text)
    if not isinstance(fields, dict):
        return Line(origin, text, text)
    if str(fields.get("level", "")).lower() not in _LOUD:
        return None
    return Line(origin, str(fields.get("event", "")), text)


class StandardLibraryEar(logging.Handler):
    """Hears what libraries say through ``logging``."""

    def __init__(self, expected: ExpectedLogs) -> None:
        super().__init__(logging.WARNING)
        self._expected = expected

    def emit(self, record: logging.LogRecord) -> None:
        """Takes a record of level warning or above."""
        message = record.getMessage()
        self._expected.hear(Line(record.name, message, f"{record.levelname} {message}"))


class StructlogEar:
    """A structlog processor that hears our own lines and passes them on."""

    def __init__(self, expected: ExpectedLogs) -> None:
        self._expected = expected

    def __call__(self, logger: Any, method: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Takes the fields of one line."""
        if method in _LOUD:
            text = " ".join(f"{name}={value!r}" for name, value in fields.items() if name != "event")
            self._expected.hear(Line("structlog", str(fields.get("event")), f"{method} {fields.get('event')} {text}"))
        return fields


def listen(expected: ExpectedLogs) -> StandardLibraryEar:
    """Makes structlog and logging report to ``expected``; give what this returns to ``stop_listening``."""
    ear = StandardLibraryEar(expected)
    logging.getLogger().addHandler(ear)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            StructlogEar(expected),
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer(colors=False),
        ],
        cache_logger_on_first_use=False,
    )
    return ear


def stop_listening(ear: StandardLibraryEar) -> None:
    """The reverse of ``listen``."""
    logging.getLogger().removeHandler(ear)
    structlog.reset_defaults()
