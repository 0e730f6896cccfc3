"""The ``node.yaml`` of all nodes of a configuration: what differs between them is named by variables."""

from __future__ import annotations

from typing import Any

import yaml

from controller.driver import names
from controller.driver.configuration import Configuration

_SAME = ("replicas", "fsync", "passthrough", "encryptPeerTraffic", "drain", "keep", "backup", "limits")


def node_yaml(configuration: Configuration, coordinator: str, *, backs_up_odd_steps: bool = False) -> str:
    """Its text; the containers have NODE_NAME and HOST_IP in their environment. ``coordinator`` is HOST:PORT."""
    storage, spec = configuration.storage, configuration.spec
    bucket = {"url": storage.bucket}
    if storage.endpoint:
        bucket["endpoint"] = storage.endpoint
    values: dict[str, Any] = {
        "node": "${NODE_NAME}",
        "ram": {"path": f"{names.RAM_DIRECTORY}/ram", "size": storage.ram},
        "socket": f"{names.DRIVER_DIRECTORY}/node.sock",
        "listen": {"control": f"${{HOST_IP}}:{names.CONTROL_PORT}", "bulk": f"${{HOST_IP}}:{names.BULK_PORT}"},
        "metrics": f"${{HOST_IP}}:{names.WORKER_METRICS_PORT}",
        "replicationApi": f"127.0.0.1:{names.REPLICATION_API_PORT}",
        "coordinator": coordinator,
        "bucket": bucket,
        "tls": {
            "ca": f"{names.TLS_DIRECTORY}/{names.TRUSTED_BY_NODES}",
            "cert": f"{names.TLS_DIRECTORY}/${{NODE_NAME}}.crt",
            "key": f"{names.TLS_DIRECTORY}/${{NODE_NAME}}.key",
        },
    }
    if spec.get("inMemoryVolumeWarm"):
        values["ram"]["warm"] = True
    if "reserve" in spec:
        values["reserve"] = spec["reserve"]
    values |= {key: spec[key] for key in _SAME if key in spec}
    if backs_up_odd_steps:
        values["backup"] = {"steps": "odd"}
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=False)
