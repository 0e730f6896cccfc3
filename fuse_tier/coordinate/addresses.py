"""Where the coordinators of training jobs are, as the jobs' own tools told nodes. It keeps no truth of its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping


class JobAddresses:
    """By the node that has it registered: it goes with that node's lease."""

    def __init__(self) -> None:
        self._of_node: dict[str, Mapping[str, str]] = {}
        self._of_job: dict[str, dict[str, str]] = {}  # by node, in the order in which they were heard

    def hear(self, node: str, addresses: Mapping[str, str]) -> None:
        """All that a node has registered; the latest that was told of a job counts."""
        before = self._of_node.get(node, {})
        if before == addresses:
            return
        for job, address in before.items():
            if addresses.get(job) != address:
                self._drop(job, node)
        for job, address in addresses.items():
            if before.get(job) != address:  # of the others it was said earlier: another node's may be newer
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
        return {job: self.of(job) for job in self._of_job}

    def of(self, job: str) -> str:
        """Empty: nobody has registered one."""
        return next(reversed(self._of_job.get(job, {}).values()), "")
