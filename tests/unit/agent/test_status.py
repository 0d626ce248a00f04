"""Exit code of `linkspan status`: what makes it 3, and what does not."""

from __future__ import annotations

from typing import Any

import pytest

from linkspan.agent.agent_checks import associations
from linkspan.agent.condition import Condition
from linkspan.api.startup import WAITING
from linkspan.cli.status import _show_status
from linkspan.core.states.bgp import REFLECTORS, crowded

WELL: dict[str, Any] = {
    "store": {"ok": True},
    "disputes": [],
    "drift": [],
    "orphans": [],
    "unreachable": [],
    "records": [],
    "bgp": {"down": [], "limited": []},
}


SHOWN: dict[str, Any] = {
    "agent": {"version": "1", "pid": 1, "started": 0, "socket": "/run/a.sock", "state_dir": "/var/lib/a"},
    "store": {"url": "etcd://h1", "ok": False, "problem": "", "answered": None},
    "networks": [],
    "heals": [],
}


def _of(network: str, host: str) -> dict[str, list[dict[str, str]]]:
    return {"unreachable": [{"network": network, "host": host, "why": "because"}]}


@pytest.mark.parametrize(
    ("found", "well"),
    [
        ({}, True),
        ({"store": {"ok": False}}, False),
        ({"unmet": ["network demo: no DNS server"]}, False),
        ({"drift": ["route 10.244.2.0/24: network unreachable"]}, False),
        ({"orphans": [{"link": "lsr0123456789ab"}]}, False),
        ({"disputes": [{"why": "two hosts claim one"}]}, False),
        ({"bgp": {"down": [{"peer": "tor"}], "limited": []}}, False),
        ({"bgp": {"down": [], "limited": [{"peer": "tor"}]}}, False),
        ({"records": [{"key": "networks/evil"}]}, False),
        (_of("demo", "h2"), False),
        (_of("", "h2"), True),
        (_of("", "h1"), False),
        (_of("", "h1, h2"), False),
    ],
)
def test_another_host_s_silent_agent_alone_is_no_fault_of_this_host(found: dict[str, Any], well: bool) -> None:
    """Every other problem of the store, of this host's objects, and of peers in its networks is one."""
    assert Condition(here="h1", **(WELL | found)).ok is well


def test_what_cannot_be_mended_stands_below_drift_and_not_below_the_store(capsys: pytest.CaptureFixture[str]) -> None:
    """Each reason has a line of its own, below the number of reasons."""
    agent = {"version": "1", "pid": 7, "started": 0, "socket": "/s", "state_dir": "/d"}
    store = {"url": "sqlite:///d", "ok": True, "problem": ""}
    lists: dict[str, Any] = {name: [] for name in ("networks", "disputes", "unreachable", "heals")}
    found = {"agent": agent, "store": store, "drift": ["a: busy"], "bgp": {"down": []}, **lists}
    _show_status(found)
    lines = capsys.readouterr().out.splitlines()
    (at,) = (n for n, line in enumerate(lines) if line.startswith("drift "))
    assert lines[at].split() == ["drift", "1", "problem"]
    assert lines[at + 1] == "  cannot repair: a: busy"


def test_hosts_with_one_name_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    """With their ids, and what to do."""
    shared = [{"name": "node", "ids": ["cafe", "f00d"]}]
    _show_status(WELL | SHOWN | {"namesakes": shared})
    said = " ".join(capsys.readouterr().out.split())
    assert "2 hosts have the name node: ids cafe, f00d; use their ids" in said


def test_what_is_wrong_with_etcd_stands_below_the_store(capsys: pytest.CaptureFixture[str]) -> None:
    """Its members, version and largest file in one line, and each problem with its fix; other stores have neither."""
    member = {"name": "m0", "version": "3.5.16", "size": 13 << 20, "in_use": 4 << 20, "quota": 16 << 20, "problem": ""}
    away = {"name": "m1", "version": "", "size": 0, "in_use": 0, "quota": 0, "problem": "connection refused"}
    etcd = {
        "members": [member, away],
        "alarms": [{"member": "m0", "alarm": "NOSPACE"}],
        "problems": [{"what": "81% of the quota", "fix": "etcdctl defrag"}],
    }
    _show_status(WELL | SHOWN | {"store": {**SHOWN["store"], "etcd": etcd}})
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "etcd 2 members, etcd 3.5.16, 13.0 MiB of 16.0 MiB, 4.0 MiB in use, alarm NOSPACE" in lines
    assert "store: 81% of the quota; etcdctl defrag" in lines
    _show_status(WELL | SHOWN | {"store": {**SHOWN["store"], "etcd": None}})
    assert not any(line.startswith("etcd") for line in capsys.readouterr().out.splitlines())


def test_an_agent_without_records_says_that_it_waits(capsys: pytest.CaptureFixture[str]) -> None:
    """Not that there is no network, and no drift: it does not know."""
    _show_status(WELL | SHOWN | {"waiting": WAITING})
    said = capsys.readouterr().out
    assert WAITING in " ".join(said.split())
    assert "no network is known yet" in said
    assert "none" not in said


def test_associations_whose_turn_has_not_come_are_counted_and_are_no_fault(capsys: pytest.CaptureFixture[str]) -> None:
    """`doctor` says the same, and no check fails; once all have been started nothing is said."""
    some = {"peers": 999, "up": 612, "waiting": 387}
    _show_status(WELL | SHOWN | {"ipsec": some})
    assert "IPsec: 612 of 999 peers are up; 387 wait for their turn to be started" in capsys.readouterr().out
    (check,) = associations(**some)
    assert check.status == "ok"
    assert "612 of 999 peers are up; 387 wait for their turn" in check.detail
    _show_status(WELL | SHOWN | {"ipsec": some | {"waiting": 0}})
    assert "IPsec" not in capsys.readouterr().out
    assert associations(0, 0, 0) == []


def test_a_mesh_that_is_too_large_is_told_and_is_no_fault(capsys: pytest.CaptureFixture[str]) -> None:
    """With the fix."""
    bgp = {"down": [], "limited": [], "warnings": [{"why": crowded(200), "fix": REFLECTORS}]}
    _show_status(WELL | SHOWN | {"bgp": bgp})
    said = " ".join(capsys.readouterr().out.split())
    assert "BGP: 200 hosts form a full mesh" in said
    assert "bgp.mesh=false" in said
    assert Condition(here="h1", **(WELL | {"bgp": bgp})).ok
