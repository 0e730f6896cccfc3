"""Config maps named after training jobs, with the address of each one's own coordinator: where tools look for it.

Tools name their jobs themselves, and the maps are in the namespace of the driver. So a map of that name that is not
ours, by its label, is left alone; and none is made of a name that something else in the namespace is called by, or
will be.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Final

import structlog
from kubernetes.client import ApiClient

from controller.driver.names import GROUP, is_reserved_for_config_maps
from controller.ranks.kept import MISSING_SECONDS, Kept
from controller.watching import Collection
from controller.writing import Writer
from fuse_tier.coordinate.milestones import Observer

log = structlog.get_logger(__name__)

_LABEL: Final = f"{GROUP}/job-coordinator"


class JobAddressMaps(Observer):
    """In one namespace, this server's own."""

    def __init__(
        self, api: ApiClient, writer: Writer, namespace: str, missing_seconds: float = MISSING_SECONDS
    ) -> None:
        self._namespace = namespace
        collection = partial(Collection, api, _place(namespace), selectors={"labelSelector": f"{_LABEL}=true"})
        self._kept = Kept(collection, writer, _place, missing_seconds)
        self._reserved: frozenset[str] = frozenset()  # names that jobs have now, as was told
        self.run = self._kept.run

    def addresses(self, addresses: Mapping[str, str]) -> None:
        """See Observer."""
        reserved = frozenset(filter(is_reserved_for_config_maps, addresses))
        for job in sorted(reserved - self._reserved):
            log.warning("addresses.name_reserved", job=job, remedy="register the job under another name")
        self._reserved = reserved
        self._kept.want(
            {
                (self._namespace, job): {
                    "apiVersion": "v1",
                    "kind": "ConfigMap",
                    "metadata": {"name": job, "namespace": self._namespace, "labels": {_LABEL: "true"}},
                    "data": {"ip": address},
                }
                for job, address in addresses.items()
                if job not in reserved
            }
        )


def _place(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/configmaps"
