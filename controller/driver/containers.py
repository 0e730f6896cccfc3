"""The five containers of the driver's pod, each with as few rights as it works with (``docs/csi.md`` says why).

All are on the host's network and none declares a port: with ``maxSurge`` two pods are on a node for a while, and the
scheduler would keep the second one off.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Final

from controller.driver import names
from controller.driver.configuration import Configuration
from controller.driver.images import Images
from fuse_tier.quantities import parse_size

_ENVIRONMENT: Final = [
    {"name": "NODE_NAME", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "spec.nodeName"}}},
    {"name": "HOST_IP", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.hostIP"}}},
    {"name": "FUSE_TIER_POD", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.uid"}}},
]
_NODE_YAML: Final = f"{names.CONFIG_DIRECTORY}/node.yaml"
_SOCKET: Final = "/csi/csi.sock"
# Memory has no limit where the RAM tier's pages are touched: they count against whoever is the first to do so.
_SIDECAR: Final = {"requests": {"cpu": "10m", "memory": "20Mi"}, "limits": {"memory": "100Mi"}}


@dataclass(frozen=True, slots=True)
class Settings:
    """What is the same for all configurations of a cluster."""

    namespace: str
    service_account: str
    driver_name: str
    ranks_port: int
    pull_policy: str = "IfNotPresent"
    backs_up_odd_steps: bool = False
    """Whatever a configuration says of backups: each odd step goes to the bucket, as tests of jobs want it."""

    @property
    def coordinator(self) -> str:
        """Where nodes reach the ranks server."""
        return f"{names.RANKS_SERVICE}.{self.namespace}.svc:{self.ranks_port}"


def containers(
    configuration: Configuration, images: Images, settings: Settings, revision: str
) -> list[dict[str, Any]]:
    """In their order. ``revision`` tells the pods apart that may be on a node at once."""
    host = _loopback(revision)
    return [
        _registrar(images.registrar, settings, host),
        _liveness_probe(images.liveness_probe, host),
        _csi(configuration, images.csi, settings, host),
        _fuse(images.fuse),
        _replication_worker(images.replication_worker),
    ]


def _registrar(image: str, settings: Settings, host: str) -> dict[str, Any]:
    plugin = f"{names.KUBELET}/plugins/{settings.driver_name}/csi.sock"
    return {
        "name": "registrar",
        "image": image,
        "args": [
            f"--csi-address={_SOCKET}",
            f"--kubelet-registration-path={plugin}",
            f"--http-endpoint={host}:{names.REGISTRAR_PORT}",
        ],
        # It is unwell when its registration is gone, which one that ends takes with it though another's is there.
        "livenessProbe": _ask(host, names.REGISTRAR_PORT, period=10, failures=2),
        "securityContext": _with_capabilities(),
        "resources": _SIDECAR,
        "volumeMounts": [_mount("plugin", "/csi"), _mount("registration", "/registration")],
    }


def _liveness_probe(image: str, host: str) -> dict[str, Any]:
    return {
        "name": "liveness-probe",
        "image": image,
        "args": [f"--csi-address={_SOCKET}", f"--http-endpoint={host}:{names.LIVENESS_PORT}", "--probe-timeout=3s"],
        "securityContext": _with_capabilities(),
        "resources": _SIDECAR,
        "volumeMounts": [_mount("plugin", "/csi")],
    }


def _csi(configuration: Configuration, image: str, settings: Settings, host: str) -> dict[str, Any]:
    resources: dict[str, Any] = {"requests": {"cpu": "20m", "memory": "100Mi"}, "limits": {"memory": "500Mi"}}
    if (limit := configuration.spec.get("csiEphemeralLimit")) is not None:
        resources["limits"]["ephemeral-storage"] = _quantity(parse_size(limit))
    args = [
        f"--config={_NODE_YAML}",
        f"--endpoint=unix://{_SOCKET}",
        f"--driver-name={settings.driver_name}",
        f"--metrics=$(HOST_IP):{names.CSI_METRICS_PORT}",
    ]
    if configuration.spec.get("enableExternalJaxProcessIds"):
        args.append("--jax-init-info")
    return {
        "name": "csi",
        "image": image,
        "command": ["fuse-tier-csi"],
        "args": args,
        "env": _ENVIRONMENT,
        # Ready when all three parts answer; started anew only when it is itself that does not.
        "readinessProbe": _ask(host, names.LIVENESS_PORT, period=5, failures=2),
        "livenessProbe": _ask("", names.CSI_METRICS_PORT, period=20, failures=6),
        "securityContext": _with_capabilities("CHOWN", "DAC_OVERRIDE", "FOWNER", "LINUX_IMMUTABLE"),
        "resources": resources,
        "volumeMounts": [
            *_COMMON,
            _mount("plugin", "/csi"),
            _mount("ram", names.RAM_DIRECTORY, "HostToContainer"),
            _mount("pods", f"{names.KUBELET}/pods", "HostToContainer"),
        ],
    }


def _fuse(image: str) -> dict[str, Any]:
    return {
        "name": "fuse",
        "image": image,
        "command": ["fuse-tier", "node"],
        "args": [f"--config={_NODE_YAML}", "--part=supervisor"],
        "env": _ENVIRONMENT,
        # No liveness probe: its end stops all mounts for a moment, and who runs in it is watched by the supervisor.
        "securityContext": {"privileged": True, "readOnlyRootFilesystem": True},
        "resources": {"requests": {"cpu": "100m", "memory": "200Mi"}},
        "volumeMounts": [
            *_COMMON,
            _mount("ram", names.RAM_DIRECTORY, "Bidirectional"),
            _mount("pods", f"{names.KUBELET}/pods", "Bidirectional"),
        ],
    }


def _replication_worker(image: str) -> dict[str, Any]:
    return {
        "name": "replication-worker",
        "image": image,
        "command": ["fuse-tier", "node"],
        "args": [f"--config={_NODE_YAML}", "--part=worker"],
        "env": _ENVIRONMENT,
        "livenessProbe": _ask("", names.WORKER_METRICS_PORT, period=20, failures=6),
        "securityContext": _with_capabilities("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "LEASE", "MKNOD"),
        "resources": {"requests": {"cpu": "200m", "memory": "300Mi"}},
        "volumeMounts": [*_COMMON, _mount("ram", names.RAM_DIRECTORY, "HostToContainer")],
    }


def _mount(volume: str, path: str, propagation: str = "") -> dict[str, Any]:
    found = {"name": volume, "mountPath": path}
    return {**found, "mountPropagation": propagation} if propagation else found


_COMMON: Final = [
    {**_mount("config", names.CONFIG_DIRECTORY), "readOnly": True},
    {**_mount("certificates", names.TLS_DIRECTORY), "readOnly": True},
    _mount("driver", names.DRIVER_DIRECTORY),
    _mount("tmp", "/tmp"),  # noqa: S108 - a volume of the pod's own
]


def _with_capabilities(*added: str) -> dict[str, Any]:
    """Root, who has these rights and no others."""
    capabilities: dict[str, Any] = {"drop": ["ALL"], "add": list(added)} if added else {"drop": ["ALL"]}
    return {
        "runAsUser": 0,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": capabilities,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _ask(host: str, port: int, *, period: int, failures: int) -> dict[str, Any]:
    where = {"host": host} if host else {}
    return {
        "httpGet": {**where, "path": "/healthz", "port": port},
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def _quantity(size: int) -> str:
    """As the API server would write it itself, in KiB at least: an object then is what its manifest says."""
    kibibytes, unit = -(-size // 1024), 0
    while kibibytes and kibibytes % 1024 == 0 and unit < 5:
        kibibytes, unit = kibibytes // 1024, unit + 1
    return f"{kibibytes}{'KMGTPE'[unit]}i"


def _loopback(revision: str) -> str:
    """An address of the sidecars' own: those of the pod that this one replaces still listen, on the same ports."""
    digest = hashlib.sha256(revision.encode()).digest()
    return f"127.{64 + digest[0] % 64}.{digest[1]}.{1 + digest[2] % 254}"
