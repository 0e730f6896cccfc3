"""What the API server tells of pods, nodes and jobs, written into the book."""

from __future__ import annotations

from kubernetes.client import ApiClient

from controller.ranks.book import RankBook
from controller.ranks.objects import Name, Object, Owner, read_node, read_pod, read_wish, read_workers
from controller.watching import Collection


class Pods:
    """Pods with volumes of ours."""

    def __init__(self, book: RankBook, driver: str) -> None:
        self._book = book
        self._driver = driver

    def seen(self, found: Object) -> None:
        """See Follower."""
        pod = read_pod(found, self._driver)
        if pod is not None:
            self._book.see_pod(pod)

    def lost(self, key: str) -> None:
        """See Follower."""
        self._book.lose_pod(key)


class Nodes:
    """All nodes."""

    def __init__(self, book: RankBook) -> None:
        self._book = book
        self._names: dict[str, str] = {}

    def seen(self, found: Object) -> None:
        """See Follower."""
        self._names[found["metadata"]["uid"]] = name = found["metadata"]["name"]
        self._book.see_node(name, read_node(found))

    def lost(self, key: str) -> None:
        """See Follower."""
        name = self._names.pop(key)
        if name not in self._names.values():  # else one of the same name has come already
            self._book.see_node(name, None)


class Owners:
    """Jobs, or StatefulSets: who says how many workers there are."""

    def __init__(self, book: RankBook, kind: str) -> None:
        self._book = book
        self._kind = kind
        self._owners: dict[str, Owner] = {}

    def seen(self, found: Object) -> None:
        """See Follower."""
        metadata = found["metadata"]
        owner = Owner(self._kind, Name(metadata["namespace"], metadata["name"]))
        self._owners[metadata["uid"]] = owner
        self._book.see_workers(owner, read_workers(found))
        self._book.see_wish(self._kind, owner.name, read_wish(found))

    def lost(self, key: str) -> None:
        """See Follower."""
        owner = self._owners.pop(key)
        if owner not in self._owners.values():
            self._book.see_workers(owner, None)
            self._book.see_wish(self._kind, owner.name, None)


class JobSets:
    """Only for what people write on them: their pods say all else."""

    def __init__(self, book: RankBook) -> None:
        self._book = book
        self._names: dict[str, Name] = {}

    def seen(self, found: Object) -> None:
        """See Follower."""
        metadata = found["metadata"]
        self._names[metadata["uid"]] = name = Name(metadata["namespace"], metadata["name"])
        self._book.see_wish("JobSet", name, read_wish(found))

    def lost(self, key: str) -> None:
        """See Follower."""
        name = self._names.pop(key)
        if name not in self._names.values():
            self._book.see_wish("JobSet", name, None)


def followed(api: ApiClient, driver: str, book: RankBook) -> tuple[Collection, ...]:
    """Everything that the book is to know, in the order in which it is best told."""
    return (
        Collection(api, "/api/v1/nodes", Nodes(book)),
        Collection(api, "/apis/batch/v1/jobs", Owners(book, "Job")),
        Collection(api, "/apis/apps/v1/statefulsets", Owners(book, "StatefulSet")),
        Collection(api, "/api/v1/pods", Pods(book, driver)),
    )


def jobsets(api: ApiClient, book: RankBook) -> Collection:
    """Where there is such a kind."""
    return Collection(api, "/apis/jobset.x-k8s.io/v1alpha2/jobsets", JobSets(book), may_lack=True)
