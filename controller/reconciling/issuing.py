"""Keeps the Secrets with certificates as ``authorities.py`` and ``certificates.py`` say that they should be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final, TypeVar

import structlog
import trio

from controller.driver import names
from controller.driver.configuration import Configuration
from controller.driver.containers import Settings
from controller.driver.manifests import owned_metadata
from controller.reconciling import counts
from controller.reconciling.authorities import (
    SPREAD,
    Authority,
    Files,
    Held,
    all_trust,
    given_authority,
    new_authority,
    own_authority,
    renewal,
    trusted_by_all,
)
from controller.reconciling.certificates import (
    CONTROLLER_NAME,
    RANKS_NAME,
    Signing,
    decoded,
    encoded,
    first_end,
    nodes_files,
    own_files,
    trouble_of,
    utc_now,
)
from controller.reconciling.selection import runs_on
from controller.reconciling.world import World
from controller.writing import Writer
from fuse_tier.errors import ConfigError, TierRefused

log = structlog.get_logger(__name__)

AUTHORITY: Final = "fuse-tier-authority"
RANKS: Final = "high-scale-checkpointing-ranks-certificates"
_SECRET: Final = {"apiVersion": "v1", "kind": "Secret", "type": "Opaque"}
_HOUR: Final = timedelta(hours=1)

Found = TypeVar("Found")


class TlsSecretUnusable(ConfigError):
    """What ``tlsSecretName`` names is not there, or is no authority's; the text says what to do."""


