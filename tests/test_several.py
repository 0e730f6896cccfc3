"""Of which older steps of a tree it can be said that they are whole, and the tree of one of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuse_tier.checkpoints import Saved, content_of_step, step_of
from fuse_tier.entries import Entry, Kind
from fuse_tier.errors import MalformedManifest
from fuse_tier.hashing import hash_bytes
from fuse_tier.identity import SnapshotId
from fuse_tier.manifest import Lineage, Manifest, decode, encode
from fuse_tier.several import as_of_step, older_steps, with_linked
from tests.harness.examples import examples
from tests.harness.snapshots import LLAMA

RUN = Lineage("llama", world_size=2)


def tree(number: int, paths: dict[str, str], lineage: Lineage = RUN) -> Manifest:
    """Of paths and what is there: ``/`` ends a directory's, ``->`` begins a link's target, ``=`` a hard one's."""
    entries = [Entry(b"", Kind.DIRECTORY, 0o755)]
    for path, content in sorted(paths.items(), key=lambda one: one[0].rstrip("/")):
        name = path.rstrip("/").encode()
        if path.endswith("/"):
            entries.append(Entry(name, Kind.DIRECTORY, 0o755))
        elif content.startswith("->"):
            entries.append(Entry(name, Kind.SYMLINK, 0o777, target=content[2:].encode()))
        elif content.startswith("="):
            entries.append(Entry(name, Kind.HARDLINK, target=content[1:].encode()))
        else:
            entries.append(Entry(name, Kind.FILE, 0o644, blob=hash_bytes(content.encode())))
    return Manifest(SnapshotId(LLAMA, number), lineage, "a", number, tuple(entries))


def step(number: int, *files: str) -> dict[str, str]:
    return {f"{number}/": ""} | {f"{number}/{name}": f"{name} of {number}" for name in files or ("a", "b")}


def taken(*trees: Manifest) -> Manifest:
    """The last of snapshots that were taken one after another."""
    previous: Manifest | None = None
    for one in trees:
        previous = replace(one, older_steps=older_steps(one, previous))
    assert previous is not None
    return previous


def paths(manifest: Manifest) -> list[str]:
    return [entry.path.decode() for entry in manifest.entries if entry.path]


def test_a_job_that_keeps_three_steps_has_the_two_before_the_newest_as_well() -> None:
    last = taken(
        tree(1, step(100)),
        tree(2, step(100) | step(200)),
        tree(3, step(100) | step(200) | step(300)),
        tree(4, step(200) | step(300) | step(400)),
    )
    assert Saved.of(last).steps == (200, 300, 400)
    assert decode(encode(last)) == last
    assert paths(as_of_step(last, 300)) == ["200", "200/a", "200/b", "300", "300/a", "300/b"]
    assert Saved.of(as_of_step(last, 300)).steps == (200, 300)


def test_an_older_step_that_is_being_removed_does_not_count_and_never_again() -> None:
    before = tree(1, step(100)), tree(2, step(100) | step(200))
    partly = {"100/": "", "100/b": "b of 100"}
    assert taken(*before).older_steps == (100,)
    assert taken(*before, tree(3, partly | step(200))).older_steps == ()
    assert taken(*before, tree(3, partly | step(200)), tree(4, partly | step(200) | step(300))).older_steps == (200,)


def test_an_older_step_that_no_snapshot_had_as_its_newest_does_not_count() -> None:
    assert taken(tree(1, step(100)), tree(2, step(100) | step(200) | step(300))).older_steps == (100,)
    assert taken(tree(1, step(100) | step(200))).older_steps == ()


def test_an_older_step_that_was_saved_on_does_not_count() -> None:
    assert taken(tree(1, step(100, "a")), tree(2, step(100, "a", "b") | step(200))).older_steps == ()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"latest": "->100"}, {"latest": "->200"}),
        ({"latest_checkpointed_iteration.txt": "100"}, {"latest_checkpointed_iteration.txt": "200"}),
        ({}, {"last.ckpt": "all of 200"}),
        ({"train.log": "100"}, {"train.log": "100 200"}),
    ],
)
def test_where_another_file_or_link_at_the_root_has_changed_older_steps_do_not_count(
    before: dict[str, str], after: dict[str, str]
) -> None:
    assert taken(tree(1, step(100) | before), tree(2, step(100) | step(200) | after)).older_steps == ()


def test_what_is_written_for_each_pod_anew_says_nothing_of_steps() -> None:
    before, after = {"jax-init-info.txt": "0 of 2"}, {"jax-init-info.txt": "1 of 2"}
    assert taken(tree(1, step(100) | before), tree(2, step(100) | step(200) | after)).older_steps == (100,)


def test_what_else_is_at_the_root_stays_in_the_tree_of_an_older_step() -> None:
    more = {"config.json": "{}", "logs/": "", "latest": "->config.json"}
    last = taken(tree(1, step(100) | more), tree(2, step(100) | step(200) | more | {"logs/events": "x"}))
    assert last.older_steps == (100,)
    assert paths(as_of_step(last, 100)) == ["100", "100/a", "100/b", "config.json", "latest", "logs", "logs/events"]


