"""A real API server with its etcd, on free ports, for as long as a block runs. Built by ``make kube``.

Kubernetes' own controllers and kubelets are not there: what they would do to an object, a test does, or kwok.py.
"""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio
import urllib3
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from kubernetes.client import ApiClient, Configuration
from kubernetes.client.exceptions import ApiException

from controller.local.programs import program
from fuse_tier.localcluster.ports import free_ports
from fuse_tier.localcluster.waiting import until

_START_SECONDS = 60.0
_STOP_SECONDS = 10.0
_RAW = {  # what is asked of the client: JSON there and back
    "header_params": {"Content-Type": "application/json", "Accept": "application/json"},
    "auth_settings": ["BearerToken"],
    "_preload_content": False,
    "_return_http_data_only": True,
}
_AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived", "ResponseStarted"],
    "rules": [{"level": "Metadata", "users": ["audited"]}, {"level": "None"}],
}


@dataclass
class ApiServer:
    """A running one. ``client`` has all rights."""

    directory: Path
    port: int
    token: str
    _etcd: str
    has_accounts: bool = False
    """Whether pods need the service account that they name, as on any cluster where somebody makes accounts."""
    audits: bool = False
    """Whether what the user ``audited`` asks is written down: ``audit.log`` in the directory, a line of JSON each."""
    _process: subprocess.Popen[bytes] | None = None

    @property
    def client(self) -> ApiClient:
        """Of Kubernetes' own Python library."""
        return self.client_of("admin")

    def client_of(self, user: str) -> ApiClient:
        """One who is ``admin`` or ``audited``, with all rights, or ``nobody``, with none."""
        configuration = Configuration(host=f"https://127.0.0.1:{self.port}")
        configuration.api_key = {"authorization": f"Bearer {user}-{self.token}"}
        configuration.ssl_ca_cert = str(self.directory / "certs" / "apiserver.crt")
        configuration.retries = False
        return ApiClient(configuration)

    @property
    def kubeconfig(self) -> dict[str, Any]:
        """For programs; with all rights."""
        return self.kubeconfig_of("admin")

    def kubeconfig_of(self, user: str) -> dict[str, Any]:
        """For programs of one of the users of ``client_of``."""
        authority = str(self.directory / "certs" / "apiserver.crt")
        cluster = {"server": f"https://127.0.0.1:{self.port}", "certificate-authority": authority}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "a", "cluster": cluster}],
            "users": [{"name": "a", "user": {"token": f"{user}-{self.token}"}}],
            "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
            "current-context": "a",
        }

    async def start(self) -> None:
        """Returns when it is ready."""
        command = [
            program("kube-apiserver"),
            f"--etcd-servers={self._etcd}",
            f"--secure-port={self.port}",
            "--bind-address=127.0.0.1",
            f"--cert-dir={self.directory / 'certs'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self.directory / 'sa.key'}",
            f"--service-account-signing-key-file={self.directory / 'sa.key'}",
            f"--token-auth-file={self.directory / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--allow-privileged=true",
            *([] if self.has_accounts else ["--disable-admission-plugins=ServiceAccount"]),
            *(self._audit_arguments() if self.audits else []),
        ]
        self._process = start_program(command, self.directory / "apiserver.log")
        await until(self._is_ready, _START_SECONDS)

    def _audit_arguments(self) -> list[str]:
        policy = self.directory / "audit-policy.json"
        policy.write_text(json.dumps(_AUDIT_POLICY))
        return [f"--audit-policy-file={policy}", f"--audit-log-path={self.directory / 'audit.log'}"]

    async def stop(self) -> None:
        """Without a goodbye, as a crash is."""
        if self._process is not None:
            self._process.kill()
            await trio.to_thread.run_sync(self._process.wait)
            self._process = None

    async def create(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """POSTs an object to a collection; gives it as the server has it."""
        return await self._send("POST", path, body)

    async def replace_status(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """PUTs the status of an object, as a kubelet or a controller does."""
        return await self._send("PUT", f"{path}/status", body)

    async def delete(self, path: str) -> None:
        """Deletes an object, at once."""
        await self._send("DELETE", path, {"gracePeriodSeconds": 0})

    async def _send(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        def send() -> dict[str, Any]:
            with self.client as api:
                answer = api.call_api(path, method, body=body, **_RAW)
                found: dict[str, Any] = json.loads(answer.data)
                return found

        return await trio.to_thread.run_sync(send)

    async def _is_ready(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"kube-apiserver ended: {(self.directory / 'apiserver.log').read_text()[-2000:]}")

        def ask() -> bool:
            try:
                with self.client as api:
                    return bool(api.call_api("/readyz", "GET", _request_timeout=5, **_RAW).status == 200)
            except (ApiException, urllib3.exceptions.HTTPError, OSError):
                return False

        return await trio.to_thread.run_sync(ask)


@asynccontextmanager
async def running_api_server(
    directory: Path, has_accounts: bool = False, audits: bool = False
) -> AsyncIterator[ApiServer]:
    """Runs one until the block is left."""
    directory.mkdir()
    token = secrets.token_hex(16)
    users = {"admin": ",system:masters", "audited": ",system:masters", "nobody": ""}
    (directory / "tokens.csv").write_text(
        "".join(f"{user}-{token},{user},{user}{group}\n" for user, group in users.items())
    )
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    encoding, encryption = serialization.Encoding.PEM, serialization.NoEncryption()
    (directory / "sa.key").write_bytes(
        key.private_bytes(encoding, serialization.PrivateFormat.TraditionalOpenSSL, encryption)
    )
    port, for_clients, for_peers = free_ports(3)
    endpoint, peer = f"http://127.0.0.1:{for_clients}", f"http://127.0.0.1:{for_peers}"
    etcd = start_program(
        [
            program("etcd"),
            f"--data-dir={directory / 'etcd'}",
            f"--listen-client-urls={endpoint}",
            f"--advertise-client-urls={endpoint}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
        ],
        directory / "etcd.log",
    )
    server = ApiServer(directory, port, token, endpoint, has_accounts, audits)
    try:
        await server.start()
        yield server
    finally:
        with trio.CancelScope(shield=True), trio.move_on_after(_STOP_SECONDS):
            await server.stop()
            etcd.kill()
            await trio.to_thread.run_sync(etcd.wait)


def start_program(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """What it says goes to ``log``."""
    with log.open("ab") as out:
        return subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
