from __future__ import annotations

from pathlib import Path

import pytest

from controller.bench import ROWS
from controller.local import programs


def test_the_fixed_names_are_there() -> None:
    assert {row.name for row in ROWS} == {
        *("kube.reconcile", "kube.nodes.1000", "kube.requests.idle", "kube.memory"),
        *("ranks.1536", "ranks.10000", "ranks.memory"),
    }


def test_what_a_row_lacks_is_named_with_what_brings_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "TOOLS", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    (tmp_path / "etcd").touch(0o755)
    unmet = {row.name: row.unmet(as_root=True) for row in ROWS}
    wanted = "needs kube-apiserver and kube-controller-manager and kube-scheduler and kwok (make kube, where Go is)"
    assert unmet["kube.memory"] == wanted
    assert unmet["ranks.memory"] == ""
