"""Sizes and durations: what is written is what is read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse_tier.errors import ConfigError
from fuse_tier.quantities import (
    format_count,
    format_duration,
    format_rate,
    format_size,
    parse_duration,
    parse_rate,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("512B", 512),
        ("2GiB", 2 << 30),
        ("2 GiB", 2 << 30),
        ("500MB", 500_000_000),
        ("500M", 500_000_000),
        ("10Gi", 10 << 30),
        ("1e9", 10**9),
        ("1.5E9", 1_500_000_000),
        ("1E", 10**18),
        ("1k", 1000),
        ("1Ki", 1024),
        ("1.5KiB", 1536),
        ("0.0001k", 1),
        (4096, 4096),
        (1.5, 2),
    ],
)
def test_a_size_is_read_exactly(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "2 gigs", "GiB", "-1", "2GiBB", "1mi", "100m", "0x10", "1,5G", "nan", None, True, [], float("nan")]
)
def test_what_is_no_size_is_refused_with_an_example(text: object) -> None:
    with pytest.raises(ConfigError, match="is no quantity: write 2GiB or 500MB"):
        parse_size(text)


@pytest.mark.parametrize("text", ["16EiB", "1e99", -1, 1 << 63])
def test_a_size_that_no_file_can_have_is_refused(text: object) -> None:
    with pytest.raises(ConfigError, match="out of range"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("500ms", 0.5),
        ("5m", 300),
        ("30min", 1800),
        ("1h5min", 3900),
        ("24h", 86400),
        ("7d", 604800),
        ("1h30m", 5400),
        ("0s", 0),
        (2, 2),
    ],
)
def test_a_duration_is_read_exactly(text: object, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "soon", "30", "5 minutes", "-1s", "s", "1h-2m", None, False, {}])
def test_what_is_no_duration_is_refused_with_an_example(text: object) -> None:
    with pytest.raises(ConfigError, match="is no duration: write 30s, 5m or 24h"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["99999d", -1, float("inf"), float("nan")])
def test_a_duration_without_end_is_refused(text: object) -> None:
    with pytest.raises(ConfigError, match="out of range"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (2 << 30, "2 GiB"),
        ((1 << 20) - 1, "1 MiB"),
        (123_456_789, "118 MiB"),
        ((1 << 63) - 1, "8 EiB"),
    ],
)
def test_sizes_are_shown_short(size: int, text: str) -> None:
    assert format_size(size) == text
    assert format_rate(size) == f"{text}/s"


@given(st.integers(0, (1 << 62)))
def test_a_shown_size_reads_back_as_about_the_same(size: int) -> None:
    assert parse_size(format_size(size)) == pytest.approx(size, rel=0.01, abs=1)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.0851, "85 ms"),
        (3.21, "3.2 s"),
        (59.4, "59 s"),
        (250, "4m 10s"),
        (7500, "2h 5m"),
        (273600, "3d 4h"),
    ],
)
def test_durations_are_shown_short(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_one_is_no_plural() -> None:
    assert [format_count(count, "file") for count in (0, 1, 2)] == ["0 files", "1 file", "2 files"]


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("10Gbps", 1_250_000_000),
        ("10 Gbit/s", 1_250_000_000),
        ("1.5Mbps", 187_500),
        ("9bps", 2),
        ("200MB/s", 200_000_000),
        ("1GiB/s", 1 << 30),
        ("5B/s", 5),
    ],
)
def test_a_rate_is_read_exactly(text: str, rate: int) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "10", 10, "10G", "10GB", "10gbps", "10Gibps", "fast", "-1Mbps", None, True])
def test_what_is_no_rate_is_refused_with_an_example(text: object) -> None:
    with pytest.raises(ConfigError, match="is no rate: write 10Gbps or 200MB/s"):
        parse_rate(text)


@pytest.mark.parametrize("text", ["0Gbps", "0MB/s", "99999999999TB/s"])
def test_a_rate_that_nothing_can_have_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="out of range"):
        parse_rate(text)
