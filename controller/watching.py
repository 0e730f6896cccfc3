"""Collections of the API server's, followed: listed once, then watched, for as long as somebody wants to know.

The client's own watch makes an object of each line, with all its defaults, which costs more than all else together
where there are ten thousand pods. So what comes is JSON as the server writes it, and stays that.
The protocol: https://kubernetes.io/docs/reference/using-api/api-concepts/ (watches, bookmarks, 410 Gone, chunks).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final, Protocol, cast

import structlog
import trio
import urllib3
from kubernetes.client import ApiClient, Configuration
from kubernetes.client.exceptions import ApiException
from kubernetes.config import ConfigException, load_incluster_config, load_kube_config

from fuse_tier.deadlines import Deadline
from fuse_tier.errors import ConfigError, TierRefused, TierUnavailable
from fuse_tier.threads import run_interruptible

log = structlog.get_logger(__name__)

_CHUNK: Final = 500  # objects of one answer
_WATCH_SECONDS: Final = 240  # then the server ends a watch, and another begins where it ended
_FIRST_PAUSE_SECONDS: Final = 0.2
_LONGEST_PAUSE_SECONDS: Final = 30.0
_GONE: Final = 410
_TOO_MANY: Final = 429
_MISSING: Final = 404

Object = Mapping[str, Any]


class Forbidden(TierRefused):
    """Whoever we are for the server may not do that."""


class Lacking(TierRefused):
    """The server has no such thing."""


class Throttled(TierUnavailable):
    """The server has too much to do (429), and is to be left alone for ``pause`` seconds."""

    def __init__(self, said: str, pause: float) -> None:
        super().__init__(said)
        self.pause = pause


class Follower(Protocol):
    """Who wants to know. Neither call may block."""

    def seen(self, found: Object) -> None:
        """An object is there, or has changed."""
        ...

    def lost(self, key: str) -> None:
        """An object that was seen is gone: its uid."""
        ...


class Collection:
    """One collection, such as ``/api/v1/pods``, with the selectors that the server is to apply."""

    def __init__(
        self,
        api: ApiClient,
        path: str,
        follower: Follower,
        selectors: Mapping[str, str] | None = None,
        longest_pause: float = _LONGEST_PAUSE_SECONDS,
        refused: Callable[[str, str], None] = lambda _path, _reason: None,
        *,
        may_lack: bool = False,
    ) -> None:
        """``longest_pause`` is in seconds, between two tries at a server that refuses or does not answer.

        ``refused`` is told of the path and why the server says no, and without a why when it does not any more.
        ``may_lack``: that there is no such kind of objects is no trouble.
        """
        self._may_lack = may_lack
        self._refused = refused
        self._api = api
        self._path = path
        self._follower = follower
        self._longest_pause = longest_pause
        self._selectors = dict(selectors or {})
        self._limiter = trio.CapacityLimiter(1)
        self._keys: set[str] = set()
        self._version = ""
        self._trouble = ""

    async def follow(
        self, *, lacking_is_known: bool = False, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Runs until cancelled; started when all that there is has been told.

        With ``lacking_is_known`` that is also when the server says that there is no such kind of objects.
        A server that does not answer, or refuses, is asked again, ever more seldom; that is told once.
        """
        pause = _FIRST_PAUSE_SECONDS
        started = False
        while True:
            try:
                if not self._version:
                    await self._list()
                if not started:
                    started = True
                    task_status.started()
                self._recovered()
                pause = _FIRST_PAUSE_SECONDS
                await self._watch()
                await trio.sleep(_FIRST_PAUSE_SECONDS)  # a server that ends each watch at once is not flooded
            except (TierUnavailable, TierRefused) as error:
                self._tell_trouble(error)
                if lacking_is_known and isinstance(error, Lacking) and not started:
                    started = True
                    task_status.started()
                least = error.pause if isinstance(error, Throttled) else 0.0
                await trio.sleep(least + pause * random.uniform(0.5, 1.0))  # noqa: S311 - so that not all come at once
                pause = min(2 * pause, self._longest_pause)

    async def _list(self) -> None:
        keys: set[str] = set()
        following = ""
        while True:
            query = {**self._selectors, "limit": str(_CHUNK), "continue": following}
            body = await self._thread(partial(self._read_all, query))
            for found in body.get("items") or []:
                keys.add(found["metadata"]["uid"])
                self._follower.seen(found)
            following = body["metadata"].get("continue") or ""
            if not following:
                break
        for key in self._keys - keys:
            self._follower.lost(key)
        self._keys = keys
        self._version = body["metadata"]["resourceVersion"]

    async def _watch(self) -> None:
        """Until the server ends it. Raises TierUnavailable, TierRefused."""
        query = {
            **self._selectors,
            "watch": "1",
            "allowWatchBookmarks": "1",
            "resourceVersion": self._version,
            "timeoutSeconds": str(_WATCH_SECONDS),
        }
        response = await self._thread(partial(self._get, query, read_seconds=_WATCH_SECONDS + Deadline.API_CALL))

        def interrupt() -> None:
            with suppress(ValueError, RuntimeError, OSError):  # it has ended by itself
                response.shutdown()

        try:
            await run_interruptible(partial(self._read_events, response), interrupt, self._limiter)
        finally:
            response.close()

    def _read_events(self, response: urllib3.BaseHTTPResponse) -> None:
        """In a thread."""
        pending = b""
        try:
            for part in response.stream(amt=None, decode_content=False):
                *lines, pending = (pending + part).split(b"\n")
                for line in lines:
                    trio.from_thread.run_sync(self._take, json.loads(line))
        except (urllib3.exceptions.HTTPError, ValueError, OSError) as error:
            raise TierUnavailable(f"{self._path}: the watch broke: {error}") from error

    def _take(self, event: Object) -> None:
        kind, found = event["type"], event["object"]
        if kind == "ERROR":
            self._version = ""  # listed again; most often because what it was no longer keeps
            if found.get("code") != _GONE:
                log.info("api.watch_ended", path=self._path, reason=str(found.get("message")))
            return
        self._version = found["metadata"]["resourceVersion"]
        if kind == "BOOKMARK":
            return
        key = found["metadata"]["uid"]
        if kind == "DELETED":
            self._keys.discard(key)
            self._follower.lost(key)
        else:
            self._keys.add(key)
            self._follower.seen(found)

    def _read_all(self, query: Mapping[str, str]) -> Any:
        response = self._get(query, read_seconds=Deadline.API_CALL)
        try:
            return json.loads(response.data)
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            raise TierUnavailable(f"{self._path}: the answer broke off: {error}") from error

    def _get(self, query: Mapping[str, str], *, read_seconds: float) -> urllib3.BaseHTTPResponse:
        """In a thread. Raises TierUnavailable, TierRefused."""
        try:
            response = self._api.call_api(
                self._path,
                "GET",
                query_params=[(name, value) for name, value in query.items() if value],
                header_params={"Accept": "application/json"},
                auth_settings=["BearerToken"],
                _preload_content=False,
                _return_http_data_only=True,
                _request_timeout=(Deadline.API_CALL, read_seconds),
            )
        except ApiException as error:
            if error.status == _GONE:
                self._version = ""
            raise refusal(self._path, error) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise TierUnavailable(f"{self._path}: {error}") from error
        return cast(urllib3.BaseHTTPResponse, response)

    async def _thread(self, work: Any) -> Any:
        return await trio.to_thread.run_sync(work, limiter=self._limiter)

    def _tell_trouble(self, error: Exception) -> None:
        if self._trouble != type(error).__name__:
            self._trouble = type(error).__name__
            if self._may_lack and isinstance(error, Lacking):
                log.info("api.kind_lacking", path=self._path, reason=str(error))
                return
            log.warning("api.unavailable", path=self._path, reason=str(error), remedy="it is asked again")
            if isinstance(error, TierRefused):
                self._refused(self._path, str(error))

    def _recovered(self) -> None:
        if self._trouble:
            self._trouble = ""
            self._refused(self._path, "")
            log.info("api.back", path=self._path)


