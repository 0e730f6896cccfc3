"""Certificates for tests: good ones, and every kind of bad one."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from fuse_tier.wire.certificates import make_authority, make_certificate
from fuse_tier.wire.tls import TlsFiles, read_certificates, read_key_file


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


def self_made(directory: Path, name: str, *dns_names: str) -> TlsFiles:
    """A node's certificate as people make them with tools of their own, of the authority in a directory."""
    files = TlsFiles(*(str(directory / file) for file in ("ca.pem", f"{name}-own.pem", f"{name}-own.key")))
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(read_certificates(files.ca)[0].subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=90))
        .add_extension(x509.SubjectAlternativeName(list(map(x509.DNSName, dns_names))), critical=False)
        .sign(read_key_file(str(directory / "ca.key")), hashes.SHA256())
    )
    Path(files.cert).write_bytes(certificate.public_bytes(Encoding.PEM))
    Path(files.key).touch(0o600)
    Path(files.key).write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return files
