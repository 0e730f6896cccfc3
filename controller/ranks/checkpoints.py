"""``kubectl get checkpoints``: an object for each complete checkpoint of a job, in the job's namespace."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from typing import Any, Final

from kubernetes.client import ApiClient

from controller.driver.names import GROUP
from controller.ranks.kept import AGAIN_SECONDS, MISSING_SECONDS, Kept, Key
from controller.watching import Collection, Object
from controller.writing import Writer
from fuse_tier.checkpoints import Job
from fuse_tier.coordinate.milestones import Observer
from fuse_tier.quantities import format_size
from fuse_tier.standing import Standing

COLLECTION: Final = f"/apis/{GROUP}/v1/checkpoints"
_NO_NAME: Final = re.compile(r"[^a-z0-9]+")
_LONGEST_NAME: Final = 200
MOST_OF_A_JOB: Final = 50  # the newest; the bucket may have thousands, of which `fuse-tier status --job` tells


def objects_of(standings: Iterable[Standing]) -> dict[Key, Object]:
    """What is to be there, by namespace and name: of each job the newest."""
    listed = _shown(list(standings))
    names = Counter((one.job.namespace, _name(one)) for one in listed)
    found: dict[Key, Object] = {}
    for one in listed:
        name = _name(one)
        if names[one.job.namespace, name] > 1:  # another run of the job, or another shape
            name += f"-{sha256(repr((one.job, one.run, one.ranks, one.step)).encode()).hexdigest()[:8]}"
        found[one.job.namespace, name] = {
            "apiVersion": f"{GROUP}/v1",
            "kind": "Checkpoint",
            "metadata": {"name": name, "namespace": one.job.namespace},
            "status": _status(one),
        }
    return found


def _shown(standings: Sequence[Standing]) -> list[Standing]:
    """The newest of each job, and among them one to go on from, where there is any."""
    of_job: dict[Job, list[Standing]] = {}
    for one in sorted(standings, key=lambda one: -one.created_ns):
        of_job.setdefault(one.job, []).append(one)
    found: set[Standing] = set()
    for several in of_job.values():
        newest = several[:MOST_OF_A_JOB]
        if not any(one.restorable for one in newest):
            newest += [one for one in several if one.restorable][:1]
        found.update(newest)
    return [one for one in standings if one in found]


def _name(one: Standing) -> str:
    run = "" if one.run == one.job.workload else f"-{one.run}"
    step = "newest" if one.step is None else str(one.step)
    text = _NO_NAME.sub("-", f"{one.job.workload}{run}".lower())[:_LONGEST_NAME].strip("-")
    return f"{text}-{step}"


def _status(one: Standing) -> Mapping[str, Any]:
    saved = datetime.fromtimestamp(one.created_ns // 10**9, UTC)
    return {
        "job": one.job.workload,
        "run": one.run,
        **({} if one.step is None else {"step": one.step}),
        "ranks": one.ranks,
        "tiers": ",".join(one.tiers),
        "size": format_size(one.size),
        "bytes": one.size,
        "restorable": one.restorable,
        "savedAt": saved.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


class Checkpoints(Observer):
    """Keeps the objects of a cluster."""

    def __init__(
        self,
        api: ApiClient,
        writer: Writer,
        missing_seconds: float = MISSING_SECONDS,
        again_seconds: float = AGAIN_SECONDS,
    ) -> None:
        collection = partial(Collection, api, COLLECTION, may_lack=True)
        self._kept = Kept(collection, writer, _place, missing_seconds, again_seconds)
        self.run = self._kept.run

    def complete(self, standings: Sequence[Standing]) -> None:
        """See Observer."""
        self._kept.want(objects_of(standings))


def _place(namespace: str) -> str:
    return f"/apis/{GROUP}/v1/namespaces/{namespace}/checkpoints"
