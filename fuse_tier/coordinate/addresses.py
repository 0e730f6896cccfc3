"""Where the coordinators of training jobs are, as the jobs' own tools told nodes. It keeps no truth of its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from fuse_tier.members import JobAddress


class JobAddresses:
    """By the node that has it registered: it goes with that node's lease.

    Of several nodes' the last that was registered counts, in whatever order they are heard: who has just started
    hears old ones late. Of those that do not say when, it is the last that was heard.
    """

    def __init__(self) -> None:
        self._of_node: dict[str, Mapping[str, JobAddress]] = {}
        self._of_job: dict[str, dict[str, JobAddress]] = {}  # by node, in the order in which they were heard

    def hear(self, node: str, addresses: Mapping[str, JobAddress]) -> None:
        """All that a node has registered."""
        before = self._of_node.get(node, {})
        if before == addresses:
            return
        for job, address in before.items():
            if addresses.get(job) != address:
                self._drop(job, node)
        for job, address in addresses.items():
            if before.get(job) != address:
                self._of_job.setdefault(job, {})[node] = address
        if addresses:
            self._of_node[node] = addresses
        else:
            del self._of_node[node]

    def _drop(self, job: str, node: str) -> None:
        del self._of_job[job][node]
        if not self._of_job[job]:
            del self._of_job[job]

    def forget(self, alive: Collection[str]) -> None:
        """Only these nodes hold a lease."""
        for node in self._of_node.keys() - set(alive):
            self.hear(node, {})

    def all(self) -> dict[str, str]:
        """By job."""
        return {job: found.address for job in self._of_job if (found := self.of(job)) is not None}

    def of(self, job: str) -> JobAddress | None:
        """None: nobody has registered one."""
        heard = self._of_job.get(job, {})
        return max(reversed(heard.values()), key=lambda one: one.registered, default=None)
