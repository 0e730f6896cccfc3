"""Certificates of nodes and of the ranks server: which are kept, and which are made anew.

Decided from what the Secrets say and from when they were changed, so a controller that is started anew makes nothing
anew. Private keys are in Secrets of the driver's namespace, and for a moment in a temporary directory of our own.
"""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from controller.driver.names import CERTIFICATE_SECRETS
from controller.reconciling.authorities import (
    TRUSTED,
    Authority,
    Chain,
    Files,
    Held,
    as_pem,
    is_of,
    is_trusted,
    read_chain,
    renewal,
)
from fuse_tier.wire.tls import make_certificate

RANKS_NAME: Final = "high-scale-checkpointing-ranks"
CONTROLLER_NAME: Final = "high-scale-checkpointing-controller"


@dataclass(frozen=True, slots=True)
class Signing:
    """With whom and when: ``trusted`` is the bundle, ``is_known`` says that all know of the authority by now."""

    authority: Authority
    trusted: bytes
    is_known: bool
    now: datetime

    def keeps(self, chain: Chain) -> bool:
        """Whether a certificate that is there stays."""
        if is_of(chain, self.authority) and self.now < renewal(chain[0]):
            return True
        # What others may not trust yet is put in the place only of what they trust even less.
        is_valid = bool(chain) and self.now < chain[0].not_valid_after_utc
        return not self.is_known and is_valid and is_trusted(chain, read_chain(self.trusted))


def nodes_files(signing: Signing, nodes: Collection[str], present: Files) -> dict[str, bytes]:
    """What a Secret of nodes shall hold: ``NODE.crt`` and ``NODE.key`` of each, kept where they are still good.

    Raises ConfigError for a node whose name no certificate has room for. Blocks for some milliseconds each.
    """
    files = {TRUSTED: signing.trusted}
    made: list[str] = []
    for node in nodes:
        certificate, key = present.get(f"{node}.crt", b""), present.get(f"{node}.key", b"")
        if key and signing.keeps(read_chain(certificate)):
            files |= {f"{node}.crt": certificate, f"{node}.key": key}
        else:
            made.append(node)
    return files | _make(signing.authority, made)


def own_files(signing: Signing, name: str, present: Files) -> dict[str, bytes]:
    """What a process that is no node shall have: ``ca.crt``, ``tls.crt`` and ``tls.key``, kept where still good."""
    kept = {one.replace("tls.", f"{name}."): content for one, content in present.items()}
    found = nodes_files(signing, [name], kept)
    return {one.replace(f"{name}.", "tls."): content for one, content in found.items()}


def shard_of(node: str) -> int:
    """Which of its configuration's Secrets a node is in."""
    return hashlib.sha256(node.encode()).digest()[0] % CERTIFICATE_SECRETS


def first_end(held: Held) -> float | None:
    """When the first certificate of a Secret ends, in seconds since 1970; None without any."""
    return min((chain[0].not_valid_after_utc.timestamp() for chain in held.chains()), default=None)


def decoded(secret: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of a Secret."""
    return {name: base64.b64decode(value) for name, value in (secret.get("data") or {}).items()}


def encoded(files: Files) -> dict[str, str]:
    """As a Secret has them."""
    return {name: base64.b64encode(content).decode() for name, content in files.items()}


def utc_now() -> datetime:
    """The time, for all that is asked of it here."""
    return datetime.now(UTC)


def _make(authority: Authority, nodes: Collection[str]) -> dict[str, bytes]:
    if not nodes:
        return {}
    files = {}
    with tempfile.TemporaryDirectory() as directory:
        for name, content in (("ca.pem", as_pem([authority.signer])), ("ca.key", authority.key)):
            descriptor = os.open(os.path.join(directory, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "wb") as file:
                file.write(content)
        for node in nodes:
            made = make_certificate(directory, node)
            files[f"{node}.crt"] = _read(made.cert) + authority.between
            files[f"{node}.key"] = _read(made.key)
    return files


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
