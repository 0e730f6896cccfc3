"""Trees that hold several steps, as jobs make that keep the last few: which older ones count, and the tree of one.

The newest step of a tree is whole because a job gives a step its name last. Of an older one nobody can tell by its
name: the job may be removing it. So it counts where it is still, entry for entry, what it was when it was the newest
of a snapshot, and was so in each one since; and where no other file or link at the root has changed since: that may
say which step is the newest, or be a copy of it, and would be wrong beside another one. Of a hard link it is the file
that counts, wherever that has its first name. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from typing import Final

from fuse_tier.checkpoints import step_of, top
from fuse_tier.entries import Entry, Kind
from fuse_tier.manifest import Manifest
from fuse_tier.protocolfiles import INIT_INFO
from fuse_tier.stepnames import step_in

_MOST: Final = 32  # older steps of one snapshot, of which every report tells


def older_steps(manifest: Manifest, previous: Manifest | None) -> tuple[int, ...]:
    """The steps below its newest that can be had from a snapshot, ascending; ``previous`` is the one before it."""
    if previous is None or not _is_same_life(previous, manifest):
        return ()
    newest, before = step_of(manifest), step_of(previous)
    if newest is None or before is None:
        return ()
    candidates = {step for step in (*previous.older_steps, before) if step < newest}
    if not candidates or _of_no_step(previous) != _of_no_step(manifest):
        return ()
    then, now = _by_step(previous, candidates), _by_step(manifest, candidates)
    return tuple(sorted(step for step in candidates if step in now and now[step] == then.get(step)))[-_MOST:]


def as_of_step(manifest: Manifest, step: int) -> Manifest:
    """The tree as it is without the steps above this one, under the same id; the very same where there are none."""
    pattern = manifest.lineage.step_pattern
    tops = {entry.path for entry in manifest.entries if entry.path and b"/" not in entry.path}
    newer = {name for name in tops if (its := step_in(name, pattern)) is not None and its > step}
    if not newer:
        return manifest
    kept = tuple(entry for entry in manifest.entries if top(entry.path) not in newer)
    entries = tuple(_with_own_files(kept, manifest.entries))
    return replace(manifest, entries=entries, older_steps=tuple(one for one in manifest.older_steps if one < step))


def part_of(manifest: Manifest, names: Collection[bytes]) -> Manifest:
    """The tree as it is with these names at its root alone, under the same id."""
    kept = tuple(entry for entry in manifest.entries if not entry.path or top(entry.path) in names)
    return replace(manifest, entries=tuple(_with_own_files(kept, manifest.entries)), older_steps=())


def with_linked(names: Iterable[bytes], manifest: Manifest | None) -> set[bytes]:
    """Names at the root of a tree, and those that have files in common with them, be it through others."""
    found, links = set(names), set[tuple[bytes, bytes]]()
    for entry in manifest.entries if manifest is not None else ():
        if entry.kind is Kind.HARDLINK and entry.target is not None:
            links.add((top(entry.path), top(entry.target)))
    while more := {name for link in links if not found.isdisjoint(link) for name in link} - found:
        found |= more
    return found


def files_of_links(manifest: Manifest) -> Iterator[tuple[Entry, Entry]]:
    """Each entry, and what it is: of a hard link the file, under the path of the link."""
    files = {entry.path: entry for entry in manifest.entries if entry.kind is Kind.FILE}
    for entry in manifest.entries:
        if entry.kind is Kind.HARDLINK and entry.target is not None:
            yield entry, replace(files[entry.target], path=entry.path)
        else:
            yield entry, entry


def _is_same_life(one: Manifest, other: Manifest) -> bool:
    return (one.lineage.run, one.lineage.step_pattern) == (other.lineage.run, other.lineage.step_pattern)


def _of_no_step(manifest: Manifest) -> dict[bytes, object]:
    """The files and links at the root that are no step, nor written for each pod anew."""
    pattern = manifest.lineage.step_pattern
    return {
        entry.path: (file.kind, file.blob, file.target)
        for entry, file in files_of_links(manifest)
        if entry.kind is not Kind.DIRECTORY
        and b"/" not in entry.path
        and step_in(entry.path, pattern) is None
        and entry.path != INIT_INFO
    }


def _by_step(manifest: Manifest, wanted: Collection[int]) -> dict[int, list[Entry]]:
    pattern = manifest.lineage.step_pattern
    tops = (entry.path for entry in manifest.entries if entry.path and b"/" not in entry.path)
    steps = {name: step for name in tops if (step := step_in(name, pattern)) is not None and step in wanted}
    found: dict[int, list[Entry]] = {}
    for entry, file in files_of_links(manifest):
        step = steps.get(top(entry.path))
        if step is not None:
            found.setdefault(step, []).append(file)
    return found


def _with_own_files(kept: Iterable[Entry], every: Iterable[Entry]) -> Iterable[Entry]:
    """Of a file whose first name is left out the next name becomes the file."""
    files = {entry.path: entry for entry in every if entry.kind is Kind.FILE}
    first: dict[bytes, bytes] = {}
    for entry in kept:
        if entry.kind is Kind.FILE:
            first[entry.path] = entry.path
            yield entry
        elif entry.kind is Kind.HARDLINK and entry.target is not None:
            if entry.target in first:
                yield replace(entry, target=first[entry.target])
            else:
                first[entry.target] = entry.path
                yield replace(files[entry.target], path=entry.path)
        else:
            yield entry
