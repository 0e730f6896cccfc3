"""Objects of one bucket: the requests, each tried once.

Metadata and listings go through google-cloud-storage's client; content goes through the same session, one streamed
request in each direction, because the client holds whole requests in memory. What is asked of many objects goes in
batches: see ``bucket_many.py``.

All of it blocks, and may be called from any thread; setting ``stop`` ends a transfer at its next piece. Every request
may be repeated: nothing is overwritten or deleted unless its generation is named.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from threading import Event
from typing import Any, Final
from urllib.parse import quote, urlencode

from fuse_tier import failpoints
from fuse_tier.blobs import Blob
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import Damaged, NotFound, TierRefused, TierUnavailable
from fuse_tier.tiers.bucket_batch import Answer, Call
from fuse_tier.tiers.bucket_calls import CONNECT_SECONDS, make_calls
from fuse_tier.tiers.bucket_checksums import crc32c_in, crc32c_text
from fuse_tier.tiers.bucket_content import Content, Interrupted, Stop, UploadBody
from fuse_tier.tiers.bucket_layout import PACKS_METADATA, BucketPlace, packs_in
from fuse_tier.tiers.bucket_pace import Pace
from fuse_tier.tiers.bucket_reading import Reading, pieces_of, shut_down, whole_size
from fuse_tier.tiers.bucket_session import Session

_CALL: Final = (CONNECT_SECONDS, Deadline.BUCKET_STALL)
_SLOWEST: Final = 32 << 20  # bytes a second, at which the service takes in an upload before it answers
_LONGEST_NAME: Final = 1024  # bytes: cloud.google.com/storage/docs/objects#naming
_PAGE: Final = 1000  # the service's own limit
_OF_ONE: Final = "name,size,crc32c,timeCreated,updated,generation,metageneration,metadata"
_OF_MANY: Final = f"items({_OF_ONE}),nextPageToken"
_USED: Final = "fuse-tier-used"
_CHECK: Final = "fuse-tier-check"
_PENDING: Final = "pending"


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
    packs: tuple[Blob, ...] = ()  # of a manifest: those in which its small contents are, as far as it says
    is_checked: bool = True  # nobody may rely on what is not: see bucket_checks.py


def is_copy(stored: Stored, content: Content) -> bool:
    """Whether an object has a content, which has been read, byte for byte."""
    return content.crc32c is not None and (stored.size, stored.crc32c) == (content.size, crc32c_text(content.crc32c))


class Objects:
    """The objects below a bucket's prefix; their names are given and told without it."""

    def __init__(self, place: BucketPlace, session: Session, pace: Pace) -> None:
        self._place = place
        self._session = session
        self._pace = pace
        self.errors = session.errors

    @property
    def are_compared(self) -> bool:
        """Whether the service compares what arrives with the checksum that it is told ahead. Emulators do not."""
        return self._session.is_cloud_storage

    def now(self) -> float:
        """Seconds since 1970 by the service's clock, of which its last answer told."""
        return self._session.now()

    def put(
        self,
        name: str,
        content: Content,
        replacing: int,
        sent: Callable[[int], None],
        stop: Event,
        metadata: Mapping[str, str] | None = None,
        *,
        is_checked: bool = True,
    ) -> Stored | None:
        """Makes an object of a content, whole or not at all; None if there is one already.

        ``replacing`` is the generation to overwrite, 0 for none; ``sent`` is told how far this request has come. One
        that is not ``is_checked`` says of itself that nobody has compared yet what arrived.
        """
        self._check_length(name)
        resource: dict[str, Any] = {"name": self._place.prefix + name}
        metadata = dict(metadata or {}) | ({} if is_checked else {_CHECK: _PENDING})
        if metadata:
            resource["metadata"] = metadata
        if content.crc32c is not None:
            resource["crc32c"] = crc32c_text(content.crc32c)
        body = UploadBody(json.dumps(resource).encode(), content, sent, self._pace.wait, stop)
        with self.errors.told("create", name), closing(body):
            response = self._session.http().post(
                f"{self._session.base}/upload/storage/v1/b/{self._place.bucket}/o",
                params={"uploadType": "multipart", "ifGenerationMatch": replacing},
                data=body,
                headers={"Content-Type": UploadBody.TYPE},
                timeout=(Deadline.BUCKET_STALL, Deadline.BUCKET_CALL + content.size / _SLOWEST),
            )
            if response.status_code == HTTPStatus.PRECONDITION_FAILED:
                return None
            if response.status_code == HTTPStatus.NOT_FOUND:
                raise self.errors.no_bucket()
            self.errors.check(response)
            answered = self._stored(response.json())
        stored = replace(answered, name=name, created=self.now(), used=self.now(), is_checked=is_checked)
        failpoints.reached("bucket.answered")
        if not is_copy(stored, content):
            self.delete(stored)
            raise TierUnavailable(f"{self._place}/{name} arrived damaged, and was removed: it must be sent again")
        return stored

    def _check_length(self, name: str) -> None:
        # Emulators take longer ones, and the service would say no more than that the name is not valid.
        if len((self._place.prefix + name).encode()) > _LONGEST_NAME:
            raise TierRefused(
                f"{self._place}/{name} is longer than the {_LONGEST_NAME} bytes that an object's name may have: "
                "choose a shorter prefix in `bucket.url`, or shorter names for the job"
            )

    @contextmanager
    def read(
        self,
        name: str,
        start: int,
        length: int | None,
        whole: int | None,
        stop: Stop,
        stall_seconds: float = Deadline.BUCKET_STALL,
    ) -> Iterator[Reading]:
        """An object's bytes from ``start`` on, piece by piece; all there are without a ``length``. Setting ``stop``
        ends the wait for them, and so do ``stall_seconds`` without any.

        Raises NotFound, and Damaged when the object is not ``whole`` bytes long.
        """
        headers = {"Accept-Encoding": "identity"}
        if start or length not in (None, whole):
            headers["Range"] = f"bytes={start}-{'' if length is None else start + length - 1}"
        url = f"{self._session.base}/download{self.path(name)}"
        with self.errors.told("get", name):
            response = self._session.http().get(
                url, params={"alt": "media"}, headers=headers, stream=True, timeout=(CONNECT_SECONDS, stall_seconds)
            )
            with closing(response):
                if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                    raise Damaged(f"{self._place}/{name} is shorter than it should be")
                self.errors.check(response)
                found = whole_size(response.headers)
                if whole is not None and found != whole:
                    raise Damaged(f"{self._place}/{name} is {found} bytes long, and should be {whole}")
                stop.ending = partial(shut_down, response.raw)
                try:
                    yield Reading(crc32c_in(response.headers.get("x-goog-hash", "")), pieces_of(response.raw, stop))
                finally:
                    stop.ending = None

    def head(self, name: str) -> Stored | None:
        """What is known of an object; None if there is none."""
        with self.errors.told("get", name):
            found = self._session.bucket().get_blob(self._place.prefix + name, timeout=_CALL, retry=None)
            return None if found is None else self._stored(found._properties)

    def listed(self, folder: str, stop: Event, at_most: int | None = None, first: str = "") -> Iterator[Stored]:
        """All objects whose names begin so, in order, or so many, beginning with the name ``first``. Raises
        TierRefused if there is no such bucket.
        """
        try:
            with self.errors.told("list", folder):
                for found in self._session.bucket().list_blobs(
                    prefix=self._place.prefix + folder,
                    max_results=at_most,
                    start_offset=self._place.prefix + first if first else None,
                    page_size=_PAGE,
                    fields=_OF_MANY,
                    timeout=_CALL,
                    retry=None,
                ):
                    if stop.is_set():
                        raise Interrupted
                    yield self._stored(found._properties)
        except NotFound:
            raise self.errors.no_bucket() from None

    def delete(self, stored: Stored) -> bool:
        """Deletes an object; False if it is not there, or is another one."""
        from google.api_core.exceptions import PreconditionFailed

        try:
            with self.errors.told("delete", stored.name):
                blob = self._session.bucket().blob(self._place.prefix + stored.name)
                blob.delete(if_generation_match=stored.generation, timeout=_CALL, retry=None)
        except (NotFound, PreconditionFailed):
            return False
        return True

    def compose(self, name: str, sources: Sequence[Stored], stop: Event) -> Stored | None:
        """Makes an object of up to 32 others, one after another; None if there is one already. Raises NotFound when
        one of them has gone.
        """
        if stop.is_set():
            raise Interrupted
        parts = [{"name": self._place.prefix + one.name, "generation": str(one.generation)} for one in sources]
        with self.errors.told("create", name):
            response = self._session.http().post(
                f"{self._session.base}{self.path(name)}/compose",
                params={"ifGenerationMatch": 0},
                json={"sourceObjects": parts, "destination": {"contentType": "application/octet-stream"}},
                timeout=_CALL,
            )
            if response.status_code == HTTPStatus.PRECONDITION_FAILED:
                return None
            self.errors.check(response)
            return self._stored(response.json())

    def call(self, calls: Sequence[Call]) -> list[Answer]:
        """Makes up to ``bucket_batch.AT_MOST`` calls in one request; an answer for each, in their order."""
        return make_calls(self._session, calls)

    def head_call(self, name: str) -> Call:
        """Asks what is known of an object; ``stored_in`` reads the answer."""
        return Call("GET", f"{self.path(name)}?{urlencode({'fields': _OF_ONE})}")

    def use_call(self, stored: Stored) -> Call:
        """Makes an object young, so that nobody collects it."""
        used = datetime.fromtimestamp(self.now(), UTC).isoformat()
        match = urlencode({"ifGenerationMatch": stored.generation})
        return Call("PATCH", f"{self.path(stored.name)}?{match}", {"metadata": {_USED: used}})

    def checked_call(self, stored: Stored) -> Call:
        """Says of an object that what arrived was compared."""
        match = urlencode({"ifGenerationMatch": stored.generation})
        return Call("PATCH", f"{self.path(stored.name)}?{match}", {"metadata": {_CHECK: stored.crc32c}})

    def delete_call(self, name: str, generation: int | None = None, metageneration: int | None = None) -> Call:
        """Deletes an object: that one, when a generation is given; unless it was relied upon, with the other."""
        matches = {"ifGenerationMatch": generation, "ifMetagenerationMatch": metageneration}
        given = urlencode({key: value for key, value in matches.items() if value is not None})
        return Call("DELETE", f"{self.path(name)}?{given}" if given else self.path(name))

    def stored_in(self, answer: Answer) -> Stored:
        """The object that an answer describes."""
        return self._stored(answer.json())

    def path(self, name: str) -> str:
        """The path of an object in requests of the JSON API."""
        return f"/storage/v1/b/{self._place.bucket}/o/{quote(self._place.prefix + name, safe='')}"

    def _stored(self, resource: Mapping[str, Any]) -> Stored:
        try:
            return self._read_resource(resource)
        except (KeyError, ValueError, TypeError) as error:
            raise TierUnavailable(f"an answer about an object in {self._place} cannot be read: {error!r}") from error

    def _read_resource(self, resource: Mapping[str, Any]) -> Stored:
        created = _seconds(resource["timeCreated"])
        used = _seconds(resource.get("updated", resource["timeCreated"]))
        metadata = resource.get("metadata") or {}
        if text := metadata.get(_USED):
            # Cloud Storage moves ``updated`` with each change of metadata; emulators do not.
            used = max(used, _seconds(text))
        return Stored(
            name=str(resource["name"]).removeprefix(self._place.prefix),
            size=int(resource.get("size", 0)),
            crc32c=str(resource.get("crc32c", "")),
            created=created,
            used=used,
            generation=int(resource["generation"]),
            metageneration=int(resource.get("metageneration") or 1),
            packs=packs_in(str(metadata.get(PACKS_METADATA, ""))),
            is_checked=metadata.get(_CHECK) != _PENDING,
        )


def _seconds(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:  # somebody else's word; the object's own time stands
        return 0.0
