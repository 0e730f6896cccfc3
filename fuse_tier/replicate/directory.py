"""A snapshot as a plain tree in a directory, for people, without a mount."""

from __future__ import annotations

import trio

from fuse_tier.blobs import Blob, Progress
from fuse_tier.errors import NotFound, TierError
from fuse_tier.identity import Identity
from fuse_tier.replicate.choice import Chosen
from fuse_tier.replicate.fetching import Fetcher
from fuse_tier.replicate.restored import Restored, report
from fuse_tier.replicate.staging import StagingDirectory, lost_paths, make_tree
from fuse_tier.replicate.tree import check_new_directory
from fuse_tier.tiers.base import no_progress


async def into_directory(
    fetcher: Fetcher,
    identity: Identity,
    chosen: Chosen,
    target: str,
    progress: Progress = no_progress,
    *,
    partial: bool = False,
) -> Restored:
    """Makes a plain tree at ``target``, which must be missing or empty, without using the RAM tier.

    Raises MountError (the target), NotFound, and TierError when content could not be had: nothing is left
    at the target then. A ``partial`` tree lacks only what is damaged or gone on every tier.
    """
    manifest, started = chosen.manifest, trio.current_time()
    if manifest is None:
        others = f"; there are some of run {', '.join(chosen.other_runs)}" if chosen.other_runs else ""
        raise NotFound(f"no snapshot of {identity} was found on any tier{others}: see `fuse-tier ls`")
    await trio.to_thread.run_sync(check_new_directory, target)
    sources: dict[str, int] = {}

    async def fetch(staging: StagingDirectory) -> dict[Blob, TierError]:
        given, failed = await fetcher.fetch(manifest.id, manifest.blobs, staging, chosen, progress, stays=False)
        sources.update(given)
        return failed

    kept = await make_tree(manifest, target, fetch, partial=partial)
    return report(kept, chosen, trio.current_time() - started, sources, lost_paths(manifest, kept))