def test_steps_are_those_of_the_jobs_own_pattern() -> None:
    own = replace(RUN, step_pattern="model-{step}.pt")
    last = taken(
        tree(1, {"model-7.pt": "seven", "300": "no step"}, own),
        tree(2, {"model-7.pt": "seven", "model-8.pt": "eight", "300": "no step"}, own),
    )
    assert decode(encode(last)) == last
    assert Saved.of(last).steps == (7, 8)
    assert paths(as_of_step(last, 7)) == ["300", "model-7.pt"]
    other = replace(last, lineage=RUN, id=SnapshotId(LLAMA, 3))
    assert taken(last, other).older_steps == (), "what was told by another pattern says nothing"


def test_a_file_whose_first_name_is_left_out_goes_on_under_its_next() -> None:
    linked = {"1000/": "", "1000/a": "shared", "900/": "", "900/a": "=1000/a", "900/b": "=1000/a"}
    part = as_of_step(tree(1, linked), 900)
    kinds = [(entry.path, entry.kind, entry.target) for entry in part.entries[2:]]
    assert kinds == [(b"900/a", Kind.FILE, None), (b"900/b", Kind.HARDLINK, b"900/a")]
    assert part.entries[2].blob == hash_bytes(b"shared")
    assert decode(encode(part)) == part


@pytest.mark.parametrize("link", ["100/weights", "copy"])
def test_what_a_file_has_that_a_step_or_the_root_has_another_name_of_is_compared_and_not_its_name(link: str) -> None:
    """The file is written in place, under a name that is none of the step's."""

    def of(number: int, content: str, *steps: int) -> Manifest:
        shown = {path: what for one in steps for path, what in step(one).items()}
        return tree(number, shown | {"#/": "", "#/w": content, link: "=#/w"})

    assert taken(of(1, "as it was", 100), of(2, "as it was", 100, 200)).older_steps == (100,)
    assert taken(of(1, "as it was", 100), of(2, "changed", 100, 200)).older_steps == ()


def test_an_older_step_counts_whose_file_had_its_first_name_in_one_that_was_removed() -> None:
    linked = step(100) | {"200/": "", "200/a": "=100/a"}
    alone = {"200/": "", "200/a": "a of 100"}
    last = taken(tree(1, step(100)), tree(2, linked), tree(3, alone | step(300)))
    assert last.older_steps == (200,)


def test_names_at_the_root_belong_together_that_have_files_in_common() -> None:
    one = tree(1, {"a": "1", "b/": "", "b/x": "=a", "b/y": "2", "c": "=b/y", "d/": "", "d/z": "3", "e": "=d/z"})
    assert with_linked([b"c"], one) == {b"a", b"b", b"c"}
    assert with_linked([b"d"], one) == {b"d", b"e"}
    assert with_linked([], one) == set()
    assert with_linked([b"a"], None) == {b"a"}


def test_without_newer_steps_it_is_the_very_tree() -> None:
    one = tree(1, step(100))
    assert as_of_step(one, 100) is one


@pytest.mark.parametrize("older", [(200, 100), (100, 100), (-1,)])
def test_a_manifest_whose_older_steps_are_none_is_refused(older: tuple[int, ...]) -> None:
    with pytest.raises(MalformedManifest, match="older step"):
        encode(replace(tree(1, step(300)), older_steps=older))


@dataclass
class Job:
    """Saves whole steps, removes old ones file by file, and is snapshotted whenever it pleases the test."""

    files: dict[str, str] = field(default_factory=dict)
    whole: dict[int, tuple[Entry, ...]] = field(default_factory=dict)
    newest: int = 0
    snapshots: list[Manifest] = field(default_factory=list)

    def save(self, how: int) -> None:
        self.newest += 1 + how % 3
        self.files |= step(self.newest)
        if how % 4 == 0:  # as jobs do that have much in common with the step before
            self.files[f"{self.newest}/c"] = "common"
        self.whole[self.newest] = content_of_step(tree(1, self.files), self.newest)

    def remove(self, how: int) -> None:
        """A file of some older step, or its directory when that is empty."""
        older = sorted({int(path.partition("/")[0]) for path in self.files} - {self.newest})
        if older:
            chosen = older[how % len(older)]
            of_step = sorted(path for path in self.files if path.startswith(f"{chosen}/"))
            del self.files[of_step[-1]]

    def snapshot(self, how: int) -> None:
        one = tree(len(self.snapshots) + 1, self.files)
        previous = self.snapshots[-1] if self.snapshots else None
        self.snapshots.append(replace(one, older_steps=older_steps(one, previous)))


moves = st.tuples(st.sampled_from(["save", "remove", "snapshot", "snapshot"]), st.integers(0, 9))


@given(st.lists(moves, max_size=30))
@settings(max_examples=examples(150))
def test_whatever_a_job_does_each_step_that_counts_is_what_it_saved(done: list[tuple[str, int]]) -> None:
    job = Job()
    for what, how in done:
        getattr(job, what)(how)
    job.snapshot(0)
    for snapshot in job.snapshots:
        for one in Saved.of(snapshot).older:
            part = as_of_step(snapshot, one)
            assert content_of_step(part, one) == job.whole[one]
            assert step_of(part) == one
            assert decode(encode(part)) == part
