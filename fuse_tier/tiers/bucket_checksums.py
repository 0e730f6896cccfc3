"""CRC-32C as Cloud Storage uses it: of what was read in ranges, and as it writes it in headers and metadata.

Pure. The checksum tells damage on the way, which another request mends, from damage where the object lies.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from typing import Any, Final

_POLYNOMIAL: Final = 0x82F63B78  # Castagnoli's, RFC 3720 appendix B.4, with its bits reversed
_BITS: Final = 32
_IN_HEADER: Final = re.compile(r"(?:^|,)\s*crc32c=([A-Za-z0-9+/=]+)")


def crc32c_text(value: int) -> str:
    """A CRC-32C as Cloud Storage writes it."""
    return base64.b64encode(value.to_bytes(4, "big")).decode()


def crc32c_in(header: str) -> str | None:
    """The one that a header ``x-goog-hash`` has; None if it has none."""
    found = _IN_HEADER.search(header)
    return found[1] if found else None


def crc32c() -> Any:
    """google-crc32c, which with what it brings is not for processes that use no bucket."""
    import google_crc32c

    return google_crc32c


def combined(first: int, second: int, second_bytes: int) -> int:
    """The checksum of two pieces in a row, from that of each and the second one's length.

    Appending zeros is linear in the bits of the checksum; how many are doubled by squaring the matrix (as zlib's
    ``crc32_combine`` does, Mark Adler).
    """
    one_zero_bit = [_POLYNOMIAL, *(1 << bit for bit in range(_BITS - 1))]
    matrix = _squared(_squared(_squared(one_zero_bit)))  # of one zero byte
    while second_bytes:
        if second_bytes & 1:
            first = _times(matrix, first)
        matrix = _squared(matrix)
        second_bytes >>= 1
    return first ^ second


def _times(matrix: Sequence[int], vector: int) -> int:
    product = 0
    for column in matrix:
        if vector & 1:
            product ^= column
        vector >>= 1
    return product


def _squared(matrix: Sequence[int]) -> list[int]:
    return [_times(matrix, column) for column in matrix]
