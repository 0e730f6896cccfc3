from __future__ import annotations

from fuse_tier.fs.known import KnownNames


def test_a_file_is_known_until_it_was_forgotten_as_often_as_it_was_told_of() -> None:
    known = KnownNames()
    known.add(7, (1, b"a"), 2)
    assert not known.forget(7, 1)
    assert known.forget(7, 1)
    assert 7 not in known
    assert not known.forget(7, 1)


def test_a_file_of_several_names_has_lost_them_all_only_with_the_last() -> None:
    known = KnownNames()
    known.add(7, (1, b"a"), 1)
    known.add_name(7, (1, b"b"))
    assert known.has_several(7)
    assert not known.remove_name(7, (1, b"a"))
    found = known.get(7)
    assert found and (found.parent, found.name) == (1, b"b")
    assert known.remove_name(7, (1, b"b"))


def test_a_name_that_moved_is_the_new_one() -> None:
    known = KnownNames()
    known.add(7, (1, b"a"), 1)
    known.add_name(7, (1, b"b"))
    known.move(7, (1, b"b"), (2, b"c"))
    assert not known.remove_name(7, (1, b"a"))
    found = known.get(7)
    assert found and (found.parent, found.name) == (2, b"c")
