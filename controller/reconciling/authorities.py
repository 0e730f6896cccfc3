"""Who signs certificates, and whom all trust. Values only: Secrets are read and written by ``issuing.py``.

The invariant, whichever authority an operator changes to: who had a certificate never shows one that others do not
trust yet. The other authority is trusted first; when all readers of the Secrets have had time to see it (``SPREAD``)
it signs (``certificates.py``); and the one before stays trusted until nobody shows a certificate of its any more.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from controller.driver.names import TRUSTED
from fuse_tier.errors import ConfigError
from fuse_tier.wire.certificates import make_authority
from fuse_tier.wire.tls import read_key

SPREAD: Final = timedelta(minutes=10)
"""In which kubelets, and then nodes, see what a Secret says; kubelets look each minute or two."""
_NEVER: Final = datetime.min.replace(tzinfo=UTC)
_FEW: Final = 1 << 14

Files = Mapping[str, bytes]
Chain = tuple[x509.Certificate, ...]


@dataclass(frozen=True, slots=True)
class Authority:
    """PEM. ``certificate`` has who signs first, then who signed that; ``anchors`` is what others have to trust."""

    certificate: bytes
    key: bytes
    anchors: bytes

    @property
    def signer(self) -> x509.Certificate:
        """Who signs."""
        return read_chain(self.certificate)[0]

    @property
    def between(self) -> bytes:
        """What has to be shown besides a certificate, since nobody knows it otherwise."""
        return as_pem(one for one in read_chain(self.certificate) if one not in read_chain(self.anchors))


@dataclass(frozen=True, slots=True)
class Held:
    """What a Secret holds; when what it says of whom to trust last changed, and when a certificate was replaced."""

    files: Files
    trust_changed: datetime = _NEVER
    replaced: datetime = _NEVER

    def changed_to(self, files: Files, now: datetime) -> Held:
        """With other files."""
        is_replaced = any(files.get(name, content) != content for name, content in self._shown())
        trust_changed = now if files[TRUSTED] != self.files.get(TRUSTED) else self.trust_changed
        return Held(files, trust_changed, now if is_replaced else self.replaced)

    def chains(self) -> Iterable[Chain]:
        """Every certificate in it that somebody shows."""
        return (chain for _, content in self._shown() if (chain := read_chain(content)))

    def _shown(self) -> Iterable[tuple[str, bytes]]:
        return ((name, file) for name, file in self.files.items() if name.endswith(".crt") and name != TRUSTED)


def new_authority() -> Files:
    """What the Secret of an authority of ours holds. Blocks for some milliseconds."""
    with tempfile.TemporaryDirectory() as directory:
        make_authority(directory)
        found = {}
        for name, file in (("ca.crt", "ca.pem"), ("ca.key", "ca.key")):
            with open(f"{directory}/{file}", "rb") as opened:
                found[name] = opened.read()
        return found


def own_authority(files: Files, secret: str) -> Authority:
    """From its Secret. Raises ConfigError."""
    try:
        return _checked(Authority(files["ca.crt"], files["ca.key"], files["ca.crt"]))
    except (KeyError, ConfigError) as error:
        said = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ConfigError(f"the Secret {secret} {said}: delete it, and a new one is made") from error


def given_authority(files: Files, secret: str) -> Authority:
    """From one that somebody else keeps, as cert-manager makes it of an authority. Raises ConfigError."""
    remedy = "it has to be an authority's, with tls.crt, tls.key and, unless that signed itself, ca.crt"
    for name in ("tls.crt", "tls.key"):
        if not files.get(name):
            raise ConfigError(f"the Secret {secret} lacks {name}: {remedy}")
    try:
        return _checked(Authority(files["tls.crt"], files["tls.key"], files.get(TRUSTED) or files["tls.crt"]))
    except ConfigError as error:
        raise ConfigError(f"the Secret {secret} {error}: {remedy}") from error


def trusted_by_all(authorities: Iterable[Authority], held: Collection[Held], now: datetime) -> bytes:
    """The bundle: who signs, and who has signed what is shown, or was a moment ago."""
    wanted = {one for authority in authorities for one in read_chain(authority.anchors)}
    before = {one for each in held for one in read_chain(each.files.get(TRUSTED, b""))} - wanted
    if all(now - each.replaced >= SPREAD for each in held):
        shown = [chain for each in held for chain in each.chains()]
        before = {one for one in before if any(is_trusted(chain, [one]) for chain in shown)}
    return as_pem(sorted({*wanted, *before}, key=lambda one: (one.not_valid_before_utc, one.serial_number)))


def all_trust(authority: Authority, held: Iterable[Held], now: datetime) -> bool:
    """Whether whoever reads one of these Secrets knows the authority by now."""
    anchors = set(read_chain(authority.anchors))
    return all(
        anchors <= set(read_chain(each.files.get(TRUSTED, b""))) and now - each.trust_changed >= SPREAD
        for each in held
    )


def is_trusted(chain: Chain, anchors: Collection[x509.Certificate]) -> bool:
    """Whether who knows ``anchors`` takes the first of a chain for genuine, were it still valid."""
    if not all(_issued(one, by) for one, by in pairwise(chain)):
        return False
    return any(_issued(chain[-1], anchor) for anchor in anchors)


def is_of(chain: Chain, authority: Authority) -> bool:
    """Whether the authority has signed the first of a chain."""
    return bool(chain) and _issued(chain[0], authority.signer)


def renewal(certificate: x509.Certificate) -> datetime:
    """When two thirds of its life are over."""
    begin = certificate.not_valid_before_utc
    return begin + (certificate.not_valid_after_utc - begin) * 2 / 3


@lru_cache(maxsize=_FEW)
def read_chain(pem: bytes) -> Chain:
    """The certificates of a text; none where it makes no sense."""
    try:
        return tuple(x509.load_pem_x509_certificates(pem))
    except ValueError:
        return ()


def as_pem(certificates: Iterable[x509.Certificate]) -> bytes:
    """Their text."""
    return b"".join(one.public_bytes(Encoding.PEM) for one in certificates)


@lru_cache(maxsize=_FEW)
def _issued(certificate: x509.Certificate, by: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(by)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _checked(authority: Authority) -> Authority:
    """Raises ConfigError: a clause about the Secret."""
    chain, anchors = read_chain(authority.certificate), read_chain(authority.anchors)
    if not chain or not anchors:
        raise ConfigError("holds no PEM certificate")
    try:
        is_authority = chain[0].extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        is_authority = False
    if not is_authority:
        raise ConfigError("holds a certificate that may sign no other (CA:FALSE)")
    now = datetime.now(UTC)
    if not chain[0].not_valid_before_utc <= now < chain[0].not_valid_after_utc:
        raise ConfigError(f"holds a certificate that is valid until {chain[0].not_valid_after_utc:%Y-%m-%d}")
    if not any(_issued(one, one) for one in anchors) or not (is_trusted(chain, anchors) or chain[0] in anchors):
        raise ConfigError("does not say in ca.crt who signed its certificate, up to the one who signed itself")
    if read_key(authority.key).public_key() != chain[0].public_key():
        raise ConfigError("holds a key that is not its certificate's")
    return authority
