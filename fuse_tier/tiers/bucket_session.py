"""The connection to a bucket's service: who we are to it, over what, and what time it has.

Owns the HTTP session and google-cloud-storage's client, both made at the first use: importing them takes a second
and 50 MB. Credentials renew themselves, before they expire and when an answer says that they have. Any thread may
use it.
"""

from __future__ import annotations

import time
from contextlib import suppress
from email.utils import parsedate_to_datetime
from threading import Lock
from typing import Any, Final

from fuse_tier import metrics
from fuse_tier.errors import TierRefused
from fuse_tier.tiers.bucket_errors import BucketErrors
from fuse_tier.tiers.bucket_layout import BucketPlace

_CLOUD_STORAGE: Final = "https://storage.googleapis.com"
_CONNECTIONS: Final = 8  # kept for each request at a time: those of requests that nobody waits for come back, too
_SCOPE: Final = "https://www.googleapis.com/auth/devstorage.read_write"


class Session:
    """``endpoint`` is another one than Cloud Storage's. ``key_file`` is that of an account.

    Without a key file there are none at another endpoint, which is an emulator's, and else the default credentials.
    """

    def __init__(self, place: BucketPlace, endpoint: str | None, key_file: str | None, parallel: int) -> None:
        self._place = place
        self._endpoint = endpoint.rstrip("/") if endpoint else None
        self._key_file = key_file
        self._parallel = parallel
        self._opening = Lock()
        self._http: Any = None
        self._client: Any = None
        self._clock_ahead = 0.0  # seconds: the service's clock less ours
        self.errors = BucketErrors(place, self._endpoint)
        self.base = self._endpoint or _CLOUD_STORAGE
        self.is_cloud_storage = self._endpoint is None

    def now(self) -> float:
        """Seconds since 1970 by the service's clock, of which its last answer told."""
        return time.time() + self._clock_ahead

    def http(self) -> Any:
        """The session. Raises what google-auth raises: to be called within ``errors.told``."""
        with self._opening:
            if self._http is None:
                self._http = self._open()
            return self._http

    def bucket(self) -> Any:
        """The bucket as the client has it. Raises as ``http`` does."""
        self.http()
        return self._client.bucket(self._place.bucket)

    def renew_credentials(self) -> None:
        """For an answer within a batch that says that they have expired: of others the session sees it itself.

        Raises what google-auth raises: to be called within ``errors.told``.
        """
        import requests
        from google.auth.transport.requests import Request

        credentials = self.http().credentials
        with requests.Session() as session:  # one that is closed; Request alone would make one that nobody closes
            credentials.refresh(Request(session))

    def close(self) -> None:
        """Closes the connections. A later request opens new ones."""
        with self._opening:
            http, self._http = self._http, None
        if http is not None:
            http.close()

    def _open(self) -> Any:
        from google.auth.transport.requests import AuthorizedSession
        from google.cloud import storage
        from requests.adapters import HTTPAdapter

        credentials, project = self._credentials()
        session = AuthorizedSession(credentials)  # type: ignore[no-untyped-call]
        session.trust_env = self._endpoint is None  # no proxy stands before an emulator
        adapter = HTTPAdapter(pool_connections=1, pool_maxsize=_CONNECTIONS * self._parallel)
        session.mount("https://", adapter)
        session.mount("http://", adapter)
        session.hooks["response"].append(self._note)
        self._client = storage.Client(
            project or "fuse-tier", credentials, _http=session, client_options={"api_endpoint": self.base}
        )
        # It would start threads that nobody owns, which ask for the bucket itself: that needs another permission.
        self._client._bucket_metadata_cache = None
        return session

    def _credentials(self) -> tuple[Any, str | None]:
        import google.auth
        from google.auth.credentials import AnonymousCredentials

        if self._key_file is not None:
            credentials = _of_key_file(self._key_file)
            project = credentials.project_id
        elif self._endpoint is not None:
            return AnonymousCredentials(), None  # type: ignore[no-untyped-call]
        else:
            credentials, project = google.auth.default(scopes=[_SCOPE])
        # Those of a metadata server know their account once they were renewed, and say "default" until then.
        self.errors.account = lambda: getattr(credentials, "service_account_email", None)
        return credentials, project

    def _note(self, response: Any, **_: Any) -> None:
        metrics.bucket_answered(response.request.method, response.status_code)
        with suppress(ValueError):  # something stands between the service and us that has no clock
            date = parsedate_to_datetime(response.headers.get("Date", ""))
            self._clock_ahead = date.timestamp() + 1 - time.time()  # it leaves out fractions


def _of_key_file(path: str) -> Any:
    from google.oauth2.service_account import Credentials

    read: Any = Credentials.from_service_account_file
    try:
        return read(path, scopes=[_SCOPE])
    except (OSError, ValueError, KeyError) as error:
        cause = error.strerror if isinstance(error, OSError) else str(error)
        raise TierRefused(f"`bucket.credentials`, {path}, is no key file of a service account: {cause}") from error
