"""Who may change what of a volume in another node's RAM tier."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from fuse_tier.deadlines import Deadline
from fuse_tier.epochs import number_before
from fuse_tier.errors import NotAuthorized, TierUnavailable
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.members import Location, Member
from fuse_tier.ram.layout import Layout
from fuse_tier.ram.tmpfs import create_directories
from fuse_tier.replicate.rights import Rights
from fuse_tier.tiers.ram import RamTier
from fuse_tier.wire.grpc import Caller
from fuse_tier.wire.rejections import Rejections
from tests.harness.logs import ExpectedLogs
from tests.harness.snapshots import LLAMA, keep

GONE = {0: "gone"}
OWN = Member("own", "own-1", "127.0.0.1:1", "127.0.0.1:2", True)


class Known:
    """What the node that is asked has been told."""

    def __init__(self, path: Path) -> None:
        layout = Layout(str(path))
        create_directories(layout)
        self.ram = RamTier(layout, "own")
        self.own = OWN
        self.mounted_on: set[str] = set()
        self.location = Location()
        self.never_hears = False
        self.rights = Rights(
            lambda: self.own, self.ram, Rejections("peer.refused"), lambda identity: self.mounted_on, self._locate
        )

    async def _locate(self, identity: Identity) -> Location:
        assert identity == LLAMA
        if self.never_hears:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        return self.location

    def held(self, owners: Mapping[int, str], bucket: tuple[int, ...] = (), **numbers: int) -> None:
        """Each of these nodes was heard to have snapshots up to a number."""
        holders = [(replace(OWN, node=node, alive=node != "gone"), (number,)) for node, number in numbers.items()]
        self.location = Location(tuple(holders), bucket, owners=owners)

    async def commit(self, number: int, node: str | None) -> None:
        await self.rights.check_commit(SnapshotId(LLAMA, number), Caller(node, "127.0.0.1:50000"))


@pytest.fixture
def known(memory_path: Path, expected_logs: ExpectedLogs) -> Known:
    expected_logs.allow("peer.refused")
    return Known(memory_path)


@contextmanager
def refused(words: str) -> Iterator[None]:
    with pytest.raises(NotAuthorized, match=words):
        yield


async def test_while_a_volume_is_mounted_who_has_it_adds_snapshots_and_nobody_else(known: Known) -> None:
    known.mounted_on = {"a"}
    known.held({0: "b"}, b=9)
    await known.commit(9, "a")
    with refused("a has the volume mounted by now"):
        await known.commit(9, "b")
    await keep(known.ram, {"weights": b"0123"}, 9)
    with refused("a has the volume mounted by now"):
        await known.commit(8, "b")


async def test_while_a_volume_is_mounted_anybody_copies_what_another_node_has_or_had(known: Known) -> None:
    """Who has it mounted may be restoring it, or have died."""
    known.mounted_on = {"a"}
    known.held({0: "gone"}, b=9, gone=9)
    await known.commit(9, "b")
    known.held({0: "a"}, a=9, b=9)
    await known.commit(9, "b")


async def test_to_what_is_mounted_here_no_other_node_adds(known: Known) -> None:
    known.own = replace(OWN, mounted=frozenset({LLAMA}))
    with refused("own has the volume mounted by now"):
        await known.commit(9, "a")


async def test_while_nobody_has_it_mounted_who_had_it_goes_on_copying_what_is_of_that_time(known: Known) -> None:
    known.held({5: "a", 6: "gone"}, b=number_before(5) + 1)
    await known.commit(number_before(5) + 9, "a")
    with refused("nobody has the volume mounted, gone had it when this is said to have been taken"):
        await known.commit(number_before(6) + 1, "a")
    with refused("another node had it when"):
        await known.commit(number_before(7) + 1, "a")


async def test_a_copy_of_what_another_node_has_or_had_is_welcome_from_anybody(known: Known) -> None:
    known.held(GONE, a=7, gone=7)
    await known.commit(7, "a")
    known.held(GONE, a=7, b=8)
    await known.commit(7, "a")
    known.held(GONE, (7,), a=7)
    await known.commit(7, "a")


async def test_what_would_be_the_newest_anywhere_a_node_cannot_bring_in_on_its_word_alone(known: Known) -> None:
    known.held(GONE, a=8, b=7, gone=7)
    with refused("nobody has the volume mounted, gone had it"):
        await known.commit(8, "a")


async def test_what_is_not_newer_than_what_is_here_harms_nobody(known: Known) -> None:
    await keep(known.ram, {"weights": b"0123"}, 8)
    known.held(GONE)
    await known.commit(8, "a")
    with refused("no other node was heard to have this or a newer one"):
        await known.commit(9, "a")


async def test_where_nobody_remembers_whose_it_was_copies_are_not_held_up(known: Known) -> None:
    known.held({}, a=8, b=7)
    await known.commit(8, "a")
    known.held({6: "c"}, a=number_before(5) + 1)
    await known.commit(number_before(5) + 1, "a")


async def test_who_had_a_volume_is_not_waited_for_longer_than_the_sender_waits(
    known: Known, autojump_clock: MockClock
) -> None:
    known.never_hears = True
    with pytest.raises(TierUnavailable, match="nobody could tell within 11 s who had its volume"):
        await known.commit(9, "a")
    assert trio.current_time() == pytest.approx(Deadline.RIGHTS, abs=1)
    await known.commit(9, None)


async def test_without_certificates_all_are_trusted(known: Known) -> None:
    known.mounted_on = {"a"}
    await known.commit(9, None)
