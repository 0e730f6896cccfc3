"""What the doctor says of one thing."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class State(enum.StrEnum):
    """How something is; ``failed`` is what keeps a node from working as it is configured."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. ``remedy`` is empty where nothing has to be done, or ``detail`` says it."""

    check: str  # such as ``bucket.create``
    state: State
    detail: str
    remedy: str = ""

    @classmethod
    def ok(cls, check: str, detail: str) -> Finding:
        """As it should be."""
        return cls(check, State.OK, detail)

    @classmethod
    def warning(cls, check: str, detail: str, remedy: str = "") -> Finding:
        """It works, but not as well as it could, or not for ever."""
        return cls(check, State.WARNING, detail, remedy)

    @classmethod
    def failed(cls, check: str, detail: str, remedy: str = "") -> Finding:
        """It does not work."""
        return cls(check, State.FAILED, detail, remedy)

    @classmethod
    def skipped(cls, check: str, detail: str) -> Finding:
        """Could not be looked at, because of something else that is in the list."""
        return cls(check, State.SKIPPED, detail)
