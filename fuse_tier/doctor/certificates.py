"""The certificates of a node: whether they can be read, belong together, name this node, and for how long."""

from __future__ import annotations

import datetime
import os
import stat
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from fuse_tier.config import NodeConfig
from fuse_tier.doctor.finding import Finding
from fuse_tier.errors import ConfigError
from fuse_tier.wire.tls import SERVER_NAME, TlsFiles, check, common_name

_SOON: Final = datetime.timedelta(days=30)


def examine(config: NodeConfig) -> list[Finding]:
    """Reads files only."""
    if config.tls is None:
        return [Finding.ok("tls.files", "there is no `tls`, and all addresses are this machine's own")]
    files = TlsFiles(config.tls.ca, config.tls.cert, config.tls.key)
    renew = f"renew it: `fuse-tier tls issue DIR --node {config.node}`"
    try:
        check(files)
        certificate, authorities = _read(files.cert)[0], _read(files.ca)
        name = common_name(files)
    except ConfigError as error:
        skipped = [
            Finding.skipped(one, "without readable files") for one in ("tls.authority", "tls.expiry", "tls.name")
        ]
        return [Finding.failed("tls.files", str(error), renew), *skipped]
    return [
        _key(files),
        _authority(certificate, authorities, files, renew),
        _expiry(certificate, authorities, renew),
        _name(certificate, name, config.node, renew),
    ]


def _read(path: str) -> list[x509.Certificate]:
    with open(path, "rb") as file:
        return x509.load_pem_x509_certificates(file.read())


def _key(files: TlsFiles) -> Finding:
    if stat.S_IMODE(os.stat(files.key).st_mode) & 0o077:
        return Finding.warning(
            "tls.files", f"others than its owner may read {files.key}", f"`chmod 600 {files.key}`, and renew it"
        )
    return Finding.ok("tls.files", "certificate, key and authority can be read and fit each other")


def _authority(
    certificate: x509.Certificate, authorities: list[x509.Certificate], files: TlsFiles, renew: str
) -> Finding:
    for authority in authorities:
        try:
            certificate.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature):
            continue
        return Finding.ok("tls.authority", f"{files.ca} has signed {files.cert}")
    return Finding.failed(
        "tls.authority",
        f"{files.ca} has not signed {files.cert}: other nodes refuse it",
        f"{renew} with that authority",
    )


def _expiry(certificate: x509.Certificate, authorities: list[x509.Certificate], renew: str) -> Finding:
    now = datetime.datetime.now(datetime.UTC)
    ends = min(one.not_valid_after_utc for one in (certificate, *authorities))
    begins = max(one.not_valid_before_utc for one in (certificate, *authorities))
    if certificate.not_valid_after_utc > ends:
        renew = (
            "the authority ends first: make a new one (`fuse-tier tls init`) and give its certificates to all nodes"
        )
    if ends <= now:
        return Finding.failed("tls.expiry", f"it ended at {ends:%Y-%m-%d %H:%M} UTC", renew)
    if begins > now:
        return Finding.failed(
            "tls.expiry", f"it is valid from {begins:%Y-%m-%d %H:%M} UTC on", "set this machine's clock"
        )
    detail = f"valid until {ends:%Y-%m-%d}, for {(ends - now).days} days"
    return Finding.warning("tls.expiry", detail, renew) if ends - now < _SOON else Finding.ok("tls.expiry", detail)


def _name(certificate: x509.Certificate, name: str, node: str, renew: str) -> Finding:
    if name != node:
        return Finding.failed("tls.name", f"the certificate is of node {name!r}, and this is {node!r}", renew)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        known = set(names.get_values_for_type(x509.DNSName))
    except x509.ExtensionNotFound:
        known = set()
    lacking = [one for one in (SERVER_NAME, node) if one not in known]
    if lacking:
        detail = f"the certificate lacks the DNS name {' and '.join(map(repr, lacking))}, under which others call it"
        return Finding.failed("tls.name", detail, renew)
    return Finding.ok("tls.name", f"the certificate is of node {node!r}")
