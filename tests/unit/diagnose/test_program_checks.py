"""Checks of `doctor` for backends' programs, on a machine whose PATH is a folder of the test's own."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from linkspan.backends import BACKENDS
from linkspan.core.model import Migration, Network
from linkspan.diagnose.doctor import program_checks
from linkspan.diagnose.doctor.checks import Check, Surroundings
from support.diagnose.empty_host import EmptyHost

NET = Network(name="demo", pools=("10.77.0.0/16",), subnet_len={"4": 24}, backend="wireguard", mtu=1420)


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a machine without any program, as the folder of those that come."""
    monkeypatch.setattr(program_checks, "located", lambda name: (tmp_path / name).exists())
    return tmp_path


def found(*networks: Network) -> list[Check]:
    """Return the findings of a host with these networks."""
    return list(program_checks.installed(EmptyHost(), Surroundings(networks, backends=BACKENDS)))


def test_a_program_is_missed_where_a_network_needs_it(bare: Path) -> None:
    """The check has the network and the package; an installed program is ok; other backends add no check."""
    (check,) = found(NET)
    assert (check.check, check.status) == ("wireguard", "fail")
    assert "network demo needs wg" in check.detail
    assert check.fix == "apt install wireguard-tools"
    (bare / "wg").touch()
    assert [(c.check, c.status, c.fix) for c in found(NET)] == [("wireguard", "ok", "")]
    assert found(msgspec.structs.replace(NET, backend="vxlan")) == []


def test_a_migration_needs_what_both_ways_need(bare: Path) -> None:
    """The target's program is missed before the host is to switch."""
    move = Migration(backend="bgp", options={}, mtu=1500, number=1)
    missed = found(msgspec.structs.replace(NET, migration=move))
    assert [(c.check, c.fix) for c in missed] == [
        ("bgp", "apt install bird2"),
        ("wireguard", "apt install wireguard-tools"),
    ]
