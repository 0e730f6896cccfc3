"""The objects that a configuration is made into: the daemonset, and the config map that its pods read.

Equal values give equal manifests, byte by byte: that is how it is told whether there is anything to do.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

from controller.driver import names
from controller.driver.configuration import Configuration
from controller.driver.containers import Settings, containers
from controller.driver.images import Images
from controller.driver.node_yaml import node_yaml

_ENDING_SECONDS: Final = 30  # what a pod's end takes besides draining


def config_map(configuration: Configuration, settings: Settings) -> dict[str, Any]:
    """With the nodes' ``node.yaml``."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": owned_metadata(configuration, names.daemonset_name(configuration.uid), settings),
        "data": {"node.yaml": _node_yaml(configuration, settings)},
    }


def owned_metadata(configuration: Configuration, name: str, settings: Settings) -> dict[str, Any]:
    """Of an object that is made for a configuration, and goes with it."""
    return {
        "name": name,
        "namespace": settings.namespace,
        "labels": _labels(configuration),
        "annotations": {names.CONFIGURATION_ANNOTATION: configuration.name},
        "ownerReferences": _owner(configuration),
    }


def daemonset(configuration: Configuration, images: Images, settings: Settings) -> dict[str, Any]:
    """With the driver's pods."""
    config = hashlib.sha256(_node_yaml(configuration, settings).encode()).hexdigest()[:16]
    selected = {**names.APP, names.UID_LABEL: configuration.uid}
    revision = _hash([config, containers(configuration, images, settings, ""), configuration.drain_seconds])
    storage = configuration.storage
    made: dict[str, Any] = {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {
            "name": names.daemonset_name(configuration.uid),
            "namespace": settings.namespace,
            "labels": _labels(configuration),
            "annotations": {
                names.CONFIGURATION_ANNOTATION: configuration.name,
                names.RAM_ANNOTATION: str(storage.ram),
                names.BUCKET_ANNOTATION: storage.bucket,
                names.ENDPOINT_ANNOTATION: storage.endpoint,
            },
            "ownerReferences": _owner(configuration),
        },
        "spec": {
            "selector": {"matchLabels": selected},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {
                "metadata": {
                    "labels": {**_labels(configuration), **selected},
                    "annotations": {
                        f"{names.GROUP}/node-yaml-hash": config,
                        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
                    },
                },
                "spec": _pod(configuration, images, settings, revision),
            },
        },
    }
    made["metadata"]["annotations"][names.HASH_ANNOTATION] = _hash(made)
    return made


def _pod(configuration: Configuration, images: Images, settings: Settings, revision: str) -> dict[str, Any]:
    selector, tolerations = configuration.node_selector, configuration.tolerations
    return {
        **({"nodeSelector": dict(selector)} if selector else {}),
        **({"tolerations": [dict(one) for one in tolerations]} if tolerations else {}),
        "priorityClassName": "system-node-critical",
        "serviceAccountName": settings.service_account,
        "automountServiceAccountToken": False,
        "hostNetwork": True,
        "dnsPolicy": "ClusterFirstWithHostNet",
        "hostPID": True,
        "terminationGracePeriodSeconds": round(configuration.drain_seconds) + _ENDING_SECONDS,
        "containers": [
            {**one, "imagePullPolicy": settings.pull_policy}
            for one in containers(configuration, images, settings, revision)
        ],
        "volumes": [
            {"name": "config", "configMap": {"name": names.daemonset_name(configuration.uid)}},
            {
                "name": "certificates",
                "projected": {
                    "sources": names.certificate_sources(configuration.uid),
                    "defaultMode": 0o400,
                },
            },
            {"name": "tmp", "emptyDir": {}},
            _host("driver", names.DRIVER_DIRECTORY, "DirectoryOrCreate"),
            _host("ram", names.RAM_DIRECTORY, "DirectoryOrCreate"),
            _host("pods", f"{names.KUBELET}/pods", "Directory"),
            _host("plugin", f"{names.KUBELET}/plugins/{settings.driver_name}", "DirectoryOrCreate"),
            _host("registration", f"{names.KUBELET}/plugins_registry", "Directory"),
        ],
    }


def _node_yaml(configuration: Configuration, settings: Settings) -> str:
    return node_yaml(configuration, settings.coordinator, backs_up_odd_steps=settings.backs_up_odd_steps)


def _host(name: str, path: str, kind: str) -> dict[str, Any]:
    return {"name": name, "hostPath": {"path": path, "type": kind}}


def _owner(configuration: Configuration) -> list[dict[str, Any]]:
    """So that Kubernetes collects what is left should the configuration go while no controller runs."""
    return [
        {
            "apiVersion": f"{names.GROUP}/v1",
            "kind": "CheckpointConfiguration",
            "name": configuration.name,
            "uid": configuration.uid,
            "controller": True,
        }
    ]


def _labels(configuration: Configuration) -> dict[str, str]:
    return {
        **names.APP,
        names.UID_LABEL: configuration.uid,
        "app.kubernetes.io/name": "fuse-tier",
        "app.kubernetes.io/component": "driver",
        "app.kubernetes.io/part-of": "fuse-tier",
        "app.kubernetes.io/managed-by": names.MANAGER,
    }


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
