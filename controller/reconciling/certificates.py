"""Certificates of nodes and of the ranks server: which are kept, and which are made anew.

Decided from what the Secrets say and from when they were changed, so a controller that is started anew makes nothing
anew. Private keys are in Secrets of the driver's namespace, and in no file here. What is wrong with one node's name
keeps no other from its certificate.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from controller.driver.names import TRUSTED, TRUSTED_BY_NODES, certificate_keys
from controller.reconciling.authorities import (
    Authority,
    Chain,
    Files,
    Held,
    is_of,
    is_trusted,
    read_chain,
    renewal,
)
from fuse_tier.errors import ConfigError
from fuse_tier.wire.certificates import check_name, sign
from fuse_tier.wire.tls import read_key

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
    """What a Secret of nodes shall hold: certificate and key of each, kept where they are still good.

    None of a node whose name no certificate has room for: see ``trouble_of``. Blocks for some milliseconds each.
    """
    files = {TRUSTED: signing.trusted, TRUSTED_BY_NODES: signing.trusted}
    for node in nodes:
        if trouble_of(node) is None:
            files |= _kept_or_made(signing, node, certificate_keys(node), present)
    return files


def own_files(signing: Signing, name: str, present: Files) -> dict[str, bytes]:
    """What a process that is no node shall have: ``ca.crt``, ``tls.crt`` and ``tls.key``, kept where still good."""
    return {TRUSTED: signing.trusted, **_kept_or_made(signing, name, ("tls.crt", "tls.key"), present)}


def trouble_of(node: str) -> str | None:
    """Why there is no certificate for a node of this name; None where there is."""
    try:
        check_name(node)
    except ConfigError as error:
        return str(error)
    return None


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


def _kept_or_made(signing: Signing, name: str, keys: tuple[str, str], present: Files) -> dict[str, bytes]:
    certificate, key = (present.get(one, b"") for one in keys)
    if not key or not signing.keeps(read_chain(certificate)):
        authority = signing.authority
        signed = sign(authority.signer, read_key(authority.key), name)
        certificate, key = signed.certificate + authority.between, signed.key
    return dict(zip(keys, (certificate, key), strict=True))
