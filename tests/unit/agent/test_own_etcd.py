"""Removal of linkspan's own etcd where the file that says what this host is cannot be read."""

from __future__ import annotations

from pathlib import Path

from linkspan.agent import own_etcd
from linkspan.agent.uninstall import refusal
from linkspan.core.config import Config
from linkspan.store.snapshot import SNAPSHOT


def test_a_damaged_voter_is_still_one(tmp_path: Path) -> None:
    """Its etcd is removed, and nobody knows how many hosts need it, so uninstall refuses without --force."""
    config = Config(state_dir=str(tmp_path))
    assert (own_etcd.dependants(config), own_etcd.preview(config)) == (0, [])
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "voter.json").write_text("damaged")
    (tmp_path / "etcd" / "data").mkdir(parents=True)
    assert own_etcd.preview(config) == ["etcd"]
    assert own_etcd.dependants(config) is None
    refused = refusal([], [], own_etcd.dependants(config))
    assert refused is not None
    assert "which other hosts have their records in it cannot be read" in refused.message
    assert "--force ends the cluster's etcd for good" in refused.hint
    (tmp_path / SNAPSHOT).write_text('{"cluster": "x", "host": "h1", "records": []}')
    assert own_etcd.dependants(config) == 0
    assert refusal([], [], 0) is None
    assert own_etcd.remove(config, tmp_path / "agent.toml") == ["etcd"]
