"""Jobs as the chaos test runs them: they save steps, know which were acknowledged, and check all of them.

A step is acknowledged when the driver has said that it is on the configured number of peers. From then on every
restore, wherever, has to bring it back byte by byte; and of no step there may ever be a part.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import structlog
import trio

from fuse_tier.errors import FuseTierError
from fuse_tier.localcluster import LocalNode
from fuse_tier.localcluster.processes import mounts_below

if TYPE_CHECKING:
    from tests.chaos.world import World

log = structlog.get_logger(__name__)
T = TypeVar("T")

_FILES = 4
_SMALL_BYTES = 96 << 10  # at most
_PAUSE_SECONDS = 0.3
_ACKNOWLEDGE_SECONDS = 20.0
_TOUCH_SECONDS = 15.0  # an operation on a mount whose node is frozen
_MOUNT_SECONDS = 40.0


class Lost(AssertionError):
    """An acknowledged step is not what it was."""


@dataclass(slots=True)
class Job:
    """One job with one volume."""

    identity: str
    large_bytes: int = 0  # of one more file of each step
    kept_steps: int = 100
    node: LocalNode | None = None
    mount: Path | None = None
    acknowledged: dict[int, int] = field(default_factory=dict)  # step -> which attempt at it
    verified: int = 0  # steps read and compared
    restores: int = 0
    _step: int = 0
    _attempts: int = 0

    async def run(self, world: World) -> None:
        """Saves steps until cancelled; goes elsewhere when its node is lost."""
        while True:
            try:
                if self.mount is None:
                    await self._begin_somewhere(world)
                if self.mount is not None:  # it may have been given up since
                    await self._save(world)
            except Lost:
                raise
            except (FuseTierError, OSError, trio.TooSlowError) as error:
                world.note(f"{self.identity}: {type(error).__name__}: {error}"[:200])
                await self._see_whether_to_move(world)
            await trio.sleep(_PAUSE_SECONDS)

    async def move(self, world: World) -> None:
        """Gives the mount up, as a cluster does that thinks a node dead; the old one is ended when it can be."""
        node, mount = self.node, self.mount
        self.node = self.mount = None
        if node is not None and mount is not None:
            world.leftovers.append((node, mount))

    async def _see_whether_to_move(self, world: World) -> None:
        node, mount = self.node, self.mount
        if node is None or mount is None or not node.family.runs or not mounts_below(mount):
            return await self.move(world)
        try:
            await touching(mount.stat)
        except (OSError, trio.TooSlowError):
            await self.move(world)

    async def _begin_somewhere(self, world: World) -> None:
        node = world.rng.choice(world.healthy())
        world.mounts += 1
        mount = world.cluster.mountpoint(f"{self.identity.replace('/', '-')}-{world.mounts}")
        try:
            with trio.fail_after(_MOUNT_SECONDS):
                await node.mount(self.identity, mount)
        except BaseException:
            world.leftovers.append((node, mount))
            raise
        self.node, self.mount = node, mount
        self.restores += 1
        self._step = max(await touching(partial(self._check_mounted, mount)), *self.acknowledged, 0)

    def _check_mounted(self, mount: Path) -> int:
        """As ``check``. The directory of a mount that was ended meanwhile, as by its node's stop, says nothing."""
        try:
            return self.check(mount)
        except Lost:
            if not mounts_below(mount):
                raise OSError(errno.ENOTCONN, "it was unmounted while it was compared", str(mount)) from None
            raise

    def check(self, tree: Path) -> int:
        """Compares all that is there with what was saved; gives the newest step. Raises Lost. Blocks."""
        found = {int(path.name): path for path in tree.iterdir() if path.name.isdigit()}
        missing = self.acknowledged.keys() - found.keys()
        if missing:
            raise Lost(f"{self.identity}: acknowledged steps {sorted(missing)} are not in {tree}: {sorted(found)}")
        for step, path in sorted(found.items()):
            attempt = int((path / "attempt").read_text())
            if self.acknowledged.get(step, attempt) != attempt:
                raise Lost(
                    f"{self.identity}: step {step} is attempt {attempt}, not {self.acknowledged[step]}: {tree}"
                )
            for name, content in self._content(step, attempt).items():
                if (path / name).read_bytes() != content:
                    raise Lost(f"{self.identity}: {path / name} is not what was saved")
            self.verified += 1
        return max(found, default=0)

    async def _save(self, world: World) -> None:
        node, mount = self.node, self.mount
        assert node is not None
        assert mount is not None
        self._step += 1
        self._attempts += 1
        step, attempt = self._step, self._attempts
        await touching(partial(_write, mount, step, self._content(step, attempt), attempt))
        oldest = step - self.kept_steps + 1
        for one in [one for one in self.acknowledged if one < oldest]:
            del self.acknowledged[one]  # before it is removed
        await touching(partial(_remove_before, mount, oldest))
        await node.wait(self.identity, "peer", _ACKNOWLEDGE_SECONDS)
        if self.mount == mount:
            self.acknowledged[step] = attempt
            world.acknowledged += 1

    def _content(self, step: int, attempt: int) -> dict[str, bytes]:
        drawn = random.Random(f"{self.identity} {step} {attempt}")
        files = {f"rank_{rank}.bin": drawn.randbytes(drawn.randrange(_SMALL_BYTES)) for rank in range(_FILES)}
        large = {"large.bin": drawn.randbytes(self.large_bytes)} if self.large_bytes else {}
        return {**files, **large, "empty": b"", "same": b"shared by all steps" * 1000}


def _write(mount: Path, step: int, files: dict[str, bytes], attempt: int) -> None:
    temporary = mount / f"{step}.tmp"
    for stale in (temporary, mount / str(step)):
        if stale.exists():
            shutil.rmtree(stale)
    temporary.mkdir()
    for name, content in files.items():
        (temporary / name).write_bytes(content)
    (temporary / "attempt").write_text(str(attempt))
    os.rename(temporary, mount / str(step))


def _remove_before(mount: Path, oldest: int) -> None:
    """Steps, whole or not, acknowledged or not."""
    for path in mount.iterdir():
        number = path.name.removesuffix(".tmp")
        if number.isdigit() and int(number) < oldest:
            shutil.rmtree(path)


async def touching(work: Callable[[], T]) -> T:
    """Something that a frozen node holds up for as long as it likes. Raises TooSlowError."""
    with trio.fail_after(_TOUCH_SECONDS):
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True)
