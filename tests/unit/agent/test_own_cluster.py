"""A host's part in its cluster: who looks after the cluster's etcd."""

from __future__ import annotations

from pathlib import Path

import pytest

from linkspan.agent.own_cluster import OwnCluster
from linkspan.cluster.founding.trust_files import TrustFiles, Voter
from linkspan.core.config import Config
from linkspan.store.upkeep import Allowed


def part(state_dir: Path, store: str, setting: Allowed = "compact") -> OwnCluster:
    """Return a host's part in the cluster of a store."""
    config = Config(state_dir=str(state_dir), store=store, store_upkeep=setting)
    return OwnCluster(config, state_dir / "agent.toml", lambda _config: None)


@pytest.mark.parametrize("setting", ["compact", "all"])
def test_voters_do_everything_for_an_etcd_that_linkspan_runs(tmp_path: Path, setting: Allowed) -> None:
    """Whatever the setting allows for an etcd of the operator's: nobody else can do it, and clients do nothing."""
    files = TrustFiles(tmp_path)
    host = part(tmp_path, files.url(("192.0.2.1:5379",), "h1"), setting)
    assert host.upkeep == "all"
    assert not host.keeps_store()
    files.keep_voter(Voter("192.0.2.1"))
    assert host.keeps_store()


def test_the_setting_keeps_a_voter_away(tmp_path: Path) -> None:
    """An operator may want to do it by hand."""
    assert part(tmp_path, TrustFiles(tmp_path).url(("192.0.2.1:5379",), "h1"), "none").upkeep == "none"


@pytest.mark.parametrize("setting", ["none", "compact", "all"])
def test_any_agent_does_what_the_setting_allows_for_an_etcd_of_the_operator(tmp_path: Path, setting: Allowed) -> None:
    """It serves other programs, too."""
    host = part(tmp_path, "etcd://192.0.2.1:2379/prod", setting)
    assert host.upkeep == setting
    assert host.keeps_store()
