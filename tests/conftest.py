"""What holds for every test: needs are met or told, logs are announced, random numbers have a seed."""

from __future__ import annotations

import inspect
import os
import random
import secrets
import tempfile
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.harness import needs
from tests.harness.logs import ExpectedLogs, listen, stop_listening
from tests.harness.outward import noticing
from tests.harness.watchdog import body_seconds, bounded

if TYPE_CHECKING:
    from tests.harness.clusters import Clusters

settings.register_profile("fast", deadline=None, print_blob=True, max_examples=20)
settings.register_profile("dev", deadline=None, print_blob=True)
# A gate says the same of the same code each time; to look for more is what every other run does.
settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))

# Tests below these start processes or talk TCP: `make test-fast` leaves them out. One that is not here fails.
_OUTWARD = (
    "csi/test_publishing.py",
    "csi/test_lifecycle.py",
    "csi/test_mending.py",
    "csi/test_sanity.py",
    "cli",
    "coordinate/test_service.py",
    "crd",
    "deploy",
    "doctor",
    "e2e/training/test_programs.py",
    "localcluster",
    "node",
    "ram/test_pins_crashing.py",
    "replicate/test_coordinator_killed.py",
    "replicate/test_membership.py",
    "replicate/test_membership_of_peers.py",
    "replicate/test_records.py",
    "replicate/test_reporting.py",
    "replicate/test_steward.py",
    "replicate/test_stewardship.py",
    "replicate/test_two_coordinators.py",
    "test_emulator.py",
    "test_logs.py",
    "test_metrics.py",
    "tiers/test_bucket.py",
    "tiers/test_bucket_access.py",
    "tiers/test_bucket_accidents.py",
    "tiers/test_bucket_downloads.py",
    "tiers/test_bucket_faults.py",
    "tiers/test_bucket_uploads.py",
    "tiers/test_peer.py",
    "wire/test_bandwidth.py",
    "wire/test_bulk.py",
    "wire/test_bulk_admission.py",
    "wire/test_bulk_limits.py",
    "wire/test_bulk_nonsense.py",
    "wire/test_bulk_sizes.py",
    "wire/test_clusters_apart.py",
    "wire/test_conversations.py",
    "wire/test_grpc.py",
    "wire/test_impostors.py",
    "wire/test_intake.py",
    "wire/test_resuming.py",
    "wire/test_strangers.py",
    "wire/test_renewal.py",
    "wire/test_versions.py",
)
# What stands on these does so as well.
_OUTWARD_FIXTURES = frozenset({"emulator", "make_cluster", "api_server", "shared_api_server"})
# A test with none of these marks is one of `make test-fast`.
_NOT_FAST = (*needs.NEEDS, "network", "slow", "chaos")
# Whole clusters: they come last, when all that they are made of is known to work.
_WHOLE = ("chaos", "demo", "e2e")
_SEED = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--seed",
        type=int,
        default=None,
        help="seed of the fixture `rng` (default: $FUSE_TIER_SEED, or drawn; printed)",
    )


def pytest_configure(config: pytest.Config) -> None:
    chosen = config.getoption("--seed")
    if chosen is None:
        chosen = int(os.environ.get("FUSE_TIER_SEED") or secrets.randbits(32))
    config.stash[_SEED] = chosen


def pytest_report_header(config: pytest.Config) -> str:
    return f"fuse-tier: --seed={config.stash[_SEED]}; required: {' '.join(sorted(needs.required(os.environ))) or '-'}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not isinstance(item, pytest.Function):
            continue
        below = f"{item.path.relative_to(Path(__file__).parent).as_posix()}::{item.name}"
        if below.startswith(_OUTWARD) or _OUTWARD_FIXTURES & set(item.fixturenames):
            item.add_marker(pytest.mark.network)
        if not any(map(item.get_closest_marker, _NOT_FAST)):
            item.add_marker(pytest.mark.fast)
        if inspect.iscoroutinefunction(item.obj):
            marker = item.get_closest_marker("timeout")
            whole = marker.args[0] if marker and marker.args else float(item.config.getini("timeout"))
            item.obj = bounded(item.obj, body_seconds(whole))
    items.sort(key=_effort)


def _effort(item: pytest.Item) -> int:
    if item.path.relative_to(Path(__file__).parent).parts[0] in _WHOLE:
        return 3
    if item.get_closest_marker("fast") is None:
        return 2
    return int(item.name == "runTest")  # a state machine: seconds


def pytest_runtest_setup(item: pytest.Item) -> None:
    for need in needs.NEEDS:
        if item.get_closest_marker(need) is None:
            continue
        reason = needs.missing(need)
        if reason is None:
            continue
        if need in needs.required(os.environ):
            pytest.fail(f"{reason}, and {needs.REQUIRE} says that it must be here", pytrace=False)
        pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and isinstance(item, pytest.Function) and "rng" in item.fixturenames:
        report.sections.append(("random numbers", f"run again with --seed={item.config.stash[_SEED]}"))
    return report


@pytest.fixture(autouse=True)
def expected_logs(tmp_path: Path) -> Iterator[ExpectedLogs]:
    """Announce with ``expected_logs.allow("event.name")`` what the test provokes; anything else fails it.

    After ``tmp_path``, so that logs below it are still there when this ends.
    """
    expected = ExpectedLogs()
    ear = listen(expected)
    try:
        yield expected
    finally:
        stop_listening(ear)
    unannounced = expected.unannounced()
    if unannounced:
        shown = "\n".join(f"  {line}" for line in unannounced[:30])
        pytest.fail(f"{len(unannounced)} log lines that were not announced:\n{shown}", pytrace=False)


@pytest.fixture(autouse=True)
def _stays_inside(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that `make test-fast` runs starts no process and listens on no TCP port."""
    if request.node.get_closest_marker("fast") is None:
        yield
        return
    with noticing() as done:
        yield
    if done:
        pytest.fail(f"the test {done[0]}: mark it network, or add it in tests/conftest.py", pytrace=False)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers of this test's own; the seed is printed when it fails."""
    return random.Random(f"{request.config.stash[_SEED]}:{request.node.nodeid}")


@pytest.fixture
def memory_path() -> Iterator[Path]:
    """An empty directory on a tmpfs, for tests of the RAM tier that need no mount of their own."""
    with tempfile.TemporaryDirectory(prefix="fuse-tier-test-", dir="/dev/shm") as directory:
        yield Path(directory)


@pytest.fixture
async def make_cluster(tmp_path: Path, expected_logs: ExpectedLogs) -> AsyncIterator[Clusters]:
    """``await make_cluster("a", "b", tls=False)``: real nodes, a coordinator, a bucket; all checked in the end."""
    # All of the driver: tests that need no cluster start faster without.
    from tests.harness.clusters import Clusters

    async with AsyncExitStack() as stack:
        clusters = Clusters(stack, tmp_path, expected_logs)
        yield clusters
        if clusters.check:
            await clusters.check_all()
