"""Whom all trust while authorities change: a fleet of readers that learn of it late is never cut apart."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from functools import cache

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from controller.driver.names import TRUSTED
from controller.reconciling.authorities import (
    SPREAD,
    Authority,
    Held,
    all_trust,
    given_authority,
    is_trusted,
    new_authority,
    own_authority,
    read_chain,
    trusted_by_all,
)
from controller.reconciling.certificates import Signing, nodes_files
from fuse_tier.errors import ConfigError

NOW = dt.datetime.now(dt.UTC)
DAY = dt.timedelta(days=1)


def signed(
    name: str, by: tuple[x509.Name, ec.EllipticCurvePrivateKey] | None, *, is_authority: bool = True, end: dt.datetime
) -> tuple[bytes, bytes, tuple[x509.Name, ec.EllipticCurvePrivateKey]]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    issuer, signer = by or (subject, key)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - 10 * DAY)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .sign(signer, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    plain = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return certificate.public_bytes(encoding), plain, (subject, key)


@cache
def authority(number: int) -> Authority:
    return own_authority(new_authority(), str(number))


class Fleet:
    """Secrets, and who reads each of them, up to ``SPREAD`` late."""

    def __init__(self) -> None:
        self.now = NOW
        self.secrets = [Held({}) for _ in range(3)]
        self.unread: dict[int, dt.datetime] = {}  # Secrets that were written since they were read, and since when
        self.read: list[Mapping[str, bytes]] = []

    def look(self, signer: Authority) -> None:
        """What the issuer does with one Secret after another."""
        for number, held in enumerate(self.secrets):
            made = [one for one in self.secrets if one.files]
            trusted = trusted_by_all([signer], made, self.now)
            signing = Signing(signer, trusted, all_trust(signer, made, self.now), self.now)
            files = nodes_files(signing, [f"n{number}"], held.files)
            if files != held.files:
                self.secrets[number] = held.changed_to(files, self.now)
                self.unread.setdefault(number, self.now)

    def see(self, number: int) -> None:
        self.read[number] = self.secrets[number].files
        self.unread.pop(number, None)

    def check(self) -> None:
        for number, one in enumerate(self.read):
            chain = read_chain(one[f"n{number}.crt"])
            for other in self.read:
                assert is_trusted(chain, read_chain(other[TRUSTED]))


steps = st.tuples(
    st.integers(0, 2),  # which authority is wanted
    st.integers(0, 15),  # minutes that pass
    st.lists(st.integers(0, 2), max_size=3),  # who looks before its time is over
)


@given(st.lists(steps, max_size=12))
def test_nobody_shows_a_certificate_that_another_does_not_trust(taken: list[tuple[int, int, list[int]]]) -> None:
    fleet = Fleet()
    fleet.look(authority(0))
    fleet.read = [held.files for held in fleet.secrets]
    fleet.unread = {}
    for wanted, minutes, readers in taken:
        for _ in range(minutes):
            fleet.now += dt.timedelta(minutes=1)
            for number, since in list(fleet.unread.items()):
                if fleet.now - since >= SPREAD - dt.timedelta(minutes=1):
                    fleet.see(number)
            fleet.check()
        fleet.look(authority(wanted))
        for reader in readers:
            fleet.see(reader)
            fleet.check()
    last = taken[-1][0] if taken else 0
    for _ in range(4):
        fleet.now += SPREAD
        fleet.look(authority(last))
    for held in fleet.secrets:
        assert held.files[TRUSTED] == authority(last).anchors, "those before are forgotten in the end"
        assert all(is_trusted(chain, read_chain(held.files[TRUSTED])) for chain in held.chains())


def test_an_authority_of_somebody_elses_may_be_below_another_one() -> None:
    root, _, by = signed("root", None, end=NOW + 100 * DAY)
    middle, key, _ = signed("middle", by, end=NOW + 100 * DAY)
    found = given_authority({"tls.crt": middle, "tls.key": key, "ca.crt": root}, "mine")
    files = nodes_files(Signing(found, found.anchors, True, NOW), ["a"], {})
    assert files[TRUSTED] == root
    chain = read_chain(files["a.crt"])
    assert len(chain) == 2, "nobody knows the one between otherwise"
    assert is_trusted(chain, read_chain(root))


def secret(certificate: bytes, key: bytes, _by: object = None) -> Mapping[str, bytes]:
    return {"tls.crt": certificate, "tls.key": key}


ROOT, ROOT_KEY, _BY = signed("root", None, end=NOW + 100 * DAY)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "the Secret mine lacks tls.crt"),
        ({"tls.crt": ROOT}, "the Secret mine lacks tls.key"),
        (secret(b"nonsense", ROOT_KEY), "holds no PEM certificate"),
        (secret(ROOT, b"nonsense"), "holds no PEM private key"),
        (secret(ROOT, signed("x", None, end=NOW + DAY)[1]), "holds a key that is not its certificate's"),
        (secret(*signed("leaf", None, is_authority=False, end=NOW + DAY)), "CA:FALSE"),
        (secret(*signed("old", None, end=NOW - DAY)), "is valid until"),
        (secret(*signed("middle", _BY, end=NOW + DAY)), "who signed its certificate"),
    ],
)
def test_a_secret_that_is_no_authoritys_is_told_what_it_has_to_be(files: Mapping[str, bytes], said: str) -> None:
    with pytest.raises(ConfigError) as told:
        given_authority(files, "mine")
    assert said in str(told.value)
    assert "it has to be an authority's, with tls.crt, tls.key" in str(told.value)
