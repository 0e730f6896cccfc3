"""How every process of fuse-tier logs: structlog to stderr, JSON lines unless a person is looking.

Each line has the time (UTC, ISO 8601), the level, the event, the process's role and the node's name. What libraries
log with the standard library comes out the same way, from WARNING up. Values under names that belong to secrets are
never written.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor

LEVEL_VARIABLE = "FUSE_TIER_LOG_LEVEL"  # debug, info, warning or error; info without it
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_SECRETS = frozenset({"token", "key", "password", "secret", "authorization", "credentials"})


def configure(role: str, node: str, stream: TextIO | None = None) -> None:
    """Sets logging up for this process: once, at its start. ``role`` such as ``worker``; ``node`` may be empty.

    Lines go to ``stream``, else to what stderr is now.
    """
    target = sys.stderr if stream is None else stream
    level = _LEVELS.get(os.environ.get(LEVEL_VARIABLE, "").lower(), logging.INFO)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        _Origin(role, node),
        _hide_secrets,
    ]
    rendering = _renderers(target)
    structlog.configure(
        processors=[*shared, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=target),
        # Modules make their loggers when they are imported, which is before this is called.
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(level, logging.WARNING))
    logging.captureWarnings(True)


class Lasting:
    """Standard error that may go away: whoever reads our log may end, and the job's mount must not."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes what can be written."""
        with suppress(OSError, ValueError):
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flushes what can be flushed."""
        with suppress(OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        """Whether a person is looking."""
        return self._stream.isatty()


class _Origin:
    """Says which process a line comes from."""

    def __init__(self, role: str, node: str) -> None:
        self._origin = {"role": role} | ({"node": node} if node else {})

    def __call__(self, logger: Any, method: str, event: EventDict) -> EventDict:
        for name, value in self._origin.items():
            event.setdefault(name, value)
        return event


def _hide_secrets(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name in event:
        if name.lower() in _SECRETS:
            event[name] = "(hidden)"
    return event


def _renderers(target: TextIO) -> list[Processor]:
    if target.isatty():
        return [
            structlog.dev.ConsoleRenderer(
                colors="NO_COLOR" not in os.environ,
                timestamp_key="time",
                # The default prints local variables, among which may be a token.
                exception_formatter=structlog.dev.plain_traceback,
            )
        ]
    return [
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(default=str),
    ]
