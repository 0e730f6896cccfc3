"""How large a new file will be."""

from __future__ import annotations

from fuse_tier.fs.sizes import Sizes


def test_a_file_is_as_large_as_the_newest_one_whose_path_differs_in_numbers_only() -> None:
    sizes = Sizes()
    sizes.saw(b"/step_100/rank3.bin", 10)
    sizes.saw(b"/step_200/rank3.bin", 20)
    assert sizes.may_know(b"rank3.bin")
    assert sizes.predict(b"/step_300/rank3.bin") == 20
    assert sizes.predict(b"/step_300/rank3.json") == 0
    assert not sizes.may_know(b"rank3.json")


def test_of_several_predecessors_the_one_of_the_same_rank_counts() -> None:
    sizes = Sizes()
    for step in (b"100", b"200"):
        for rank, size in ((b"1", 11), (b"2", 22)):
            sizes.saw(b"/step_" + step + b"/rank" + rank, size)
    sizes.saw(b"/step_300/rank2", 23)
    assert sizes.predict(b"/step_300/rank1") == 11


def test_a_file_that_replaces_one_of_its_name_is_as_large() -> None:
    sizes = Sizes()
    sizes.saw(b"/model.pt", 7)
    assert sizes.predict(b"/model.pt") == 7


def test_an_operators_word_counts_until_there_is_a_predecessor() -> None:
    sizes = Sizes([("*.bin", 5)])
    assert sizes.predict(b"/step_1/a.bin") == 5
    sizes.saw(b"/step_1/a.bin", 6)
    assert sizes.predict(b"/step_2/a.bin") == 6
    assert sizes.predict(b"/step_2/a.json") == 0


def test_what_is_remembered_is_bounded() -> None:
    sizes = Sizes()
    for number in range(5000):
        letters = bytes(97 + int(digit) for digit in str(number))
        sizes.saw(b"/" + letters, number)
    assert sizes.predict(b"/a") == 0
    assert sizes.predict(b"/" + bytes(97 + int(digit) for digit in "4999")) == 4999
    assert not sizes.may_know(b"a")
