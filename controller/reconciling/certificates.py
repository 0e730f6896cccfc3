"""Certificates of nodes and of the ranks server: made by an authority that is kept in a Secret, and renewed in time.

All is decided from what the Secrets say, so a controller that is started anew makes nothing anew. Private keys are in
Secrets of the driver's namespace, and for a moment in a temporary directory of this process's own.
"""

from __future__ import annotations

import base64
import os
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from fuse_tier.wire.tls import make_authority, make_certificate

AUTHORITY: Final = "fuse-tier-authority"
RANKS: Final = "high-scale-checkpointing-ranks-certificates"
RANKS_NAME: Final = "high-scale-checkpointing-ranks"

Files = Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Authority:
    """PEM."""

    certificate: bytes
    key: bytes


def new_authority() -> Files:
    """What the authority's Secret holds. Blocks for some milliseconds, as all below."""
    with tempfile.TemporaryDirectory() as directory:
        make_authority(directory)
        return {"ca.crt": _read(directory, "ca.pem"), "ca.key": _read(directory, "ca.key")}


def nodes_files(authority: Authority, nodes: Collection[str], present: Files, now: datetime) -> Files:
    """What the Secret of nodes shall hold: ``NODE.crt`` and ``NODE.key`` of each, kept where they are still good."""
    files = {"ca.crt": authority.certificate}
    with _workshop(authority) as directory:
        for node in sorted(nodes):
            certificate, key = f"{node}.crt", f"{node}.key"
            if key in present and is_good(present.get(certificate, b""), authority, now):
                files |= {certificate: present[certificate], key: present[key]}
            else:
                make_certificate(directory, node)
                files |= {certificate: _read(directory, f"{node}.pem"), key: _read(directory, f"{node}.key")}
    return files


def server_files(authority: Authority, present: Files, now: datetime) -> Files:
    """What the Secret of the ranks server shall hold: ``ca.crt``, ``tls.crt`` and ``tls.key``."""
    kept = {f"{RANKS_NAME}.{kind}": present[f"tls.{kind}"] for kind in ("crt", "key") if f"tls.{kind}" in present}
    made = nodes_files(authority, [RANKS_NAME], kept, now)
    return {"ca.crt": made["ca.crt"], "tls.crt": made[f"{RANKS_NAME}.crt"], "tls.key": made[f"{RANKS_NAME}.key"]}


def is_good(certificate: bytes, authority: Authority, now: datetime) -> bool:
    """Whether a certificate is the authority's, and less than two thirds of its life are over."""
    try:
        found = x509.load_pem_x509_certificate(certificate)
        found.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.certificate))
    except (ValueError, TypeError, InvalidSignature):
        return False
    life = found.not_valid_after_utc - found.not_valid_before_utc
    return now < found.not_valid_before_utc + life * 2 / 3


def decoded(secret: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of a Secret."""
    return {name: base64.b64decode(value) for name, value in (secret.get("data") or {}).items()}


def encoded(files: Files) -> dict[str, str]:
    """As a Secret has them."""
    return {name: base64.b64encode(content).decode() for name, content in files.items()}


def utc_now() -> datetime:
    """The time, for all that is asked of it here."""
    return datetime.now(UTC)


class _workshop:  # noqa: N801 - a context manager that reads as a function
    """A directory in which the authority can sign."""

    def __init__(self, authority: Authority) -> None:
        self._authority = authority
        self._directory = tempfile.TemporaryDirectory()

    def __enter__(self) -> str:
        directory = self._directory.__enter__()
        for name, content in (("ca.pem", self._authority.certificate), ("ca.key", self._authority.key)):
            descriptor = os.open(os.path.join(directory, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "wb") as file:
                file.write(content)
        return directory

    def __exit__(self, *_: object) -> None:
        self._directory.cleanup()


def _read(directory: str, name: str) -> bytes:
    with open(os.path.join(directory, name), "rb") as file:
        return file.read()
