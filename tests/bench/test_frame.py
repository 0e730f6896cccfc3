from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from fuse_tier.bench import ROWS
from fuse_tier.bench.frame import Figure, Outcome, Result, Row, alternating, choose, measured, print_table, write_json
from fuse_tier.errors import ConfigError


async def _nothing(directory: Path) -> Figure:
    return Figure(1.0, 2.0)


_ROWS = (Row("first", "s", "limit", _nothing), Row("second", "GB/s", "tmpfs", _nothing))


async def test_ours_and_the_reference_take_turns_and_the_median_counts() -> None:
    calls: list[str] = []
    times = iter([100.0, 3.0, 1.0, 2.0, 50.0, 4.0])

    async def ours() -> float:
        calls.append("ours")
        return next(times)

    async def reference() -> float:
        calls.append("reference")
        return 2.0

    figure = await alternating(ours, reference)
    assert calls == ["ours", "reference"] * 6
    assert figure == Figure(3.0, 2.0)


def test_what_gives_the_figures_of_several_rows_is_measured_once_in_each_run() -> None:
    asked: list[str] = []

    def measure(row: Row) -> Outcome:
        asked.append(row.name)
        both = {"first": Figure(1.0, 2.0), "second": Figure(3.0, 2.0)}
        return both if row.name in both else Figure(5.0, 2.0)

    third = Row("third", "s", "limit", _nothing)
    for _ in range(2):
        assert [result.value for result in measured((_ROWS[1], third, _ROWS[0]), measure)] == [3.0, 5.0, 1.0]
    assert asked == ["second", "third"] * 2


def test_rows_keep_the_order_of_the_registry() -> None:
    assert [row.name for row in choose(_ROWS, ["second", "first"], as_root=False)] == ["first", "second"]
    assert choose(_ROWS, [], as_root=False) == list(_ROWS)


def test_an_unknown_name_is_refused_and_the_known_ones_are_listed() -> None:
    with pytest.raises(ConfigError, match="no benchmark 'third'; there are: first, second"):
        choose(_ROWS, ["third"], as_root=True)


def test_what_an_ordinary_user_cannot_measure_is_left_out_and_refused_by_name() -> None:
    rows = (*_ROWS, Row("third", "s", "limit", _nothing, needs_root="it mounts"))
    assert choose(rows, [], as_root=True) == list(rows)
    assert choose(rows, [], as_root=False) == list(_ROWS)
    with pytest.raises(ConfigError, match="benchmark third has to be run as root: it mounts"):
        choose(rows, ["third"], as_root=False)


def test_what_a_machine_lacks_is_left_out_and_refused_by_name() -> None:
    rows = (*_ROWS, Row("third", "s", "limit", _nothing, lacks=lambda: "needs etcd (make kube)"))
    assert choose(rows, [], as_root=True) == list(_ROWS)
    with pytest.raises(ConfigError, match=r"benchmark third needs etcd \(make kube\)"):
        choose(rows, ["third"], as_root=True)


def test_the_file_has_the_keys_that_scripts_read(tmp_path: Path) -> None:
    write_json([Result.of(_ROWS[0], Figure(1.0, 2.0))], tmp_path / "bench.json")
    assert json.loads((tmp_path / "bench.json").read_text()) == [
        {"name": "first", "value": 1.0, "unit": "s", "reference": "limit", "reference_value": 2.0, "ratio": 0.5}
    ]


def test_what_was_chosen_as_the_reference_is_told() -> None:
    assert Result.of(_ROWS[1], Figure(1.0, 2.0, beside="huge=always")).reference == "tmpfs (huge=always)"


def test_the_table_shows_figure_reference_and_ratio() -> None:
    out = io.StringIO()
    print_table([Result.of(_ROWS[1], Figure(3.0, 2.0))], Console(file=out, width=120))
    assert all(text in out.getvalue() for text in ("second", "GB/s", "tmpfs", "1.50"))


def test_the_fixed_names_are_there() -> None:
    of_peers = "peer.copy.clear peer.copy.cpu peer.copy.tls peer.copy.grpc peer.small peer.memory job.interference"
    of_filesystem = (
        "fs.write.seq1 fs.write.seq4 fs.write.plain fs.write.first fs.write.replicating fs.read.seq fs.read.mmap "
        "fs.create.passthrough fs.create.plain fs.stat fs.crash.stall fs.crash.errors fs.remount fs.small.space "
        "fs.memory.idle fs.memory.100k"
    )
    assert {row.name for row in ROWS} >= {
        "demo.seconds",
        *of_filesystem.split(),
        "peer.snapshot",
        "worker.memory",
        *of_peers.split(),
    }


def test_no_name_is_there_twice() -> None:
    names = [row.name for row in ROWS]
    assert sorted(names) == sorted(set(names))
