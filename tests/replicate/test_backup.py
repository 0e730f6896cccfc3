"""When a volume's newest snapshot goes to the bucket, and who looks after that."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from fuse_tier.checkpoints import Job
from fuse_tier.hashing import hash_bytes
from fuse_tier.identity import SnapshotId
from fuse_tier.manifest import Entry, Kind, Lineage, Manifest
from fuse_tier.replicate.backup import NOW, WHEN_THERE_IS_MORE, BackupPolicy, Turn, Turns, seconds_until_due
from fuse_tier.replicate.election import rank

JOB = Job("default", "llama")
RUN = Lineage("llama")
ALWAYS, HALF_HOURLY, EVERY_100 = BackupPolicy(), BackupPolicy(every=1800), BackupPolicy(steps=100)


def tree(number: int, step: int | None, *others: bytes, content: bytes = b"") -> Manifest:
    """A snapshot with one step, or none, and other files at the root."""
    entries = [Entry(b"", Kind.DIRECTORY, mode=0o755)]
    if step is not None:
        name = b"step_%d" % step
        blob = hash_bytes(content or b"weights of %d" % step)
        entries += [Entry(name, Kind.DIRECTORY, mode=0o755), Entry(name + b"/w", Kind.FILE, mode=0o644, blob=blob)]
    entries += [Entry(name, Kind.FILE, mode=0o644, blob=hash_bytes(name)) for name in others]
    ordered = tuple(sorted(entries, key=lambda entry: entry.path))
    return Manifest(SnapshotId(JOB.identity("0"), number), RUN, "a", number, ordered)


def test_the_first_one_is_brought_at_once_whatever_the_policy() -> None:
    for policy in (ALWAYS, HALF_HOURLY, EVERY_100):
        assert seconds_until_due(policy, tree(1, 7), None, 0) == NOW


def test_what_is_there_already_is_not_brought_again() -> None:
    for policy in (ALWAYS, HALF_HOURLY, EVERY_100):
        assert seconds_until_due(policy, tree(1, 7), tree(1, 7), 1e9) == WHEN_THERE_IS_MORE


def test_always_brings_every_newest_state() -> None:
    assert seconds_until_due(ALWAYS, tree(2, 7, b"notes"), tree(1, 7), 0) == NOW


def test_by_the_clock_the_next_step_waits_until_the_time_is_over() -> None:
    assert seconds_until_due(HALF_HOURLY, tree(2, 8), tree(1, 7), 600) == 1200
    assert seconds_until_due(HALF_HOURLY, tree(2, 8), tree(1, 7), 1800) == NOW


def test_odd_steps_alone_are_brought_but_for_whoever_waits() -> None:
    odd = BackupPolicy(steps="odd")
    assert seconds_until_due(odd, tree(1, 0), None, 0) == WHEN_THERE_IS_MORE
    assert seconds_until_due(odd, tree(2, 1), None, 0) == NOW
    assert seconds_until_due(odd, tree(3, 2), tree(2, 1), 0) == WHEN_THERE_IS_MORE
    assert seconds_until_due(odd, tree(3, 2), tree(2, 1), 0, demanded=3) == NOW
    assert seconds_until_due(odd, tree(4, 3), tree(2, 1), 0) == NOW
    assert seconds_until_due(odd, tree(5, None), tree(2, 1), 0) == NOW


def test_by_steps_the_first_at_or_after_each_multiple_is_brought() -> None:
    for last, newest, due in (
        (90, 100, True),
        (100, 190, False),
        (100, 205, True),
        (205, 299, False),
        (0, 100, True),
    ):
        seconds = seconds_until_due(EVERY_100, tree(2, newest), tree(1, last), 0)
        assert seconds == (NOW if due else WHEN_THERE_IS_MORE), (last, newest)


def test_a_save_that_went_on_after_it_was_brought_is_brought_again_and_the_next_one_in_the_making_is_not() -> None:
    for policy in (HALF_HOURLY, EVERY_100):
        assert seconds_until_due(policy, tree(2, 7, content=b"more of it"), tree(1, 7), 0) == NOW
        assert seconds_until_due(policy, tree(2, 7, b"step_8.tmp"), tree(1, 7), 1e9) == WHEN_THERE_IS_MORE


def test_a_step_that_a_job_was_given_and_calls_by_its_own_name_is_no_new_save() -> None:
    saved = tree(1, 7)
    renamed = tuple(
        replace(entry, path=entry.path.replace(b"step_7", b"llama-s7-n0-w0.restore", 1)) for entry in saved.entries
    )
    given = Manifest(SnapshotId(JOB.identity("0"), 2), RUN, "a", 2, renamed)
    for policy in (HALF_HOURLY, EVERY_100):
        assert seconds_until_due(policy, tree(3, 7), given, 1e9) == WHEN_THERE_IS_MORE
        assert seconds_until_due(policy, given, saved, 1e9) == WHEN_THERE_IS_MORE
        assert seconds_until_due(policy, tree(3, 7, content=b"more of it"), given, 0) == NOW


def test_who_waits_for_the_bucket_gets_it_now() -> None:
    for policy in (HALF_HOURLY, EVERY_100):
        assert seconds_until_due(policy, tree(3, 7, b"notes"), tree(1, 7), 0, demanded=3) == NOW
        assert seconds_until_due(policy, tree(3, 7, b"notes"), tree(2, 7), 0, demanded=2) == WHEN_THERE_IS_MORE


def test_another_run_a_step_back_or_a_tree_without_steps_does_not_wait_for_a_count() -> None:
    other = replace(tree(2, 7), lineage=Lineage("exp-8"))
    assert seconds_until_due(HALF_HOURLY, other, tree(1, 7), 0) == NOW
    assert seconds_until_due(EVERY_100, tree(2, 100), tree(1, 300), 0) == NOW
    assert seconds_until_due(EVERY_100, tree(2, None, b"model.pt"), tree(1, 300), 0) == NOW


@given(
    steps=st.lists(st.integers(1, 50), min_size=1, max_size=40),
    skipped=st.lists(st.booleans(), min_size=40, max_size=40),
    every=st.integers(1, 100),
)
def test_volumes_that_save_the_same_steps_choose_the_same_ones_even_if_one_is_asked_less_often(
    steps: list[int], skipped: list[bool], every: int
) -> None:
    saves = [sum(steps[: index + 1]) for index in range(len(steps))]
    policy = BackupPolicy(steps=every)

    def chosen(asked: list[int]) -> list[int]:
        last: Manifest | None = None
        found = []
        for step in asked:
            manifest = tree(step + 1, step)
            if seconds_until_due(policy, manifest, last, 0) == NOW:
                last = manifest
                found.append(step)
        return found

    firsts = [step for before, step in zip([None, *saves], saves, strict=False)
              if before is None or step // every > before // every]  # fmt: skip
    assert chosen(saves) == firsts
    # Asked again about what it was asked before, it says the same.
    assert chosen([step for step, again in zip(saves, skipped, strict=False) for _ in range(1 + again)]) == firsts


def test_by_the_clock_one_step_has_the_turn_for_all_volumes_of_a_job() -> None:
    turns = Turns()
    assert turns.ask(JOB, "llama", 100, 60, now=0) == Turn(100, 60)
    assert turns.ask(JOB, "llama", 100, 60, now=5).step == 100  # another rank, a little later
    assert turns.ask(JOB, "llama", 90, 60, now=6) == Turn(None, 54)  # one that lags: it will come to it
    assert turns.ask(JOB, "llama", 110, 60, now=20) == Turn(100, 40)  # one that is ahead may have it still
    assert turns.ask(JOB, "llama", 160, 60, now=61) == Turn(160, 60)
    assert turns.ask(JOB, "other", 1, 60, now=61).step == 1
    assert turns.ask(Job("default", "gemma"), "llama", 1, 60, now=61).step == 1


def test_a_rank_that_finishes_its_step_late_still_brings_it() -> None:
    turns = Turns()
    turns.ask(JOB, "llama", 100, 60, now=0)
    assert turns.ask(JOB, "llama", 100, 60, now=75).step == 100


def test_a_duty_has_one_node_and_only_those_of_a_node_that_goes_move() -> None:
    nodes = {f"node-{index}" for index in range(20)}
    first = {f"gs://bucket/{index}": rank(f"gs://bucket/{index}", nodes)[0] for index in range(300)}
    assert set(first.values()) == nodes
    for duty, node in first.items():
        without = rank(duty, nodes - {"node-7"})[0]
        assert without == (rank(duty, nodes)[1] if node == "node-7" else node)


def test_everybody_who_sees_the_same_nodes_ranks_them_alike() -> None:
    assert rank("gs://b", ["a", "b", "c"]) == rank("gs://b", ["c", "a", "b"])
