"""Whether a volume that another node has mounted is in good hands there: who has all of it keeps its copies.

While a restore brings a volume, its owner lists nothing of it and copies nothing. That may never end where the owner
does not reach who has the content, though both are heard of, as when a link goes one way only. So an owner has the
time that a copy may take; then those that hold the volume look whether it lists what they do (orphans.py). An owner
that cannot even begin gives the volume back, and claims it again when the mount is tried again.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import trio

from fuse_tier.deadlines import Deadline
from fuse_tier.identity import Identity
from fuse_tier.manifest import Manifest
from fuse_tier.replicate.copying import patience_with
from fuse_tier.replicate.membership import Membership, mounted_on


@dataclass(frozen=True, slots=True)
class _Mount:
    """A volume that another node has mounted."""

    instance: str  # of that node
    since: float  # when that was seen first, by trio's clock,
    seen: float  # and last
    has_it: bool = False


class Custody:
    """Of what one node holds for others. ``look`` from time to time."""

    def __init__(self, membership: Membership) -> None:
        self._membership = membership
        self._mounts: dict[Identity, _Mount] = {}
        self.forsaken: frozenset[Identity] = frozenset()  # by owners that were asked in vain: see unsaved.py

    def look(self, held: Collection[Identity]) -> None:
        """Sees who has mounted what of these volumes.

        A mount that fails because the files cannot be had is tried again, and its time goes on meanwhile.
        """
        now = trio.current_time()
        self._mounts = {
            identity: replace(mount, has_it=mount.has_it and self.owner(identity) is not None)
            for identity, mount in self._mounts.items()
            if identity in held and now <= mount.seen + Deadline.PUBLISH_ANSWER
        }
        for member in self._membership.members():
            for identity in member.mounted.intersection(held) if member.alive else ():
                known = self._mounts.get(identity)
                if known is None or known.instance != member.instance:
                    known = _Mount(member.instance, now, now)
                self._mounts[identity] = replace(known, seen=now)

    def owner(self, identity: Identity) -> str | None:
        """Who has a volume mounted, as far as is heard."""
        return min(mounted_on(self._membership, identity), default=None)

    def keeps(self, identity: Identity) -> bool:
        """Whether a volume has an owner, and nothing speaks against that one's having it."""
        if self.owner(identity) is None or identity in self.forsaken:
            return False
        mount = self._mounts.get(identity)
        return mount is None or mount.has_it or trio.current_time() <= mount.since + Deadline.COPY

    def is_late(self, manifest: Manifest) -> bool:
        """Whether the owner of a volume had time enough to bring a snapshot of it."""
        mount = self._mounts.get(manifest.id.identity)
        return mount is not None and trio.current_time() > mount.since + patience_with(manifest)

    def trust(self, identity: Identity) -> None:
        """Its owner was seen to have it: then that is not looked at again for as long as it has it mounted."""
        if (mount := self._mounts.get(identity)) is not None:
            self._mounts[identity] = replace(mount, has_it=True)
