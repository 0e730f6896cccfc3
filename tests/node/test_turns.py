"""Which of several pods of the driver has a node."""

from __future__ import annotations

from pathlib import Path

import trio
from trio.testing import wait_all_tasks_blocked

from fuse_tier.node.turns import Turn


def test_the_pod_that_came_last_has_the_node_and_an_earlier_one_never_gets_it_back(tmp_path: Path) -> None:
    socket = str(tmp_path / "node.sock")
    old = Turn(socket, "old")
    assert old.take()
    assert Turn(socket, "old").take(), "another container of the same pod"
    new = Turn(socket, "new")
    assert new.take()
    assert not old.take()
    assert not Turn(socket, "old").take(), "a container of it that is started again"
    assert new.take()


def test_where_no_pod_is_named_there_is_nobody_to_take_turns_with(tmp_path: Path) -> None:
    assert Turn(str(tmp_path / "node.sock"), "").take()
    assert list(tmp_path.iterdir()) == []


def test_the_list_of_pods_does_not_grow_for_ever_and_does_not_forget_the_last(tmp_path: Path) -> None:
    socket = str(tmp_path / "node.sock")
    pods = [f"pod-{number}" for number in range(1500)]
    assert all(Turn(socket, pod).take() for pod in pods)
    assert len(Path(f"{socket}.pods").read_text().split()) <= 1001
    assert not Turn(socket, pods[-2]).take()


async def test_a_pod_learns_that_another_has_come(tmp_path: Path) -> None:
    socket = str(tmp_path / "node.sock")
    old = Turn(socket, "old")
    learned = trio.Event()

    async def wait() -> None:
        await old.until_superseded()
        learned.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        assert not learned.is_set()
        assert Turn(socket, "new").take()
        with trio.fail_after(30):
            await learned.wait()