def connect(kubeconfig: str = "", agent: str = "fuse-tier") -> ApiClient:
    """A client of the API server that a file names, or of the one whose pod this is; ``agent`` is what it is called.

    Raises ConfigError when there is no such file, or this is no pod.
    """
    configuration = Configuration()
    configuration.retries = False  # what calls decides when to call again, and does not sleep in a thread
    try:
        if kubeconfig:
            load_kube_config(config_file=kubeconfig, client_configuration=configuration)
        else:
            load_incluster_config(client_configuration=configuration)
        client = ApiClient(configuration)
        client.user_agent = agent
        return client
    except (ConfigException, OSError) as error:
        raise ConfigError(f"no API server is known: {error}; name a kubeconfig with --kubeconfig-path") from error


def refusal(path: str, error: ApiException) -> TierUnavailable | TierRefused:
    """What an answer of the server's means: that it may be asked again, or that it says no."""
    said = f"{path}: {told(error)}"
    if error.status == _TOO_MANY:
        after = str((error.headers or {}).get("Retry-After", ""))  # or a date, which this server never sends
        return Throttled(said, min(float(after), _LONGEST_PAUSE_SECONDS) if after.isdecimal() else 0.0)
    if error.status == _GONE or not 400 <= error.status < 500:
        return TierUnavailable(said)
    if error.status == _MISSING:
        return Lacking(said)
    return Forbidden(said) if error.status in (401, 403) else TierRefused(said)


def told(error: ApiException) -> str:
    """What the server says of an error."""
    try:
        return str(json.loads(error.body)["message"])
    except (KeyError, TypeError, ValueError):
        return f"{error.status} {error.reason}"
