"""The daemonset that leaves nothing on nodes: it runs when the driver's is gone, until each node is clean."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from controller.driver import names
from controller.driver.configuration import Configuration
from controller.driver.containers import Settings
from controller.driver.images import Images
from controller.driver.manifests import owned_metadata

_HOST: Final = "/host"
_TOLD: Final = "/tmp/clean"  # noqa: S108 - a volume of the pod's own


def cleaner(
    configuration: Configuration, images: Images, settings: Settings, shared: Iterable[str] = ()
) -> dict[str, Any]:
    """For the nodes of a configuration, save those that it shares. A pod of it is ready when its node is clean."""
    labels = {names.CLEANS_LABEL: configuration.uid, "app.kubernetes.io/component": "cleaner"}
    metadata = owned_metadata(configuration, names.cleaner_name(configuration.uid), settings)
    metadata["labels"] = {**names.APP, **labels}
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": metadata,
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": _pod(configuration, images, settings, shared),
            },
        },
    }


def affinity(shared: Iterable[str]) -> dict[str, Any]:
    """Of pods that keep away from these nodes; empty where there are none."""
    # The API takes one name for each expression.
    elsewhere = [{"key": "metadata.name", "operator": "NotIn", "values": [name]} for name in sorted(shared)]
    if not elsewhere:
        return {}
    terms = {"nodeSelectorTerms": [{"matchFields": elsewhere}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}


def _pod(configuration: Configuration, images: Images, settings: Settings, shared: Iterable[str]) -> dict[str, Any]:
    selector, tolerations, kept_away = configuration.node_selector, configuration.tolerations, affinity(shared)
    return {
        **({"affinity": kept_away} if kept_away else {}),
        **({"nodeSelector": dict(selector)} if selector else {}),
        **({"tolerations": [dict(one) for one in tolerations]} if tolerations else {}),
        "priorityClassName": "system-node-critical",
        "serviceAccountName": settings.service_account,
        "automountServiceAccountToken": False,
        "hostPID": True,  # the refuge is told to end
        "terminationGracePeriodSeconds": 5,
        "containers": [
            {
                "name": "cleaner",
                "image": images.csi,
                "imagePullPolicy": settings.pull_policy,
                "command": ["fuse-tier-clean"],
                "args": [
                    f"--socket={_HOST}{names.DRIVER_DIRECTORY}/node.sock",
                    f"--ram={_HOST}{names.RAM_DIRECTORY}/ram",
                    f"--kubelet={_HOST}{names.KUBELET}",
                    f"--driver-name={settings.driver_name}",
                    f"--told={_TOLD}",
                ],
                "readinessProbe": {"exec": {"command": ["cat", _TOLD]}, "periodSeconds": 1},
                # It unmounts the RAM tier for the machine, which Kubernetes lets privileged containers do alone.
                "securityContext": {"privileged": True, "readOnlyRootFilesystem": True},
                "resources": {"requests": {"cpu": "10m", "memory": "50Mi"}, "limits": {"memory": "200Mi"}},
                "volumeMounts": [
                    {"name": "run", "mountPath": f"{_HOST}/run"},
                    {"name": "lib", "mountPath": f"{_HOST}/var/lib", "mountPropagation": "Bidirectional"},
                    {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
                ],
            }
        ],
        "volumes": [
            {"name": "run", "hostPath": {"path": "/run", "type": "Directory"}},
            {"name": "lib", "hostPath": {"path": "/var/lib", "type": "Directory"}},
            {"name": "tmp", "emptyDir": {}},
        ],
    }
