"""Certificates for tests: good ones, and every kind of bad one."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

from fuse_tier.wire.certificates import make_authority, make_certificate
from fuse_tier.wire.tls import TlsFiles


@dataclass(frozen=True, slots=True)
class Certificates:
    """``a`` and ``b`` are of one authority."""

    a: TlsFiles
    b: TlsFiles
    expired: TlsFiles
    stranger: TlsFiles  # of another authority, and trusts only that
    intruder: TlsFiles  # of another authority, and trusts ours


def make_certificates(directory: Path) -> Certificates:
    """Makes the files in new directories below."""
    ours, others = directory / "ours", directory / "others"
    for authority in (ours, others):
        authority.mkdir(parents=True)
        make_authority(str(authority))
    a, b = (make_certificate(str(ours), name, ["127.0.0.1"]) for name in ("a", "b"))
    expired = make_certificate(str(ours), "old", life=datetime.timedelta(minutes=-1))
    stranger = make_certificate(str(others), "a")
    return Certificates(a, b, expired, stranger, TlsFiles(a.ca, stranger.cert, stranger.key))
