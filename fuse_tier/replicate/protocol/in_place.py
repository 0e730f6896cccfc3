"""A container that was started again in its place, of a job that asks for nothing: it is given the step of all ranks.

The mount's daemon holds the container's first look (fs/lives.py) until this has come about: what is in the tree is in
a snapshot, all ranks that begin agree on a step, and what differs from that step at the root of the tree is moved
out of sight or into it. From the first move until the volume has joined nobody takes a snapshot, and nobody looks.
Whatever interrupts it, it is asked for again, and begins from what it finds.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping

import structlog
import trio

from fuse_tier import failpoints, metrics
from fuse_tier.checkpoints import top
from fuse_tier.deadlines import Deadline
from fuse_tier.entries import Entry
from fuse_tier.epochs import epoch_of
from fuse_tier.errors import DeadlineExceeded, TierUnavailable
from fuse_tier.manifest import Manifest
from fuse_tier.protocolfiles import INIT_INFO
from fuse_tier.replicate.agreeing import Agreed, nothing_to_save
from fuse_tier.replicate.choice import Chosen
from fuse_tier.replicate.protocol.cycle import Means, saved_in_hand, wait_until_all_is_here
from fuse_tier.replicate.protocol.stage import Stage
from fuse_tier.replicate.steps import Report
from fuse_tier.replicate.volume import Volume
from fuse_tier.several import files_of_links, part_of, with_linked

log = structlog.get_logger(__name__)


class InPlace:
    """Of one node's volumes."""

    def __init__(self, means: Means) -> None:
        self._means = means

    async def begin_again(self, volume: Volume) -> None:
        """Returns when the tree is that of the step. Raises FuseTierError, OSError: the container may not go on."""
        if volume.framework or not self._means.membership.agrees_on_steps:
            return  # it asks by the file protocol, or nobody can be asked
        began = trio.current_time()
        with trio.move_on_after(Deadline.FRAMEWORK):
            await wait_until_all_is_here(volume)
            async with volume.still:
                await _Beginning(volume, self._means).run()
            metrics.goodput_lost(str(volume.identity), "restoring", trio.current_time() - began)
            return
        raise DeadlineExceeded(f"{volume.identity}: its step could not be brought within {Deadline.FRAMEWORK:g} s")


class _Beginning:
    """One time."""

    def __init__(self, volume: Volume, means: Means) -> None:
        self._volume = volume
        self._means = means
        self._stage = Stage(volume)
        self._is_as_saved = not volume.is_arranged  # else an earlier attempt was cut off

    async def run(self) -> None:
        volume, means = self._volume, self._means
        if self._is_as_saved:
            await all_saved(volume)
            await self._stage.begin()
        volume.tenure.is_at_work = False
        try:
            epoch = await means.claim(volume.identity, epoch_of(volume.tenure.numbering.highest))
            await volume.renew(epoch)
            await means.agreeing.together(volume, volume.lineage, Report(), nothing_to_save, self._follow)
        except Exception:
            if self._is_as_saved:
                await self._stage.end()
            raise
        failpoints.reached("in_place.joined")
        await self._stage.end()
        resumption = volume.tenure.resumption
        log.info("restart.in_place", identity=str(volume.identity), step=resumption and resumption.step)

    async def _follow(self, agreed: Agreed) -> None:
        volume, verdict = self._volume, agreed.verdict
        if not verdict.restart:
            return
        chosen = Chosen(None)
        if verdict.number and not verdict.partner:
            chosen = await self._means.chooser.choose(
                volume.identity, volume.lineage, verdict.number, known=volume.newest, step=verdict.step
            )
        newest = volume.newest
        if newest is not None and (newest.id.number > verdict.number or chosen.is_part):
            log.warning("restart.set_aside", snapshot=str(newest.id), restored=verdict.number)
        await self._become(newest, chosen)

    async def _become(self, newest: Manifest | None, chosen: Chosen) -> None:
        """Has the tree be the chosen one, as far as it differs. What is in no snapshot stays where it is."""
        saved, wanted = _by_top(newest), _by_top(chosen.manifest)
        if not self._is_as_saved:
            await self._stage.put_back({})
            await self._stage.begin()
        known: Mapping[bytes, object] = saved if self._is_as_saved else {}
        brought = sorted(with_linked((name for name in wanted if known.get(name) != wanted[name]), chosen.manifest))
        there = await trio.to_thread.run_sync(os.listdir, os.fsencode(self._volume.layout.tree))
        away = [name for name in there if name in brought or (name in saved and name not in wanted)]
        self._is_as_saved = self._is_as_saved and not away and not brought
        if brought:
            await self._build(chosen, brought)
        names = [os.fsdecode(name) for name in brought]
        await self._stage.arrange([os.fsdecode(name) for name in away], [(name, name) for name in names])
        failpoints.reached("in_place.arranged")

    async def _build(self, chosen: Chosen, names: Collection[bytes]) -> None:
        assert chosen.manifest is not None  # noqa: S101 - there are names in it
        staged = os.fsencode(self._volume.layout.staged)
        built = os.path.join(self._volume.layout.staged, _none_of(names))
        part = part_of(chosen.manifest, names)
        await self._means.restorer.into_stage(self._volume, chosen, part.entries, built)

        def unpack() -> None:
            for name in names:
                os.rename(os.path.join(os.fsencode(built), name), os.path.join(staged, name))
            os.rmdir(built)

        await trio.to_thread.run_sync(unpack)


def _none_of(names: Collection[bytes]) -> str:
    """A name beside those that are brought, which the job has chosen."""
    return next(name for at in range(len(names) + 1) if (name := f"built{at}").encode() not in names)


async def all_saved(volume: Volume) -> None:
    """All of the tree is in a snapshot; for who holds ``still``. Raises FuseTierError, OSError.

    The pod's containers that wrote are gone, so what changes is another's, and would go on with what is moved.
    """
    if not await saved_in_hand(volume):
        raise TierUnavailable(
            f"{volume.identity}: its files are changed all the time, by a process in no container of its pod, and "
            "nothing is moved under that: end it, or make the pod anew"
        )


def _by_top(manifest: Manifest | None) -> dict[bytes, list[tuple[Entry, Entry]]]:
    """What a tree has at its root, but what is written for the pod itself, with all that is below."""
    found: dict[bytes, list[tuple[Entry, Entry]]] = {}
    for entry, file in files_of_links(manifest) if manifest is not None else ():
        name = top(entry.path)
        if name and name != INIT_INFO:
            found.setdefault(name, []).append((entry, file))
    return found
