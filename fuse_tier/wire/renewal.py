"""Certificates that are renewed while a process runs: the files are looked at whenever they are needed.

What was made of them is made anew when one of them has changed. Files that do not fit each other, as when only
one of two has been replaced so far, change nothing: what was there goes on to be used, and that is told once.
"""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Callable
from functools import cache
from typing import Generic, TypeVar

import structlog

from fuse_tier import metrics
from fuse_tier.errors import ConfigError
from fuse_tier.wire.tls import TlsFiles, client_context

log = structlog.get_logger(__name__)

T = TypeVar("T")
_Signature = tuple[tuple[int, int, int], ...]


class Renewing(Generic[T]):
    """What ``make`` makes of files, as they are now. Any thread may ask.

    Raises ConfigError when made while the files are of no use.
    """

    def __init__(self, files: TlsFiles, make: Callable[[TlsFiles], T]) -> None:
        self._files = files
        self._make = make
        self._lock = threading.Lock()
        self._signature = _signature(files)  # before they are read: what changes meanwhile is seen the next time
        self._value = make(files)

    def current(self) -> T:
        """The same object for as long as the files are the same."""
        with self._lock:
            found = _signature(self._files)
            if found == self._signature:
                return self._value
            self._signature = found
            try:
                self._value = self._make(self._files)
            except ConfigError as error:
                metrics.error("tls")
                log.warning("tls.not_renewed", reason=str(error))
            else:
                log.info("tls.renewed", cert=self._files.cert)
            return self._value


@cache
def _client_contexts(files: TlsFiles) -> Renewing[ssl.SSLContext]:
    return Renewing(files, client_context)


def current_client_context(files: TlsFiles) -> ssl.SSLContext:
    """For connecting bulk streams, of which there are many. Raises ConfigError."""
    return _client_contexts(files).current()


def _signature(files: TlsFiles) -> _Signature:
    return tuple(_signature_of(path) for path in (files.ca, files.cert, files.key))


def _signature_of(path: str) -> tuple[int, int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return (0, 0, 0)  # away: whoever reads it says so
    return (found.st_mtime_ns, found.st_ino, found.st_size)
