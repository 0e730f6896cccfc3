"""This machine's clock: what certificates, credentials and the dates of checkpoints depend on."""

from __future__ import annotations

import ctypes
from typing import Final

from fuse_tier.doctor.finding import Finding
from fuse_tier.quantities import format_duration

_REFUSED_SECONDS: Final = 240.0  # certificates and credentials are refused from five minutes on
_SUSPECT_SECONDS: Final = 5.0  # the bucket tells whole seconds, and takes a moment to do so
_TIMEX_BYTES: Final = 208  # struct timex, adjtimex(2), on 64-bit Linux
_TIME_ERROR: Final = 5  # not synchronised
_REMEDY: Final = "let chrony or systemd-timesyncd set it"


def examine(bucket_ahead: float | None) -> Finding:
    """``bucket_ahead`` is by how many seconds the bucket's clock is ahead of ours, where that is known."""
    if bucket_ahead is not None and abs(bucket_ahead) >= _SUSPECT_SECONDS:
        way = "behind" if bucket_ahead > 0 else "ahead of"
        detail = f"this machine's clock is {format_duration(abs(bucket_ahead))} {way} the bucket's"
        if abs(bucket_ahead) >= _REFUSED_SECONDS:
            return Finding.failed("clock", f"{detail}: credentials and certificates are refused", _REMEDY)
        return Finding.warning("clock", detail, _REMEDY)
    compared = (
        "agrees with the bucket's to some seconds" if bucket_ahead is not None else "was compared with no other"
    )
    if _is_synchronised():
        return Finding.ok("clock", f"it is synchronised, and {compared}")
    if bucket_ahead is not None:
        return Finding.ok("clock", f"it {compared}; nothing tells that it is kept so")
    return Finding.warning("clock", f"the kernel does not know it to be synchronised, and it {compared}", _REMEDY)


def _is_synchronised() -> bool:
    """What the kernel was told; it is only asked (modes 0)."""
    state: int = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    return 0 <= state < _TIME_ERROR
