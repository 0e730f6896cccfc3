"""In which order the content of a restored tree comes, and what of it is near."""

from __future__ import annotations

from trio.testing import MockClock

from fuse_tier.blobs import Blob
from fuse_tier.replicate.under_way import UnderWay, as_wanted

WAITING = {Blob(bytes([inode] * 16), 1): [inode] for inode in range(10, 20)}
FIRST, *_, LAST = WAITING


def wanted_after(*opened: int) -> list[int]:
    return [WAITING[blob][0] for blob in as_wanted(WAITING, WAITING, opened)]


def test_who_goes_on_upwards_gets_what_follows_and_then_what_was_left_behind() -> None:
    assert wanted_after(13, 15) == [15, 16, 17, 18, 19, 14, 13, 12, 11, 10]


def test_who_opens_what_a_listing_shows_goes_backwards() -> None:
    assert wanted_after(18, 17) == [17, 16, 15, 14, 13, 12, 11, 10, 18, 19]


def test_after_one_alone_what_was_made_after_it_comes() -> None:
    assert wanted_after(18) == [18, 19, 17, 16, 15, 14, 13, 12, 11, 10]


async def test_what_is_in_a_part_is_near_for_as_long_as_the_part_comes(mock_clock: MockClock) -> None:
    under_way = UnderWay()
    move = under_way.begin_part([FIRST, LAST])
    for _ in range(5):
        mock_clock.jump(4)
        move(1)
        assert under_way.is_near(LAST)
    mock_clock.jump(6)
    assert not under_way.is_near(LAST)
    move(1)
    assert under_way.is_near(LAST)


async def test_what_was_not_asked_for_is_not_near() -> None:
    under_way = UnderWay()
    under_way.begin_part([FIRST])
    assert not under_way.is_near(LAST)


async def test_to_ask_again_and_again_in_vain_makes_nothing_near(mock_clock: MockClock) -> None:
    under_way = UnderWay()
    for _ in range(5):
        under_way.begin_part([FIRST])
        mock_clock.jump(1.2)
    assert not under_way.is_near(FIRST)


async def test_a_part_that_failed_on_its_way_is_near_when_another_is_asked_for_it(mock_clock: MockClock) -> None:
    under_way = UnderWay()
    under_way.begin_part([FIRST])(1)
    mock_clock.jump(60)
    under_way.begin_part([FIRST])
    assert under_way.is_near(FIRST)
