"""Who may talk to whom: one authority per cluster, one certificate per node, both sides always verified.

A node's certificate carries its name as common name, which is who a caller is; and the fixed DNS name
``fuse-tier``, under which every node is verified, so that addresses may change freely. This module reads,
checks and makes the files; it never opens a connection. Invariant: no private key is ever readable by
others, not even for a moment.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import ssl
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fuse_tier.errors import ConfigError
from fuse_tier.identity import is_name

SERVER_NAME = "fuse-tier"
_AUTHORITY = "ca"  # what its files are called
_AUTHORITY_LIFE = datetime.timedelta(days=3652)
_NODE_LIFE = datetime.timedelta(days=365)
_CLOCK_SKEW = datetime.timedelta(days=1, hours=1)  # a node whose clock is a day behind takes part all the same
_MAX_COMMON_NAME = 64  # X.520, ub-common-name


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of PEM files: the cluster's authority, this node's certificate, and its key."""

    ca: str
    cert: str
    key: str


@dataclass(frozen=True, slots=True)
class _Material:
    ca: bytes
    cert: bytes
    key: bytes


def common_name(files: TlsFiles) -> str:
    """The node that a certificate was made for. Raises ConfigError."""
    return _name_of(_certificates(files.cert)[0], files.cert)


def check(files: TlsFiles) -> None:
    """Sees that all three files are there, are PEM, and fit each other. Raises ConfigError naming the file."""
    _load(files)


def grpc_client_credentials(files: TlsFiles) -> grpc.ChannelCredentials:
    """For a client of such a server. Raises ConfigError."""
    found = _load(files)
    return grpc.ssl_channel_credentials(found.ca, found.key, found.cert)


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """TLS 1.3 for who listens; the client must have a certificate. Raises ConfigError."""
    return _context(files, ssl.PROTOCOL_TLS_SERVER)


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """TLS 1.3 for connecting bulk streams; use ``SERVER_NAME`` as server_hostname. Raises ConfigError."""
    return _context(files, ssl.PROTOCOL_TLS_CLIENT)


def node_of(encoded: bytes | None) -> str:
    """The node whose certificate (DER) was shown when hands were shaken; empty without a name."""
    if encoded is None:
        return ""
    names = x509.load_der_x509_certificate(encoded).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


class MalformedKey(ConfigError):
    """A private key that is of no use here; the text is a clause about what holds it."""


def read_key(content: bytes) -> ec.EllipticCurvePrivateKey:
    """From PEM. Raises MalformedKey."""
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:  # TypeError: the key has a password
        raise MalformedKey("holds no PEM private key without a password") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise MalformedKey("holds a key of another kind: use one of an elliptic curve, such as P-256")
    return key


def check_name(name: str) -> None:
    """Sees that a certificate can be made for a node of this name. Raises ConfigError."""
    if not is_name(name) or len(name) > _MAX_COMMON_NAME:
        raise ConfigError(
            f"{name!r} can not stand in a certificate: use at most {_MAX_COMMON_NAME} letters and digits"
        )
    if name == _AUTHORITY:
        raise ConfigError(
            f"{name!r} can not be a node's name: its files would replace the authority's, {_AUTHORITY}.pem and "
            f"{_AUTHORITY}.key; give the node another name"
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
    """Makes ``<name>.pem`` and ``<name>.key``, signed by the authority in the same directory; renews what is there.

    ``addresses`` are IP addresses and host names by which others may reach the node. Raises ConfigError.
    """
    check_name(name)
    authority_path, authority_key_path = _paths(directory, _AUTHORITY)
    files = TlsFiles(authority_path, *_paths(directory, name))
    authority = _certificates(files.ca)[0]
    authority_key = _private_key(authority_key_path)
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
    _write(files.key, _pem_of_key(key), 0o600)
    _write(files.cert, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    return files


def _paths(directory: str, name: str) -> tuple[str, str]:
    """Where a certificate stands, and its key."""
    return os.path.join(directory, f"{name}.pem"), os.path.join(directory, f"{name}.key")


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


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ConfigError(f"TLS file {path} can not be read: {error.strerror}") from error


def _certificates(path: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(_read(path))
    except ValueError as error:
        raise ConfigError(f"TLS file {path} holds no PEM certificate") from error


def _private_key(path: str) -> ec.EllipticCurvePrivateKey:
    try:
        return read_key(_read(path))
    except MalformedKey as error:
        raise ConfigError(f"TLS file {path} {error}") from error


def _name_of(certificate: x509.Certificate, path: str) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    name = str(names[0].value) if names else ""
    if not is_name(name):
        raise ConfigError(f"TLS file {path} names no node: its common name is {name!r}")
    return name


def _load(files: TlsFiles) -> _Material:
    _certificates(files.ca)
    certificate, key = _certificates(files.cert)[0], _private_key(files.key)
    if certificate.public_key() != key.public_key():
        raise ConfigError(f"TLS key {files.key} does not belong to certificate {files.cert}")
    _name_of(certificate, files.cert)
    return _Material(_read(files.ca), _read(files.cert), _read(files.key))


def _context(files: TlsFiles, protocol: int) -> ssl.SSLContext:
    _load(files)
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(files.cert, files.key)
        context.load_verify_locations(files.ca)
    except ssl.SSLError as error:
        raise ConfigError(f"TLS files {files.cert} and {files.ca} are of no use: {error.reason}") from error
    except OSError as error:  # gone since they were looked at
        raise ConfigError(f"TLS files {files.cert} and {files.ca} can not be read: {error.strerror}") from error
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # nobody resumes, and a client that only sends would leave them unread
    return context
