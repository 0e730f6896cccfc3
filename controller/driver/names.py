"""Names that are fixed: by conventions, by the system that this one replaces, and by the driver's own code."""

from __future__ import annotations

import hashlib
from typing import Any, Final

GROUP: Final = "checkpointing.gke.io"
FINALIZER: Final = f"{GROUP}/checkpoint-target-protection"
CONFIGURATION_ANNOTATION: Final = "highscalecheckpointing.gke.io/cpc"
"""On whatever is made for a configuration: its name."""
DATA_LOSS_ANNOTATION: Final = f"{GROUP}/allow-data-loss"
"""On a configuration: the generation whose loss of data is wanted."""
HASH_ANNOTATION: Final = f"{GROUP}/manifest-hash"
RAM_ANNOTATION: Final = f"{GROUP}/ram-bytes"
BUCKET_ANNOTATION: Final = f"{GROUP}/bucket"
ENDPOINT_ANNOTATION: Final = f"{GROUP}/bucket-endpoint"
TRUST_CHANGED_ANNOTATION: Final = f"{GROUP}/trust-changed"
"""On Secrets with certificates: when their authorities last changed. It takes a while until all readers know."""
REPLACED_ANNOTATION: Final = f"{GROUP}/certificate-replaced"
"""Likewise, when a certificate in them was last replaced."""
UID_LABEL: Final = f"{GROUP}/configuration-uid"
CLEANS_LABEL: Final = f"{GROUP}/cleans"
"""On what leaves nothing on nodes: the uid of the configuration that was there."""
MANAGER: Final = "fuse-tier-controller"
"""Who has the fields that the controller applies."""

APP: Final = {"k8s-app": "high-scale-checkpointing"}
SELECTED: Final = {"labelSelector": ",".join(f"{key}={value}" for key, value in APP.items())}
"""Of the API server's collections: what is ours."""
IMAGES_CONFIG_MAP: Final = "checkpoint-image-config"
_CONFIG_MAPS: Final = frozenset({IMAGES_CONFIG_MAP, f"custom-{IMAGES_CONFIG_MAP}", "kube-root-ca.crt"})
RANKS_SERVICE: Final = "high-scale-checkpointing-controller"

JOBSETS: Final = "jobsets.jobset.x-k8s.io"
"""The definition of JobSets, which somebody else installs."""
JOBSET_COMMAND: Final = (
    "kubectl apply --server-side -f https://github.com/kubernetes-sigs/jobset/releases/download/v0.8.0/manifests.yaml"
)

DRIVER_DIRECTORY: Final = "/run/fuse-tier"
RAM_DIRECTORY: Final = "/var/lib/fuse-tier"
CONFIG_DIRECTORY: Final = "/etc/fuse-tier/config"
TLS_DIRECTORY: Final = "/etc/fuse-tier/tls"
TRUSTED: Final = "ca.crt"
"""Of a Secret with certificates: whom all trust. Nodes read it as ``TRUSTED_BY_NODES``, which is no node's file."""
TRUSTED_BY_NODES: Final = "authorities.pem"
_OF_A_NODE_CALLED_CA: Final = f"_{TRUSTED}"
"""In a Secret, where ``ca.crt`` is what pods of earlier versions trust; no node's name begins so."""
KUBELET: Final = "/var/lib/kubelet"

CERTIFICATE_SECRETS: Final = 16
"""For the nodes of a configuration: each has room for 1 MiB, which is about 700 nodes."""

CONTROL_PORT: Final = 7460
BULK_PORT: Final = 7461
WORKER_METRICS_PORT: Final = 7462
REPLICATION_API_PORT: Final = 2112
CSI_METRICS_PORT: Final = 20062
LIVENESS_PORT: Final = 20063
REGISTRAR_PORT: Final = 20064


def daemonset_name(uid: str) -> str:
    """Of the configuration with that uid."""
    return f"multitier-driver-{uid}"


def cleaner_name(uid: str) -> str:
    """Of the daemonset that leaves nothing of that configuration on nodes."""
    return f"multitier-cleaner-{uid}"


def is_reserved_for_config_maps(name: str) -> bool:
    """Whether a config map of that name in the driver's namespace means something to us, or to Kubernetes."""
    return name in _CONFIG_MAPS or name.startswith((daemonset_name(""), cleaner_name("")))


def certificate_keys(node: str) -> tuple[str, str]:
    """Under which names a Secret has a node's certificate, and its key."""
    certificate = f"{node}.crt"
    return _OF_A_NODE_CALLED_CA if certificate == TRUSTED else certificate, f"{node}.key"


def certificate_sources(uid: str) -> list[dict[str, Any]]:
    """What a pod's directory of certificates is made of, so that each node's are ``NODE.crt`` and ``NODE.key`` there.

    Of files of one name the kubelet takes the last.
    """
    secrets = certificates_names(uid)
    item = {"key": _OF_A_NODE_CALLED_CA, "path": TRUSTED}
    aside = {"name": secrets[shard_of(TRUSTED.removesuffix(".crt"))], "items": [item], "optional": True}
    return [{"secret": one} for one in [*({"name": name} for name in secrets), aside]]


def shard_of(node: str) -> int:
    """Which of its configuration's Secrets a node is in."""
    return hashlib.sha256(node.encode()).digest()[0] % CERTIFICATE_SECRETS


def certificates_names(uid: str) -> tuple[str, ...]:
    """The Secrets with its nodes' certificates, in the order of ``shard_of``."""
    return tuple(f"multitier-driver-{uid}-certificates-{number}" for number in range(CERTIFICATE_SECRETS))
