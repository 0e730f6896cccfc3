"""Changes of objects at the API server: one call each, never repeated here; at most so many a second.

Objects go and come as JSON. What is applied server-side belongs to the program that does it, by its name.
https://kubernetes.io/docs/reference/using-api/server-side-apply/
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, cast

import trio
import urllib3
from kubernetes.client import ApiClient
from kubernetes.client.exceptions import ApiException

from controller.driver.names import MANAGER
from controller.watching import Throttled, refusal, told
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import TierRefused, TierUnavailable

_APPLY: Final = "application/apply-patch+yaml"  # JSON is YAML
_MERGE: Final = "application/merge-patch+json"
_JSON: Final = "application/json"
_REFUSALS_BORNE: Final = 4  # of a server that has too much to do, until whoever calls is told
_LONGEST_PAUSE_SECONDS: Final = 2.0  # of those that it asks for; a longer one is for whoever calls to decide

Object = Mapping[str, Any]


class Clash(TierUnavailable):
    """Somebody else changed the object meanwhile, or made it first: read it again."""


class Gone(TierRefused):
    """There is no such object, or no such kind of objects."""


class Writer:
    """Who writes. Any call raises TierUnavailable, TierRefused, Clash or Gone, with what the server said.

    A server that has too much to do is asked again after the pause that it names, a few times.
    ``answered`` is told of each answer: its method and status, 0 for none; from any thread.
    """

    def __init__(
        self,
        api: ApiClient,
        calls_per_second: float,
        answered: Callable[[str, int], None] = lambda _method, _status: None,
        manager: str = MANAGER,
    ) -> None:
        self._api = api
        self._answered = answered
        self._manager = manager
        self._pause = 1 / calls_per_second
        self._next = 0.0
        self._limiter = trio.CapacityLimiter(4)

    async def read(self, path: str, selector: str = "") -> Object:
        """The object at a path; of a collection those that have labels."""
        return await self._call("GET", path, query={"labelSelector": selector} if selector else {})

    async def apply(self, path: str, manifest: Object, *, dry_run: bool = False) -> Object:
        """Makes or changes an object so that it says what the manifest does; gives what it is then."""
        query = {"fieldManager": self._manager, "force": "true"} | ({"dryRun": "All"} if dry_run else {})
        return await self._call("PATCH", path, manifest, query, _APPLY)

    async def merge(self, path: str, changes: Object) -> Object:
        """Changes fields of an object; with ``metadata.resourceVersion`` only if it is still that one."""
        return await self._call("PATCH", path, changes, {"fieldManager": self._manager}, _MERGE)

    async def create(self, path: str, manifest: Object) -> Object:
        """Makes an object in a collection."""
        return await self._call("POST", path, manifest, {"fieldManager": self._manager})

    async def replace(self, path: str, manifest: Object) -> Object:
        """Puts an object in place of the one of its ``metadata.resourceVersion``."""
        return await self._call("PUT", path, manifest, {"fieldManager": self._manager})

    async def delete(self, path: str, propagation: str = "Background", uid: str = "") -> None:
        """Has an object removed, and what it owns before it (``Foreground``) or after.

        With ``uid`` only that very one: Clash says that it is another.
        """
        only = {"preconditions": {"uid": uid}} if uid else {}
        await self._call("DELETE", path, {"propagationPolicy": propagation, **only})

    async def _call(
        self, method: str, path: str, body: Object | None = None, query: Mapping[str, str] | None = None,
        content_type: str = _JSON,
    ) -> Object:  # fmt: skip
        send = partial(self._send, method, path, body, query or {}, content_type)
        refusals = 0
        while True:
            await self._in_turn()
            try:
                return cast(Object, await trio.to_thread.run_sync(send, limiter=self._limiter))
            except Throttled as error:
                refusals += 1
                if refusals == _REFUSALS_BORNE or error.pause > _LONGEST_PAUSE_SECONDS:
                    raise
                # The server did nothing of it, and means all our calls.
                self._next = max(self._next, trio.current_time() + error.pause)

    async def _in_turn(self) -> None:
        now = trio.current_time()
        begin = max(now, self._next)
        self._next = begin + self._pause
        await trio.sleep_until(begin)

    def _send(
        self, method: str, path: str, body: Object | None, query: Mapping[str, str], content_type: str
    ) -> Any:  # fmt: skip
        """In a thread."""
        try:
            response = self._api.call_api(
                path,
                method,
                query_params=list(query.items()),
                header_params={"Accept": _JSON, "Content-Type": content_type},
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _return_http_data_only=True,
                _request_timeout=(Deadline.API_CALL, Deadline.API_CALL),
            )
            self._answered(method, response.status)
            return json.loads(response.data)
        except ApiException as error:
            self._answered(method, error.status)
            if error.status == 404:
                raise Gone(f"{path}: {told(error)}") from error
            if error.status == 409:
                raise Clash(f"{path}: {told(error)}") from error
            raise refusal(path, error) from error
        except (urllib3.exceptions.HTTPError, ValueError, OSError) as error:
            self._answered(method, 0)
            raise TierUnavailable(f"{path}: {error}") from error
