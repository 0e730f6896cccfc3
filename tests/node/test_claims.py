from __future__ import annotations

import os
from pathlib import Path

import pytest

from fuse_tier.errors import ConfigError
from fuse_tier.node.claims import ram_tier_claimed, refuse_taken_ram_tier, refuse_taken_socket
from fuse_tier.ram.layout import Layout


def test_a_claimed_ram_tier_is_refused_to_others_until_the_claim_ends(tmp_path: Path) -> None:
    layout = Layout(str(tmp_path))
    with ram_tier_claimed(layout):
        for claim in (refuse_taken_ram_tier, lambda taken: ram_tier_claimed(taken).__enter__()):
            with pytest.raises(ConfigError, match=rf"belongs to a node that runs already \(pid {os.getpid()}\)"):
                claim(layout)
    refuse_taken_ram_tier(layout)
    with ram_tier_claimed(layout):
        pass


def test_a_lock_file_of_a_node_that_is_gone_is_no_claim(tmp_path: Path) -> None:
    layout = Layout(str(tmp_path))
    Path(layout.node_lock).write_text("4194304000\n")
    with ram_tier_claimed(layout):
        assert Path(layout.node_lock).read_text() == f"{os.getpid()}\n"


def test_a_ram_tier_that_is_not_there_is_nobodys(tmp_path: Path) -> None:
    refuse_taken_ram_tier(Layout(str(tmp_path / "missing")))
    assert not (tmp_path / "missing").exists()


def test_a_lock_that_leads_elsewhere_is_not_followed(tmp_path: Path) -> None:
    layout = Layout(str(tmp_path / "ram"))
    (tmp_path / "ram").mkdir()
    Path(layout.node_lock).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="cannot be opened"), ram_tier_claimed(layout):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_a_socket_that_is_not_there_is_free(tmp_path: Path) -> None:
    refuse_taken_socket(str(tmp_path / "node.sock"))
    refuse_taken_socket(str(tmp_path / "missing" / "node.sock"))


def test_a_socket_below_a_file_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be used: Not a directory"):
        refuse_taken_socket(str(tmp_path / "file" / "node.sock"))
