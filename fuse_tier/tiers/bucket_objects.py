"""Objects of one bucket: the requests, each tried once.

Owns the HTTP session and google-cloud-storage's client, both made at the first request: importing them takes a
second and 50 MB. Metadata, listings and deletions go through the client; content goes through the same session,
one streamed request in each direction, because the client holds whole requests in memory.

Everything here blocks and may be called from any thread; setting ``stop`` ends a transfer at its next piece.
Invariant: every request may be repeated, since nothing is overwritten or deleted unless its generation is named.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from threading import Event, Lock
from typing import Any, Final
from urllib.parse import quote

from fuse_tier.deadlines import Deadline
from fuse_tier.errors import Damaged, NotFound, TierUnavailable
from fuse_tier.tiers.bucket_content import PIECE, Content, Interrupted, UploadBody, crc32c_text
from fuse_tier.tiers.bucket_errors import BucketErrors
from fuse_tier.tiers.bucket_layout import BucketPlace

_CLOUD_STORAGE: Final = "https://storage.googleapis.com"
_SCOPE: Final = "https://www.googleapis.com/auth/devstorage.read_write"
_CONNECT_SECONDS: Final = 10.0
_CALL: Final = (_CONNECT_SECONDS, Deadline.BUCKET_CALL)
_SLOWEST: Final = 32 << 20  # bytes a second, at which the service takes in an upload before it answers
_PAGE: Final = 1000  # the service's own limit
_FIELDS: Final = "items(name,size,crc32c,timeCreated,updated,generation,metageneration,metadata),nextPageToken"
_USED: Final = "fuse-tier-used"


@dataclass(frozen=True, slots=True)
class Stored:
    """An object as the bucket tells of it."""

    name: str  # without the prefix
    size: int
    crc32c: str  # as Cloud Storage writes it
    created: float  # seconds since 1970, by the service's clock
    used: float  # likewise: when it was written, or last relied upon
    generation: int
    metageneration: int


class Objects:
    """The objects below a bucket's prefix; their names are given and told without it."""

    def __init__(self, place: BucketPlace, endpoint: str | None, parallel: int) -> None:
        self._place = place
        self._endpoint = endpoint.rstrip("/") if endpoint else None
        self._parallel = parallel
        self._errors = BucketErrors(place, self._endpoint)
        self._opening = Lock()
        self._session: Any = None
        self._client: Any = None
        self._clock_ahead = 0.0  # seconds: the service's clock less ours

    def now(self) -> float:
        """Seconds since 1970 by the service's clock, of which its last answer told."""
        return time.time() + self._clock_ahead

    def close(self) -> None:
        """Closes the connections. A later request opens new ones."""
        with self._opening:
            session, self._session = self._session, None
        if session is not None:
            session.close()

    def put(
        self, name: str, content: Content, replacing: int, sent: Callable[[int], None], stop: Event
    ) -> Stored | None:
        """Makes an object of a content, whole or not at all; None if there is one already.

        ``replacing`` is the generation to overwrite, 0 for none; ``sent`` is told how far this request has come.
        """
        resource = {"name": self._place.prefix + name, "crc32c": crc32c_text(content.crc32c)}
        with self._errors.told("create", name):
            response = self._opened().post(
                f"{self._base}/upload/storage/v1/b/{self._place.bucket}/o",
                params={"uploadType": "multipart", "ifGenerationMatch": replacing},
                data=UploadBody(json.dumps(resource).encode(), content, sent, stop),
                headers={"Content-Type": UploadBody.TYPE},
                timeout=(Deadline.BUCKET_CALL, Deadline.BUCKET_CALL + content.size / _SLOWEST),
            )
            if response.status_code == HTTPStatus.PRECONDITION_FAILED:
                return None
            if response.status_code == HTTPStatus.NOT_FOUND:
                raise self._errors.no_bucket()
            self._errors.check(response)
            answer = response.json()
        now, generation = self.now(), int(answer["generation"])
        stored = Stored(name, int(answer["size"]), answer["crc32c"], now, now, generation, 1)
        if (stored.size, stored.crc32c) != (content.size, resource["crc32c"]):
            self.delete(stored)
            raise TierUnavailable(f"{self._place}/{name} arrived damaged, and was removed: it must be sent again")
        return stored

    def read(
        self, name: str, start: int, length: int | None, whole: int | None, stop: Event
    ) -> Generator[bytes, None, None]:
        """An object's bytes from ``start`` on, piece by piece; all there are without a ``length``.

        Raises NotFound, and Damaged when the object is not ``whole`` bytes long. To be closed.
        """
        headers = {"Accept-Encoding": "identity"}
        if start or length not in (None, whole):
            headers["Range"] = f"bytes={start}-{'' if length is None else start + length - 1}"
        url = f"{self._base}/download/storage/v1/b/{self._place.bucket}/o/{quote(self._place.prefix + name, safe='')}"
        with self._errors.told("get", name):
            response = self._opened().get(url, params={"alt": "media"}, headers=headers, stream=True, timeout=_CALL)
            with closing(response):
                if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                    raise Damaged(f"{self._place}/{name} is shorter than it should be")
                self._errors.check(response)
                found = _whole_size(response.headers)
                if whole is not None and found != whole:
                    raise Damaged(f"{self._place}/{name} is {found} bytes long, and should be {whole}")
                while piece := response.raw.read(PIECE, decode_content=False):
                    if stop.is_set():
                        raise Interrupted
                    yield piece

    def head(self, name: str) -> Stored | None:
        """What is known of an object; None if there is none."""
        with self._errors.told("get", name):
            found = self._bucket().get_blob(self._place.prefix + name, timeout=_CALL, retry=None)
            return None if found is None else self._stored(found)

    def listed(self, folder: str, stop: Event, at_most: int | None = None) -> Iterator[Stored]:
        """All objects whose names begin so, in order. Raises TierRefused if there is no such bucket."""
        try:
            with self._errors.told("list", folder):
                for found in self._bucket().list_blobs(
                    prefix=self._place.prefix + folder,
                    max_results=at_most,
                    page_size=_PAGE,
                    fields=_FIELDS,
                    timeout=_CALL,
                    retry=None,
                ):
                    if stop.is_set():
                        raise Interrupted
                    yield self._stored(found)
        except NotFound:
            raise self._errors.no_bucket() from None

    def delete(self, stored: Stored, only_unused: bool = False) -> bool:
        """Deletes an object; False if it is not there, is another one, or (``only_unused``) was relied upon since."""
        from google.api_core.exceptions import PreconditionFailed

        blob = self._bucket().blob(self._place.prefix + stored.name)
        try:
            with self._errors.told("delete", stored.name):
                blob.delete(
                    if_generation_match=stored.generation,
                    if_metageneration_match=stored.metageneration if only_unused else None,
                    timeout=_CALL,
                    retry=None,
                )
        except (NotFound, PreconditionFailed):
            return False
        return True

    def mark_used(self, stored: Stored) -> bool:
        """Makes an object young, so that nobody collects it; False if it is not there any more."""
        from google.api_core.exceptions import PreconditionFailed

        blob = self._bucket().blob(self._place.prefix + stored.name)
        blob.metadata = {_USED: datetime.fromtimestamp(self.now(), UTC).isoformat()}
        try:
            with self._errors.told("update", stored.name):
                blob.patch(if_generation_match=stored.generation, timeout=_CALL, retry=None)
        except (NotFound, PreconditionFailed):
            return False
        return True

    @property
    def _base(self) -> str:
        return self._endpoint or _CLOUD_STORAGE

    def _bucket(self) -> Any:
        self._opened()
        return self._client.bucket(self._place.bucket)

    def _opened(self) -> Any:
        with self._opening:
            if self._session is None:
                self._session = self._open()
            return self._session

    def _open(self) -> Any:
        import google.auth
        from google.auth.credentials import AnonymousCredentials
        from google.auth.transport.requests import AuthorizedSession
        from google.cloud import storage
        from requests.adapters import HTTPAdapter

        credentials: Any
        project: str | None = None
        if self._endpoint:
            credentials = AnonymousCredentials()  # type: ignore[no-untyped-call]
        else:
            credentials, project = google.auth.default(scopes=[_SCOPE])
            self._errors.principal = getattr(credentials, "service_account_email", None) or "the default account"
        session = AuthorizedSession(credentials)  # type: ignore[no-untyped-call]
        session.trust_env = self._endpoint is None  # no proxy stands before an emulator
        adapter = HTTPAdapter(pool_connections=1, pool_maxsize=self._parallel, pool_block=False)
        session.mount("https://", adapter)
        session.mount("http://", adapter)
        session.hooks["response"].append(self._note_time)
        self._client = storage.Client(
            project or "fuse-tier", credentials, _http=session, client_options={"api_endpoint": self._base}
        )
        # It would start threads that nobody owns, which ask for the bucket itself: that needs another permission.
        self._client._bucket_metadata_cache = None
        return session

    def _note_time(self, response: Any, **_: Any) -> None:
        if date := response.headers.get("Date"):
            self._clock_ahead = parsedate_to_datetime(date).timestamp() + 1 - time.time()  # it leaves out fractions

    def _stored(self, found: Any) -> Stored:
        used = found.updated.timestamp()
        if text := (found.metadata or {}).get(_USED):
            # Cloud Storage moves ``updated`` with each change of metadata; emulators do not.
            used = max(used, _seconds(text))
        return Stored(
            name=found.name.removeprefix(self._place.prefix),
            size=int(found.size),
            crc32c=found.crc32c,
            created=found.time_created.timestamp(),
            used=used,
            generation=int(found.generation),
            metageneration=int(found.metageneration or 1),
        )


def _whole_size(headers: Any) -> int | None:
    """How long the object is of which this is the answer, or a part."""
    text = headers.get("Content-Range", "").rpartition("/")[2] or headers.get("Content-Length", "")
    return int(text) if text.isdigit() else None


def _seconds(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:  # somebody else's word; the object's own time stands
        return 0.0