class Issuer:
    """Signs for the whole cluster. Its calls raise as a Writer's do."""

    def __init__(self, writer: Writer, world: World, settings: Settings) -> None:
        self._writer = writer
        self._world = world
        self._settings = settings
        self._collection = f"/api/v1/namespaces/{settings.namespace}/secrets"
        self._limiter = trio.CapacityLimiter(1)
        self._issuing = trio.Lock()  # both calls may find that there is no authority
        self._decoded: dict[str, tuple[str, Held]] = {}  # with the version that it was decoded from

    async def serve_ranks(self) -> None:
        """Sees that the ranks server has its certificate."""
        async with self._issuing:
            signing = self._signing(await self._authority_of_ranks())
            files = await self._thread(partial(own_files, signing, RANKS_NAME, self._held(RANKS).files))
            await self._put({"name": RANKS, "namespace": self._settings.namespace}, files)

    async def client_files(self, present: Files) -> Files:
        """What the controller shows the ranks server, kept where it is still good: in memory, in no Secret."""
        async with self._issuing:
            signing = self._signing(await self._authority_of_ranks())
            return await self._thread(partial(own_files, signing, CONTROLLER_NAME, present))

    async def serve_nodes(self, configuration: Configuration) -> tuple[str, ...]:
        """Sees that each of its nodes has one; says of which none can be made, and why. Raises TlsSecretUnusable."""
        async with self._issuing:
            given = _given(configuration)
            signing = self._signing(self._given_authority(given) if given else await self._own())
            secrets = names.certificates_names(configuration.uid)
            shards: list[list[str]] = [[] for _ in secrets]
            for node in self._world.nodes.values():
                if runs_on(configuration, node):
                    shards[names.shard_of(node.name)].append(node.name)
            for name, nodes in zip(secrets, shards, strict=True):
                files = await self._thread(partial(nodes_files, signing, sorted(nodes), self._held(name).files))
                await self._put(owned_metadata(configuration, name, self._settings), files)
        return tuple(trouble for nodes in shards for node in nodes if (trouble := trouble_of(node)) is not None)

    def seconds_until_due(self) -> float:
        """Until what is in Secrets has grown old, or what was changed is known to all."""
        now = utc_now()
        waits = [SPREAD - (now - when) for _, held in self._all() for when in (held.trust_changed, held.replaced)]
        return min([wait for wait in waits if wait > timedelta()], default=_HOUR).total_seconds()

    def tell_ends(self) -> None:
        """Has it counted when certificates end."""
        for name, held in self._all():
            if (end := first_end(held)) is not None:
                counts.certificate_ends(name, end)
        for name in self._decoded.keys() - self._world.secrets.keys():
            del self._decoded[name]
            counts.certificate_ends(name, None)

    async def _authority_of_ranks(self) -> Authority:
        """Ours, unless everybody uses Secrets of somebody else's: then the first one's that can be used."""
        users = sorted(self._users(), key=lambda one: one.name)
        if users and all(map(_given, users)):
            for one in users:
                with suppress(TlsSecretUnusable):  # told where that configuration itself is looked at
                    return self._given_authority(_given(one))
        return await self._own()

    def _given_authority(self, name: str) -> Authority:
        if name not in self._world.secrets:
            raise TlsSecretUnusable(
                f"the Secret {name} of the namespace {self._settings.namespace}, which tlsSecretName names, is "
                "missing: make it, or leave tlsSecretName out"
            )
        try:
            return given_authority(self._held(name).files, name)
        except ConfigError as error:
            raise TlsSecretUnusable(str(error)) from error

    async def _own(self) -> Authority:
        files = self._held(AUTHORITY).files
        if AUTHORITY in self._world.secrets:
            try:
                authority = own_authority(files, AUTHORITY)
            except ConfigError as error:
                raise TierRefused(str(error)) from error
            if utc_now() < renewal(authority.signer):
                return authority
        made = await self._thread(new_authority)
        body = {
            **_SECRET,
            "metadata": {"name": AUTHORITY, "namespace": self._settings.namespace},
            "data": encoded(made),
        }
        self._world.see_secret(await self._writer.apply(f"{self._collection}/{AUTHORITY}", body))
        log.info("authority.made", secret=AUTHORITY, renewed=bool(files))
        return own_authority(made, AUTHORITY)

    def _signing(self, authority: Authority) -> Signing:
        held, now = [held for _, held in self._all()], utc_now()
        trusted = trusted_by_all([authority, *self._in_use()], held, now)
        return Signing(authority, trusted, all_trust(authority, held, now), now)

    def _in_use(self) -> Iterator[Authority]:
        """One that cannot be read is left to what Secrets say already, and told where its user is looked at."""
        for one in self._users():
            with suppress(ConfigError):
                given = _given(one)
                yield self._given_authority(given) if given else own_authority(self._held(AUTHORITY).files, AUTHORITY)

    def _users(self) -> Iterator[Configuration]:
        return (one for one in self._world.configurations.values() if not one.is_deleted)

    def _all(self) -> Iterator[tuple[str, Held]]:
        """Every Secret that we keep certificates in."""
        for name, found in self._world.secrets.items():
            if name == RANKS or names.UID_LABEL in (found["metadata"].get("labels") or {}):
                yield name, self._held(name)

    async def _put(self, metadata: dict[str, Any], files: Files) -> None:
        name = metadata["name"]
        before = self._held(name)
        if before.files == files:
            return
        held = before.changed_to(files, utc_now())
        told = {
            names.TRUST_CHANGED_ANNOTATION: held.trust_changed.isoformat(),
            names.REPLACED_ANNOTATION: held.replaced.isoformat(),
        }
        metadata = {**metadata, "annotations": {**metadata.get("annotations", {}), **told}}
        body = {**_SECRET, "metadata": metadata, "data": encoded(files)}
        self._world.see_secret(await self._writer.apply(f"{self._collection}/{name}", body))
        log.info("certificates.issued", secret=name)

    def _held(self, name: str) -> Held:
        found = self._world.secrets.get(name)
        if found is None:
            return Held({})
        version, held = self._decoded.get(name, ("", Held({})))
        if version != found["metadata"]["resourceVersion"]:
            held = _read(found)
            self._decoded[name] = (found["metadata"]["resourceVersion"], held)
        return held

    async def _thread(self, work: Callable[[], Found]) -> Found:
        return await trio.to_thread.run_sync(work, limiter=self._limiter)


def _given(configuration: Configuration) -> str:
    return str(configuration.spec.get("tlsSecretName") or "")


def _read(secret: Mapping[str, Any]) -> Held:
    told = secret["metadata"].get("annotations") or {}
    try:
        when = [
            datetime.fromisoformat(told[name]).astimezone(UTC)
            for name in (names.TRUST_CHANGED_ANNOTATION, names.REPLACED_ANNOTATION)
        ]
    except (KeyError, ValueError, OverflowError):
        return Held(decoded(secret))
    return Held(decoded(secret), *when)
