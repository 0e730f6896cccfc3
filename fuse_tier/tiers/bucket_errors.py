"""What a failed request to a bucket means, in our errors and in words that tell the next step.

Pure but for asking who we are. Nothing of google-cloud-storage or requests leaves the bucket tier: what may pass by
itself is TierUnavailable, what somebody must mend is TierRefused, an object that is not there is NotFound.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, Final

from fuse_tier.errors import NotFound, TierError, TierRefused, TierUnavailable
from fuse_tier.tiers.bucket_batch import Answer
from fuse_tier.tiers.bucket_layout import BucketPlace

_PASSING: Final = frozenset({408, 409, 429, 500, 502, 503, 504})  # cloud.google.com/storage/docs/retry-strategy
_LONGEST_CAUSE: Final = 300
_MANUAL: Final = "README, 'Bucket access'"
_CREDENTIALS: Final = (
    "use workload identity, set GOOGLE_APPLICATION_CREDENTIALS or `bucket.credentials`, or run `gcloud auth "
    f"application-default login` ({_MANUAL})"
)
# As the service words a refusal: "NAME does not have storage.objects.get access to …".
_REFUSAL: Final = re.compile(r"(\S+) does not have (storage\.[A-Za-z.]+) access")
_REQUEST: Final = re.compile(r"[A-Z]+ https?://\S+: ")  # with which the client begins what the service said
# "… is subject to bucket's retention policy …", "… is under active Temporary hold …"
_PROTECTION: Final = re.compile(r"retention polic|retention period|object retention|\bhold\b", re.IGNORECASE)

# Refusals that no role on the bucket mends, and that name their cause themselves: billing, keys, perimeters, scopes.
_OTHER_CAUSE: Final = re.compile(
    r"billing|disabled|\bKMS\b|service controls|organi[sz]ation|\bscopes?\b|\bSSL\b", re.IGNORECASE
)
_TOO_OFTEN: Final = re.compile(r"rate ?limit|quota", re.IGNORECASE)


class BucketErrors:
    """Translates failures of one bucket's requests. ``account`` tells who we are to it, as far as that is known."""

    def __init__(self, place: BucketPlace, endpoint: str | None) -> None:
        self._place = place
        self._at = endpoint or "Cloud Storage"
        self.account: Callable[[], str | None] = lambda: None

    @contextmanager
    def told(self, permission: str, name: str) -> Iterator[None]:
        """Raises what went wrong within as one of our errors; PreconditionFailed, and what is ours, as it is.

        ``permission`` is what the request needs.
        """
        try:
            yield
        except Exception as error:
            meaning = self._meaning(error, permission, f"{self._place}/{name}")
            if meaning is None:
                raise
            raise meaning from error

    def check(self, response: Any) -> None:
        """Raises what the client would for an answer that is no success; to be called within ``told``."""
        if not 200 <= response.status_code < 300:
            from google.api_core.exceptions import from_http_response

            raise from_http_response(response)  # type: ignore[no-untyped-call]

    def of(self, answer: Answer, permission: str, name: str) -> TierError:
        """What an answer within a batch means that is no success."""
        said = answer.json().get("error", {})
        message = str(said.get("message", "")) if isinstance(said, dict) else ""
        return self._answer(answer.status, message, permission, f"{self._place}/{name}")

    def no_bucket(self) -> TierRefused:
        """There is no such bucket, or none that we are shown."""
        return TierRefused(
            f"gs://{self._place.bucket} does not exist at {self._at}: create it, or correct `bucket.url`"
        )

    def _meaning(self, error: Exception, permission: str, name: str) -> TierError | None:
        import requests.exceptions
        import urllib3.exceptions
        from google.api_core.exceptions import GoogleAPICallError, PreconditionFailed
        from google.auth.exceptions import GoogleAuthError, TransportError

        if isinstance(error, PreconditionFailed):  # an answer that callers ask for
            return None
        if isinstance(error, GoogleAPICallError):
            return self._answer(int(error.code or 0), _REQUEST.sub("", str(error.message), 1), permission, name)
        if isinstance(error, TransportError | requests.exceptions.RequestException | urllib3.exceptions.HTTPError):
            return TierUnavailable(f"{self._at} does not answer for {name}: {_innermost(error)}")
        if isinstance(error, GoogleAuthError):
            if getattr(error, "retryable", False):
                return TierUnavailable(f"credentials for {name} cannot be renewed: {_innermost(error)}")
            cause = _innermost(error).rstrip(".")
            return TierRefused(f"there are no valid credentials for {name}: {cause}; {_CREDENTIALS}")
        return None

    def _answer(self, code: int, message: str, permission: str, name: str) -> TierError:
        said = f"{code} {message[:_LONGEST_CAUSE]}"
        if code == HTTPStatus.NOT_FOUND:
            return NotFound(f"{name} is not there")
        is_worded = _REFUSAL.search(message) is not None
        if code == HTTPStatus.UNAUTHORIZED and not is_worded:  # with credentials that were just renewed
            return TierRefused(f"{self._at} does not accept our credentials for {name}: {said}; {_CREDENTIALS}")
        if code == HTTPStatus.FORBIDDEN and not is_worded:
            if _PROTECTION.search(message):
                return Protected(f"{name} is protected by a hold or a retention policy: {said}")
            if _TOO_OFTEN.search(message):
                return TierUnavailable(f"{self._at} cannot serve {name} now: {said}")
            if _OTHER_CAUSE.search(message):
                return TierRefused(f"{self._at} refused a request for {name}: {said}")
        if code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return self._lacking(message, permission, said)
        if code == HTTPStatus.TOO_MANY_REQUESTS:
            return Busy(f"{self._at} cannot serve {name} now: {said}")
        if code in _PASSING or "crc32c" in message.lower():  # what it got was not what we sent
            return TierUnavailable(f"{self._at} cannot serve {name} now: {said}")
        return TierRefused(f"{self._at} refused a request for {name}: {said}")

    def _lacking(self, message: str, permission: str, said: str) -> TierRefused:
        account, wanted = self.account(), f"storage.objects.{permission}"
        if worded := _REFUSAL.search(message):
            account, wanted = worded[1], worded[2]
        if account is None or account in ("default", "caller"):
            account = None
        bucket = f"gs://{self._place.bucket}"
        return TierRefused(
            f"{account or 'this node'} lacks {wanted} on {bucket}: grant it with `gcloud storage buckets "
            f"add-iam-policy-binding {bucket} --member={_member(account)} --role=roles/storage.objectUser` "
            f"({_MANUAL}); {self._at} said: {said}"
        )


class Busy(TierUnavailable):
    """Too many requests came at once, such as changes of one object: the service takes about one a second."""


class Protected(TierRefused):
    """An object may not be removed or replaced yet, because somebody has the bucket keep it."""


def _member(account: str | None) -> str:
    """An account as IAM names it (cloud.google.com/iam/docs/principal-identifiers)."""
    if account is None:
        return "PRINCIPAL"
    if account.endswith("gserviceaccount.com"):
        return f"serviceAccount:{account}"
    return account if "://" in account or ":" in account else f"user:{account}"


def _innermost(error: BaseException) -> str:
    """The cause that a person wants to read: libraries wrap it up to five times."""
    while inner := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        error = inner
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text or type(error).__name__)[:_LONGEST_CAUSE]
