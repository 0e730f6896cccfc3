"""Who we are to a bucket: key files, tokens that expire midway, and refusals that say what to do."""

from __future__ import annotations

import itertools
import json
import random
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from fuse_tier.emulator import Emulator
from fuse_tier.errors import TierRefused, TierUnavailable
from fuse_tier.hashing import hash_bytes
from fuse_tier.tiers.bucket import BucketTier
from fuse_tier.tiers.memory import MemoryBlobs
from tests.harness.snapshots import check_producible, holding, keep
from tests.tiers.faulty_http import Fault, Proxy

ACCOUNT = "node@project.iam.gserviceaccount.com"


class Issuer:
    """Issues tokens as Google's token service does; only the latest one counts."""

    def __init__(self, proxy: Proxy) -> None:
        self.status = 200
        self.issued = 0
        self._proxy = proxy
        self._numbers = itertools.count()

    def answer(self) -> tuple[int, dict[str, Any]]:
        if self.status != 200:
            return self.status, {"error": "invalid_grant", "error_description": "account not found"}
        self.issued += 1
        token = f"token-{next(self._numbers)}"
        self._proxy.accounts = {token}
        return 200, {"access_token": token, "expires_in": 3600, "token_type": "Bearer"}

    def expire(self) -> None:
        """The token that was issued counts no longer, though its time has not come."""
        self._proxy.accounts = set()


@contextmanager
def issuing(proxy: Proxy) -> Iterator[tuple[Issuer, str]]:
    issuer = Issuer(proxy)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            status, answer = issuer.answer()
            text = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield issuer, f"http://127.0.0.1:{server.server_address[1]}/token"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def private_key() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()


@pytest.fixture
def issuer_and_key(
    proxy: Proxy, private_key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Issuer, str]]:
    # A thread of google-auth's asks another service of Google's where the account may be used from.
    lookup = (
        "google.auth.credentials.CredentialsWithRegionalAccessBoundary._maybe_start_regional_access_boundary_refresh"
    )
    monkeypatch.setattr(lookup, lambda *_: None, raising=False)
    with issuing(proxy) as (issuer, url):
        path = tmp_path / "key.json"
        key = {"type": "service_account", "project_id": "project", "private_key_id": "1", "private_key": private_key}
        path.write_text(json.dumps(key | {"client_email": ACCOUNT, "token_uri": url}))
        yield issuer, str(path)


@pytest.fixture
def issuer(issuer_and_key: tuple[Issuer, str]) -> Issuer:
    return issuer_and_key[0]


@pytest.fixture
async def tier(proxy: Proxy, issuer_and_key: tuple[Issuer, str]) -> AsyncIterator[BucketTier]:
    tier = BucketTier("gs://checkpoints/a", proxy.endpoint, patience=1, key_file=issuer_and_key[1])
    yield tier
    await tier.aclose()


async def test_a_key_file_opens_the_bucket(tier: BucketTier, issuer: Issuer) -> None:
    await keep(tier, {"weights": b"0123"})
    await check_producible(tier)
    assert issuer.issued == 1


@pytest.mark.parametrize("size", [1000, 6 << 20, 40 << 20])
async def test_a_token_that_expires_midway_is_renewed_and_nothing_is_lost(
    tier: BucketTier, proxy: Proxy, issuer: Issuer, rng: random.Random, size: int
) -> None:
    await tier.snapshots()
    proxy.faults += [
        Fault("POST", "/upload/", first=issuer.expire),
        Fault("POST", "/upload/", first=issuer.expire),
        Fault("GET", "/download/", first=issuer.expire),
    ]
    content = rng.randbytes(size)
    manifest = await keep(tier, {"weights": content})
    sink = MemoryBlobs()
    await tier.fetch(manifest.blobs, sink)
    assert sink.contents == {hash_bytes(content): content}
    assert issuer.issued >= 4
    assert all(fault.times == 0 for fault in proxy.faults)


async def test_a_token_that_expires_within_a_batch_is_renewed_likewise(
    tier: BucketTier, proxy: Proxy, issuer: Issuer
) -> None:
    manifest = await keep(tier, {str(number): b"%d" % number for number in range(20)})
    proxy.refuses_calls = True
    issuer.expire()
    assert len((await tier.drop_all([manifest.id])).removed) == 1
    assert issuer.issued == 2


