"""What reading every byte of a tier has found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What reading every byte of a tier's snapshots has found. Content that several share counts once."""

    snapshots: int
    blobs: int
    bytes: int
    damaged: tuple[str, ...] = ()  # a line for each: what, and what is wrong with it
