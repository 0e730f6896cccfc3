"""Config maps named after training jobs, with the address of each one's own coordinator: where tools look for it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Final

from kubernetes.client import ApiClient

from controller.driver.names import GROUP
from controller.ranks.kept import MISSING_SECONDS, Kept
from controller.watching import Collection
from controller.writing import Writer
from fuse_tier.coordinate.milestones import Observer

_LABEL: Final = f"{GROUP}/job-coordinator"


class JobAddressMaps(Observer):
    """In one namespace, this server's own."""

    def __init__(
        self, api: ApiClient, writer: Writer, namespace: str, missing_seconds: float = MISSING_SECONDS
    ) -> None:
        self._namespace = namespace
        collection = partial(Collection, api, _place(namespace), selectors={"labelSelector": f"{_LABEL}=true"})
        self._kept = Kept(collection, writer, _place, missing_seconds)
        self.run = self._kept.run

    def addresses(self, addresses: Mapping[str, str]) -> None:
        """See Observer."""
        self._kept.want(
            {
                (self._namespace, job): {
                    "apiVersion": "v1",
                    "kind": "ConfigMap",
                    "metadata": {"name": job, "namespace": self._namespace, "labels": {_LABEL: "true"}},
                    "data": {"ip": address},
                }
                for job, address in addresses.items()
            }
        )


def _place(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/configmaps"
