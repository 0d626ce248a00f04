"""Removal of linkspan's own etcd where the file that says what this host is cannot be read."""

from __future__ import annotations

from pathlib import Path

from linkspan.agent import own_etcd
from linkspan.agent.uninstall import refusal
from linkspan.cluster.founding.trust_files import TrustFiles, Voter
from linkspan.core.config import Config
from linkspan.store.snapshot import SNAPSHOT


def test_a_damaged_voter_is_still_one(tmp_path: Path) -> None:
    """Its etcd is removed, and nobody knows how many hosts need it, so uninstall refuses without --force."""
    config = Config(state_dir=str(tmp_path))
    assert (own_etcd.needed(config), own_etcd.preview(config)) == (None, [])
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "voter.json").write_text("damaged")
    (tmp_path / "etcd" / "data").mkdir(parents=True)
    assert own_etcd.preview(config) == ["etcd"]
    refused = refusal([], [], own_etcd.needed(config))
    assert refused is not None
    assert "which other hosts have their records in it cannot be read" in refused.message
    assert "--force ends the cluster's etcd for good" in refused.hint
    (tmp_path / SNAPSHOT).write_text('{"cluster": "x", "host": "h1", "records": []}')
    assert own_etcd.needed(config) is None
    assert own_etcd.remove(config, tmp_path / "agent.toml") == ["etcd"]


def test_one_of_several_voters_is_told_to_leave_first(tmp_path: Path) -> None:
    """Removed without that, it would be a dead voter of the others."""
    files = TrustFiles(tmp_path)
    files.keep_voter(Voter("192.0.2.1"))
    (tmp_path / "etcd" / "data").mkdir(parents=True)
    config = Config(state_dir=str(tmp_path), store=files.url(["192.0.2.1:5379", "192.0.2.2:5379"], "h1"))
    records = '[{"key": "hosts/h1", "value": "", "revision": 1}, {"key": "hosts/h2", "value": "", "revision": 1}]'
    (tmp_path / SNAPSHOT).write_text(f'{{"cluster": "x", "host": "h1", "records": {records}}}')
    refused = refusal([], [], own_etcd.needed(config))
    assert refused is not None
    assert "one of 2 voters" in refused.message
    assert "linkspan cluster leave" in refused.hint
