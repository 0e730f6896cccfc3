"""Makes certificates: an authority's, and those of nodes, as files or in memory.

In a directory the authority's files are ``ca.pem`` and ``ca.key``, and a node's ``NAME.pem`` and ``NAME.key``; a node
that is called ``ca`` has its own one level below, in ``nodes``. Invariant: no private key is ever readable by others,
not even for a moment.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fuse_tier.errors import ConfigError
from fuse_tier.identity import is_name
from fuse_tier.wire.tls import SERVER_NAME, TlsFiles, read_certificates, read_key_file

_AUTHORITY = "ca"  # what its files are called
_ASIDE = "nodes"  # where those of a node of that name are
_AUTHORITY_LIFE = datetime.timedelta(days=3652)
_NODE_LIFE = datetime.timedelta(days=365)
_CLOCK_SKEW = datetime.timedelta(days=1, hours=1)  # a node whose clock is a day behind takes part all the same
_MAX_COMMON_NAME = 64  # X.520, ub-common-name


@dataclass(frozen=True, slots=True)
class Signed:
    """A node's certificate and its key, PEM."""

    certificate: bytes
    key: bytes


def check_name(name: str) -> None:
    """Sees that a certificate can be made for a node of this name. Raises ConfigError."""
    if name.lower() == SERVER_NAME:
        raise ConfigError(
            f"{name!r} can not be a node's name: it stands in every certificate, so any node could play that one"
        )
    if not is_name(name) or len(name) > _MAX_COMMON_NAME:
        raise ConfigError(
            f"{name!r} can not stand in a certificate: use at most {_MAX_COMMON_NAME} letters and digits"
        )


def make_authority(directory: str, name: str = "fuse-tier authority") -> None:
    """Makes ``ca.pem`` and ``ca.key`` for ten years. Raises ConfigError when there is one already."""
    certificate_path, key_path = _paths(directory, _AUTHORITY)
    for path in (certificate_path, key_path):
        if os.path.lexists(path):
            raise ConfigError(
                f"{path} is there already: every certificate it signed would be void; remove it yourself"
            )
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject(name)
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _builder(subject, subject, key.public_key(), _AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    _write(key_path, _pem_of_key(key), 0o600)
    _write(certificate_path, certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def make_certificate(
    directory: str, name: str, addresses: Sequence[str] = (), life: datetime.timedelta = _NODE_LIFE
) -> TlsFiles:
    """Makes a node's files, signed by the authority in the same directory; renews what is there.

    ``addresses`` are IP addresses and host names by which others may reach the node. Raises ConfigError.
    """
    check_name(name)
    authority_path, authority_key_path = _paths(directory, _AUTHORITY)
    authority, authority_key = read_certificates(authority_path)[0], read_key_file(authority_key_path)
    signed = sign(authority, authority_key, name, addresses, life)
    files = TlsFiles(authority_path, *_paths_of_node(directory, name))
    _write(files.key, signed.key, 0o600)
    _write(files.cert, signed.certificate, 0o644)
    return files


def sign(
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    name: str,
    addresses: Sequence[str] = (),
    life: datetime.timedelta = _NODE_LIFE,
) -> Signed:
    """A new certificate for a node, in memory only. Raises ConfigError."""
    check_name(name)
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        _builder(_subject(name), authority.subject, key.public_key(), life)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(_alternative_names(name, addresses)), critical=False)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
    )
    certificate = builder.sign(authority_key, hashes.SHA256())
    return Signed(certificate.public_bytes(serialization.Encoding.PEM), _pem_of_key(key))


def _paths(directory: str, name: str) -> tuple[str, str]:
    """Where a certificate stands, and its key."""
    return os.path.join(directory, f"{name}.pem"), os.path.join(directory, f"{name}.key")


def _paths_of_node(directory: str, name: str) -> tuple[str, str]:
    """None of them is the authority's, whatever the node is called."""
    return _paths(os.path.join(directory, _ASIDE) if name == _AUTHORITY else directory, name)


def _alternative_names(name: str, addresses: Sequence[str]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = [x509.DNSName(name), x509.DNSName(SERVER_NAME)]
    for address in addresses:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(address)))
        except ValueError:
            names.append(x509.DNSName(address))
    return names


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, life: datetime.timedelta
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, now + life) - _CLOCK_SKEW)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _pem_of_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: str, content: bytes, mode: int) -> None:
    try:
        os.makedirs(os.path.dirname(path) or ".", mode=0o700, exist_ok=True)
        fd, temporary = tempfile.mkstemp(dir=os.path.dirname(path) or ".", prefix=".tls-")  # made with mode 0600
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(content)
                os.fchmod(fd, mode)
            os.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise ConfigError(f"{path} can not be written: {error.strerror}") from error
