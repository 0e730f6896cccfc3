from __future__ import annotations

import datetime
import os
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509

from fuse_tier.errors import ConfigError
from fuse_tier.wire import tls
from fuse_tier.wire.certificates import make_authority, make_certificate
from fuse_tier.wire.tls import TlsFiles


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    make_authority(str(tmp_path))
    return tmp_path


def test_a_certificate_names_its_node_and_the_addresses_it_is_reached_by(directory: Path) -> None:
    files = make_certificate(str(directory), "node-1", ["127.0.0.1", "::1", "node-1.example"])
    certificate = x509.load_pem_x509_certificate(Path(files.cert).read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["node-1", "fuse-tier", "node-1.example"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    assert tls.common_name(files) == "node-1"
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc < datetime.timedelta(days=367)


def test_keys_are_readable_by_their_owner_alone(directory: Path) -> None:
    files = make_certificate(str(directory), "a")
    for path in (files.key, str(directory / "ca.key")):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert sorted(os.listdir(directory)) == ["a.key", "a.pem", "ca.key", "ca.pem"]


def test_an_authority_is_never_replaced(directory: Path) -> None:
    before = (directory / "ca.key").read_bytes()
    with pytest.raises(ConfigError, match=r"ca\.pem is there already"):
        make_authority(str(directory))
    assert (directory / "ca.key").read_bytes() == before


def test_a_certificate_can_be_renewed(directory: Path) -> None:
    first = make_certificate(str(directory), "a")
    before = Path(first.cert).read_bytes()
    second = make_certificate(str(directory), "a")
    assert first == second
    assert Path(second.cert).read_bytes() != before
    tls.check(second)


@pytest.mark.parametrize("name", ["", "../b", "a b", "a" * 65])
def test_a_name_that_can_not_stand_in_a_certificate_is_refused(directory: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="can not stand in a certificate"):
        make_certificate(str(directory), name)


@pytest.mark.parametrize("name", ["fuse-tier", "Fuse-Tier"])
def test_no_node_has_the_name_that_stands_in_all_certificates(directory: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="any node could play that one"):
        make_certificate(str(directory), name)


def test_a_node_that_is_called_as_the_authoritys_files_are_has_its_own_beside_them(directory: Path) -> None:
    before = {path: path.read_bytes() for path in directory.iterdir()}
    for _ in range(2):
        files = make_certificate(str(directory), "ca")
        tls.check(files)
        assert tls.common_name(files) == "ca"
    assert [Path(path).relative_to(directory) for path in (files.ca, files.cert, files.key)] == [
        Path("ca.pem"), Path("nodes/ca.pem"), Path("nodes/ca.key")
    ]  # fmt: skip
    assert {path: path.read_bytes() for path in directory.iterdir() if path.is_file()} == before
    tls.check(make_certificate(str(directory), "b"))


def test_a_certificate_without_an_authority_is_refused_and_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ca\.pem can not be read: No such file"):
        make_certificate(str(tmp_path), "a")


@pytest.mark.parametrize("file", ["ca", "cert", "key"])
@pytest.mark.parametrize("content", [None, b"", b"rubbish", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_a_file_that_is_missing_or_no_pem_is_named(directory: Path, file: str, content: bytes | None) -> None:
    files = make_certificate(str(directory), "a")
    path = Path(getattr(files, file))
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    for use in (tls.check, tls.server_context, tls.client_context, tls.grpc_client_credentials):
        with pytest.raises(ConfigError, match=str(path)):
            use(files)


def test_a_key_of_another_certificate_is_refused_and_names_both(directory: Path) -> None:
    a, b = make_certificate(str(directory), "a"), make_certificate(str(directory), "b")
    with pytest.raises(ConfigError, match=rf"{b.key} does not belong to certificate {a.cert}"):
        tls.check(TlsFiles(a.ca, a.cert, b.key))


def test_bulk_streams_take_nothing_older_than_tls_13_and_nobody_without_a_certificate(directory: Path) -> None:
    files = make_certificate(str(directory), "a")
    for context in (tls.server_context(files), tls.client_context(files)):
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3
        assert context.verify_mode is ssl.CERT_REQUIRED
    assert tls.client_context(files).check_hostname
