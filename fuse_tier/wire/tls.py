"""Who may talk to whom: one authority per cluster, one certificate per node, both sides always verified.

A node's certificate carries its name as common name, which is who it is, as a caller and for content; and two DNS
names, so that addresses may change freely: its name again, under which it is called, and ``fuse-tier``, under which
it is called by who knows its address only. This module reads and checks the files; it never opens a connection.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fuse_tier.errors import ConfigError
from fuse_tier.identity import is_name

SERVER_NAME = "fuse-tier"


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
    return _name_of(read_certificates(files.cert)[0], files.cert)


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


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ConfigError(f"TLS file {path} can not be read: {error.strerror}") from error


def read_certificates(path: str) -> list[x509.Certificate]:
    """From a PEM file, of which there is at least one. Raises ConfigError naming it."""
    try:
        return x509.load_pem_x509_certificates(_read(path))
    except ValueError as error:
        raise ConfigError(f"TLS file {path} holds no PEM certificate") from error


def read_key_file(path: str) -> ec.EllipticCurvePrivateKey:
    """From a PEM file. Raises ConfigError naming it."""
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
    read_certificates(files.ca)
    certificate, key = read_certificates(files.cert)[0], read_key_file(files.key)
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