async def test_an_account_that_is_gone_is_told_with_what_to_do(tier: BucketTier, issuer: Issuer) -> None:
    issuer.status = 400
    with pytest.raises(TierRefused, match=r"no valid credentials.*account not found.*`bucket\.credentials`"):
        await tier.snapshots()


@pytest.mark.chaos  # google-auth's own patience takes seconds
async def test_a_token_service_that_is_troubled_may_pass(tier: BucketTier, issuer: Issuer) -> None:
    issuer.status = 503
    with pytest.raises(TierUnavailable, match="cannot be renewed"):
        await tier.snapshots()
    issuer.status = 200
    assert list(await tier.snapshots()) == []


async def test_a_key_file_that_is_not_there_is_named(proxy: Proxy, tmp_path: Path) -> None:
    tier = BucketTier("gs://checkpoints/a", proxy.endpoint, key_file=str(tmp_path / "none.json"))
    with pytest.raises(TierRefused, match=r"none\.json"):
        await tier.snapshots()


@pytest.mark.parametrize(
    ("method", "path", "said", "told"),
    [
        (
            "POST",
            "/upload/",
            f"{ACCOUNT} does not have storage.objects.create access to the Google Cloud Storage object. "
            "Permission 'storage.objects.create' denied on resource (or it may not exist).",
            rf"{ACCOUNT} lacks storage\.objects\.create on gs://checkpoints: .*add-iam-policy-binding gs://checkpoints"
            rf" --member=serviceAccount:{ACCOUNT} --role=roles/storage\.objectUser.*README, 'Bucket access'",
        ),
        (
            "GET",
            "/o?",
            "principal://iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/subject/ns/n/sa/s "
            "does not have storage.objects.list access to the Google Cloud Storage bucket.",
            r"^principal://iam\S+ lacks storage\.objects\.list on .*--member=principal://iam\S+sa/s --role",
        ),
        ("GET", "/o?", "Access denied.", rf"^{ACCOUNT} lacks storage\.objects\.list"),
        (
            "GET",
            "/o?",
            "Bucket is a requester pays bucket but no user project provided.",
            r"requester pays",
        ),
        (
            "GET",
            "/o?",
            "The billing account for the owning project is disabled in state absent",
            r"^http://\S+ refused a request for gs://checkpoints/a/\S+: 403 The billing account",
        ),
        (
            "POST",
            "/upload/",
            "Permission denied on Cloud KMS key. Please ensure that your Cloud Storage service account has been "
            "authorized to use this key.",
            r"^http://\S+ refused a request for gs://checkpoints/a/\S+: 403 Permission denied on Cloud KMS key",
        ),
        (
            "POST",
            "/upload/",
            f"{ACCOUNT} does not have storage.objects.create access to gs://retention-policy-hold.",
            rf"^{ACCOUNT} lacks storage\.objects\.create",
        ),
    ],
)
async def test_a_refusal_names_principal_permission_bucket_and_the_command_that_grants_it(
    tier: BucketTier, proxy: Proxy, method: str, path: str, said: str, told: str
) -> None:
    status = 400 if "requester" in said else 403
    proxy.faults.append(Fault(method, path, status=status, says=said, times=99))
    with pytest.raises(TierRefused, match=told):
        await (keep(tier, {"weights": b"0123"}) if method == "POST" else tier.snapshots())


async def test_credentials_that_are_valid_for_nobody_are_told_as_such(tier: BucketTier, proxy: Proxy) -> None:
    proxy.faults.append(Fault("GET", "/o?", status=401, says="Invalid Credentials", times=99))
    with pytest.raises(TierRefused, match=r"does not accept our credentials .*GOOGLE_APPLICATION_CREDENTIALS"):
        await tier.snapshots()


async def test_who_asks_too_often_comes_again(tier: BucketTier, proxy: Proxy) -> None:
    proxy.faults.append(Fault("GET", "/o?", status=403, says="User rate limit exceeded.", times=1))
    assert await tier.snapshots() == []


async def test_who_has_no_credentials_at_all_is_told_so(emulator: Emulator, proxy: Proxy) -> None:
    proxy.accounts = {"somebody's"}
    tier = BucketTier("gs://checkpoints/a", proxy.endpoint, patience=0.2)
    with pytest.raises(TierRefused, match="no valid credentials"):
        await tier.store([hash_bytes(b"0")], holding([b"0"]))
    await tier.aclose()
