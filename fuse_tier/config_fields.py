"""The kinds of values that a configuration has: how each is written, and what is said when it is not.

Text and numbers in, checked values out; nothing is opened or resolved here.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, ValidationInfo
from pydantic_core import PydanticCustomError

from fuse_tier.errors import ConfigError
from fuse_tier.identity import is_name
from fuse_tier.quantities import parse_duration, parse_rate, parse_size

T = TypeVar("T")

_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_SMALLEST_RAM = 1 << 20
_SLOWEST_SCRUB = 1_000_000
_SLOWEST_BULK = 1_250_000  # bytes a second: with less, streams that take turns take each other for dead
# sun_path holds 107 bytes and a zero (unix(7)); ours are followed by ".supervisor" and, while made, a process id.
_LONGEST_SOCKET_PATH = 107 - len(".supervisor.4194304")


@dataclass(frozen=True, slots=True)
class Address:
    """Where something listens. ``str()`` gives ``HOST:PORT``, with brackets about an IPv6 host."""

    host: str
    port: int

    @classmethod
    def parse(cls, value: object) -> Address:
        """Reads ``HOST:PORT`` or ``[IPV6]:PORT``. Raises ConfigError."""
        if isinstance(value, cls):
            return value
        text = value if isinstance(value, str) else ""
        host, _, port = text.rpartition(":")
        if not (port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16 and _is_host(host)):
            raise ConfigError(f"{value!r} is no address: write HOST:PORT, such as 127.0.0.1:7460")
        return cls(host.removeprefix("[").removesuffix("]"), int(port))

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _is_host(host: str) -> bool:
    if host.startswith("[") and host.endswith("]"):
        try:
            ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            return False
        return True
    return len(host) <= 253 and _HOST.fullmatch(host) is not None


def _reads(parse: Callable[[Any], T]) -> BeforeValidator:
    """Makes what raises ConfigError a validator."""

    def validate(value: Any) -> T:
        try:
            return parse(value)
        except ConfigError as error:
            raise PydanticCustomError("config", "{reason}", {"reason": str(error)}) from None

    return BeforeValidator(validate)


def _name(value: object) -> object:
    if not isinstance(value, str) or not is_name(value):
        raise ConfigError(
            f"{value!r} is no name: use letters, digits, '.', '_' and '-', beginning and ending with a letter "
            "or digit, in quotes if it could be taken for something else"
        )
    return value


def _absolute(value: object, info: ValidationInfo) -> object:
    """Paths count from the configuration's directory, if it came from a file."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str) or not value or "\0" in value:
        raise PydanticCustomError("config", "{reason}", {"reason": f"{value!r} is no path"})
    directory = (info.context or {}).get("directory")
    if directory is None and not os.path.isabs(value):
        reason = f"{value!r} must be an absolute path: there is no file that it could be relative to"
        raise PydanticCustomError("config", "{reason}", {"reason": reason})
    return os.path.normpath(os.path.join(directory or "/", value))


def _socket_path(value: str) -> str:
    if len(os.fsencode(value)) > _LONGEST_SOCKET_PATH:
        raise ConfigError(
            f"{value!r} is too long for a unix socket: at most {_LONGEST_SOCKET_PATH} bytes, "
            "because names of sockets beside it are made from it"
        )
    return value


def _bucket_url(value: object) -> object:
    text = value if isinstance(value, str) else ""
    name, _, prefix = text.removeprefix("gs://").partition("/")
    parts = prefix.rstrip("/").split("/") if prefix.rstrip("/") else []
    plain = all(part not in ("", ".", "..") and part.isprintable() for part in parts)
    if not text.startswith("gs://") or not _BUCKET.fullmatch(name) or not plain or len(prefix) > 512:
        raise ConfigError(f"{value!r} is no bucket: write gs://BUCKET or gs://BUCKET/PREFIX")
    return text.rstrip("/")


def _endpoint_url(value: object) -> object:
    try:
        url = urlsplit(value if isinstance(value, str) else "")
        valid = url.scheme in ("http", "https") and url.hostname and not (url.path.strip("/") or url.query)
        _ = url.port  # raises when it is no number
    except ValueError:
        valid = False
    if not valid or url.fragment or url.username:
        raise ConfigError(f"{value!r} is no endpoint: write http://HOST:PORT")
    return str(value).rstrip("/")


def _sized(value: object) -> int:
    size = parse_size(value)
    if size < _SMALLEST_RAM:
        raise ConfigError(f"{value!r} is too small: at least 1MiB")
    return size


def _bulk_rate(value: object) -> int:
    rate = parse_rate(value)
    if rate < _SLOWEST_BULK:
        raise ConfigError(f"{value!r} is too slow: at least 10Mbps")
    return rate


def _scrub_rate(value: object) -> int:
    rate = parse_rate(value)
    if rate < _SLOWEST_SCRUB:
        raise ConfigError(f"{value!r} is too slow: at least 1MB/s")
    return rate


def _positive(value: object) -> float:
    seconds = parse_duration(value)
    if not seconds:
        raise ConfigError(f"{value!r} is too short: it must be more than nothing")
    return seconds


def _listed(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


Name = Annotated[str, _reads(_name)]
BucketUrl = Annotated[str, _reads(_bucket_url)]
EndpointUrl = Annotated[str, _reads(_endpoint_url)]
AbsolutePath = Annotated[str, BeforeValidator(_absolute)]
SocketPath = Annotated[str, _reads(_socket_path), BeforeValidator(_absolute)]
AddressField = Annotated[Address, _reads(Address.parse)]
Addresses = Annotated[tuple[AddressField, ...], BeforeValidator(_listed)]
Size = Annotated[int, _reads(_sized)]
AnySize = Annotated[int, _reads(parse_size)]
ScrubRate = Annotated[int, _reads(_scrub_rate)]
BulkRate = Annotated[int, _reads(_bulk_rate)]
Seconds = Annotated[float, _reads(parse_duration)]
PositiveSeconds = Annotated[float, _reads(_positive)]
Count = Annotated[int, Field(ge=0, le=1000)]
Processors = Annotated[float, Field(gt=0, le=1024)]
SomeCount = Annotated[int, Field(ge=1, le=1_000_000)]

Section = TypeVar("Section")


def _number_as_last(value: object) -> object:
    return {"last": value} if isinstance(value, int) and not isinstance(value, bool) else value


def _always_as_nothing(value: object) -> object:
    if isinstance(value, str) and value != "always":
        reason = f"{value!r} is no policy: write always, {{every: 30min}} or {{steps: 100}}"
        raise PydanticCustomError("config", "{reason}", {"reason": reason})
    return {} if value == "always" else value


def _as_written(value: object) -> object:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


Passthrough = Annotated[Literal["auto", "on", "off"], BeforeValidator(_as_written)]
"""``on`` and ``off`` without quotes are booleans to YAML 1.1."""
NumberOr = Annotated[Section, BeforeValidator(_number_as_last)]
"""A group of keys, for which a number alone means its key ``last``."""
AlwaysOr = Annotated[Section, BeforeValidator(_always_as_nothing)]
"""A group of keys, for which ``always`` means that none of them is given."""
