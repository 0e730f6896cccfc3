"""In which order the content of a restored tree comes."""

from __future__ import annotations

from fuse_tier.blobs import Blob
from fuse_tier.replicate.filling import as_wanted

WAITING = {Blob(bytes([inode] * 16), 1): [inode] for inode in range(10, 20)}


def wanted_after(*opened: int) -> list[int]:
    return [WAITING[blob][0] for blob in as_wanted(WAITING, WAITING, opened)]


def test_who_goes_on_upwards_gets_what_follows_and_then_what_was_left_behind() -> None:
    assert wanted_after(13, 15) == [15, 16, 17, 18, 19, 14, 13, 12, 11, 10]


def test_who_opens_what_a_listing_shows_goes_backwards() -> None:
    assert wanted_after(18, 17) == [17, 16, 15, 14, 13, 12, 11, 10, 18, 19]


def test_after_one_alone_what_was_made_after_it_comes() -> None:
    assert wanted_after(18) == [18, 19, 17, 16, 15, 14, 13, 12, 11, 10]
