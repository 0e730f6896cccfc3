"""Sizes and durations as people write them, in configurations, on the command line and in answers.

Pure text and numbers. What is read exactly is what was written: no unit is guessed, nothing is rounded down.
"""

from __future__ import annotations

import math
import re
from decimal import ROUND_CEILING, Decimal

from fuse_tier.errors import ConfigError

_SIZE = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,3})?)\s*(?P<unit>(?:[kKMGTPE]i?)?B?)")
_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|s|min|m|h|d))+")
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|min|m|h|d)")
_RATE = re.compile(
    r"(?P<number>[0-9]+(?:\.[0-9]*)?)\s*(?:(?P<bits>[kKMGT]?)(?:bps|bit/s)|(?P<bytes>(?:[kKMGT]i?)?B)/s)"
)
_PREFIXES = "KMGTPE"
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LARGEST_SIZE = (1 << 63) - 1  # what a file offset can hold
_LONGEST_SECONDS = 10 * 365 * 86400.0


def parse_size(value: object) -> int:
    """Bytes from ``2GiB``, ``500MB``, Kubernetes' ``10Gi`` or ``500M``, ``1e9``, or a number of bytes.

    ``k M G T P E`` are powers of 1000, with an ``i`` of 1024; a trailing ``B`` changes nothing. Fractions of a
    byte count as one, as in Kubernetes. Raises ConfigError.
    """
    if isinstance(value, str):
        match = _SIZE.fullmatch(value.strip())
        if match is None:
            raise _no_quantity(value)
        size = Decimal(match["number"]) * _factor(match["unit"].removesuffix("B"))
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        size = Decimal(value)
    else:
        raise _no_quantity(value)
    if not 0 <= size <= _LARGEST_SIZE:
        raise ConfigError(f"{value!r} is out of range: a size is between 0 and {_LARGEST_SIZE} bytes")
    return int(size.to_integral_value(ROUND_CEILING))


def _factor(unit: str) -> int:
    if not unit:
        return 1
    power = _PREFIXES.index(unit[0].upper()) + 1
    return int(pow(1024 if unit.endswith("i") else 1000, power))


def _no_quantity(value: object) -> ConfigError:
    return ConfigError(f"{value!r} is no quantity: write 2GiB or 500MB")


def parse_rate(value: object) -> int:
    """Bytes a second from ``10Gbps`` or ``10Gbit/s`` (bits), or from ``200MB/s`` or ``1GiB/s`` (bytes).

    A number alone is refused: it does not say of what. Raises ConfigError.
    """
    match = _RATE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ConfigError(f"{value!r} is no rate: write 10Gbps or 200MB/s")
    if match["bytes"] is not None:
        rate = Decimal(match["number"]) * _factor(match["bytes"].removesuffix("B"))
    else:
        rate = Decimal(match["number"]) * _factor(match["bits"]) / 8
    if not 0 < rate <= _LARGEST_SIZE:
        raise ConfigError(f"{value!r} is out of range: a rate is more than nothing")
    return int(rate.to_integral_value(ROUND_CEILING))


def parse_duration(value: object) -> float:
    """Seconds from ``30s``, ``500ms``, ``5m`` or ``5min``, ``24h``, ``7d``, ``1h30m``, or a number of seconds.

    Raises ConfigError.
    """
    if isinstance(value, str):
        text = value.strip()
        if _DURATION.fullmatch(text) is None:
            raise _no_duration(value)
        seconds = math.fsum(float(number) * _UNIT_SECONDS[unit] for number, unit in _DURATION_PART.findall(text))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    else:
        raise _no_duration(value)
    if not 0 <= seconds <= _LONGEST_SECONDS:
        raise ConfigError(f"{value!r} is out of range: a duration is between 0 and ten years")
    return seconds


def _no_duration(value: object) -> ConfigError:
    return ConfigError(f"{value!r} is no duration: write 30s, 5m or 24h")


def format_size(size: int) -> str:
    """Such as ``0 B``, ``1.5 KiB``, ``2 GiB``: three significant figures, for people."""
    if size < 1024:
        return f"{size} B"
    amount = float(size)
    unit = ""
    for prefix in _PREFIXES:
        amount /= 1024
        unit = f"{prefix}iB"
        if amount < 1023.5:
            break
    digits = 2 if amount < 9.995 else 1 if amount < 99.95 else 0
    number = f"{amount:.{digits}f}"
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number} {unit}"


def format_rate(bytes_per_second: float) -> str:
    """Such as ``1.5 GiB/s``."""
    return f"{format_size(round(bytes_per_second))}/s"


def format_duration(seconds: float) -> str:
    """Such as ``85 ms``, ``3.2 s``, ``4m 10s``, ``2h 5m``, ``3d 4h``: two units at most, for people."""
    if seconds < 0.9995:
        return f"{round(max(seconds, 0.0) * 1000)} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    for unit, name, smaller, smaller_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= unit:
            return f"{whole // unit}{name} {whole % unit // smaller}{smaller_name}"
    raise AssertionError(whole)


def format_count(count: int, noun: str) -> str:
    """Such as ``1 file``, ``8 files``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
