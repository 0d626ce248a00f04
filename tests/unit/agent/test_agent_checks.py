"""The doctor's checks of what only an agent knows: functions of values."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest

from linkspan.agent import agent_checks
from linkspan.cluster.founding.etcd_service import EtcdService
from linkspan.cluster.founding.trust_files import Voter
from linkspan.core.host_view import Facts
from linkspan.core.model import Underlay
from support.records.peers import network, peer

CLOSED = Facts(
    closed_links=frozenset({(4, "eth1")}), old_links=frozenset({(4, "eth0"), (4, "eth1")})
)


@pytest.mark.parametrize(
    ("facts", "unnoticed", "status"),
    [
        (CLOSED, "", "ok"),
        (CLOSED, "too many open files", "warn"),
        (Facts(), "", ""),
        (msgspec.structs.replace(CLOSED, old_links=frozenset({(4, "eth1")})), "", ""),
    ],
)
def test_links_between_which_the_host_does_not_forward_are_named(facts: Facts, unnoticed: str, status: str) -> None:
    """Where there are two to forward between; it is a warning where the agent cannot see who changes that."""
    found = agent_checks.forwarding(facts, unnoticed)
    assert [check.status for check in found] == ([status] if status else [])
    for check in found:
        assert check.check == "routing IPv4"
        assert "no packets from eth1" in check.detail
        assert ("inotify says" in check.detail) == bool(unnoticed)


def test_a_store_without_users_is_a_warning() -> None:
    """Containers are kept from it, but nobody else is."""
    places = tuple((f"192.0.2.{number}", 2379) for number in range(1, 9))
    kept, access = agent_checks.control(places, "etcd://192.0.2.1:2379/linkspan")
    assert kept.status == "ok"
    assert kept.detail.endswith("192.0.2.6:2379 and 2 more")
    assert (access.check, access.status) == ("store access", "warn")
    assert len(agent_checks.control(places, "etcd://192.0.2.1:2379/linkspan?user=one")) == 1
    (folder,) = agent_checks.control((), "")
    assert "is a folder" in folder.detail


def test_peers_that_do_not_say_their_macs_are_named() -> None:
    """Of networks whose packets come without a tunnel, and only while the network is there."""
    plain = network("host-gw")
    silent = peer(plain, {}, underlay=Underlay("eth0", ("192.0.2.2/24",)))
    (check,) = agent_checks.stations([plain], {("demo", "id2"): silent})
    assert check.status == "warn"
    assert check.detail.startswith("h2 do not announce")
    assert agent_checks.stations([], {("demo", "id2"): silent}) == []
    assert agent_checks.stations([network("vxlan")], {("demo", "id2"): silent}) == []


def test_what_two_hosts_claim_and_what_is_not_used_fails() -> None:
    """Without any there is one line that says so."""
    assert [check.status for check in agent_checks.owners([])] == ["ok"]
    assert [check.status for check in agent_checks.records([])] == ["ok"]
    (owner,) = agent_checks.owners([{"why": "h1 and h2 claim 10.77.1.0/24", "fix": "detach one"}])
    assert (owner.status, owner.fix) == ("fail", "detach one")
    (record,) = agent_checks.records([{"key": "networks/demo", "why": "its pool is the host's"}])
    assert (record.status, record.detail) == ("fail", "record networks/demo: its pool is the host's")


def test_hosts_that_are_not_well_or_share_a_name_are_told() -> None:
    """One that is not reached in a network fails; what concerns a host alone is a warning."""
    unwell = [{"host": "h2", "network": "demo", "why": "no way"}, {"host": "h3", "network": "", "why": "it is silent"}]
    found = agent_checks.hosts(unwell, {"a": "h1", "b": "h1"})
    assert [(check.check, check.status) for check in found] == [
        ("hosts", "fail"),
        ("hosts", "warn"),
        ("host names", "warn"),
    ]


def test_settings_that_cannot_be_given_back_are_named() -> None:
    """With what linkspan set, as sysctl writes it."""
    assert agent_checks.settings({}) == []
    (check,) = agent_checks.settings({"net/ipv4/ip_forward": "1"})
    assert "net.ipv4.ip_forward=1" in check.detail


def test_only_names_of_several_networks_are_told_here() -> None:
    """The machine's own checks tell of one network's names."""
    (check,) = agent_checks.views({("demo",): "no server", ("demo", "other"): "no server"})
    assert check.check == "names of demo and other"


def test_a_certificate_that_expires_soon_is_a_warning_and_an_expired_one_a_failure() -> None:
    """With the reason and the fix; a sound one shows until when it is good."""
    now = time.time()
    held = [
        {"name": "host", "expires": now + 99, "problem": "", "fix": ""},
        {"name": "server", "expires": now + 99, "problem": "it expires on", "fix": "look"},
        {"name": "peer", "expires": now - 99, "problem": "it expired on", "fix": "restart"},
    ]
    sound, soon, late = agent_checks.certificates(held)
    assert (sound.check, sound.status, sound.fix) == ("certificate host", "ok", "")
    assert sound.detail.startswith("expires on 20")
    assert (soon.status, soon.detail, soon.fix) == ("warn", "it expires on", "look")
    assert (late.status, late.detail, late.fix) == ("fail", "it expired on", "restart")


def test_a_voter_says_why_its_etcd_does_not_run(tmp_path: Path) -> None:
    """A client has none; the disk is named only if it is another one than the state folder's."""
    assert agent_checks.own_etcd(None, tmp_path) == []
    own = EtcdService(tmp_path, "h1", Voter("192.0.2.1"))
    assert agent_checks.own_etcd(own, tmp_path) == []
    own.folder.mkdir()
    own.problem = "etcd ended 5 times soon after its start: no space left on device"
    (check,) = agent_checks.own_etcd(own, tmp_path)
    assert (check.check, check.status) == ("etcd", "fail")
    assert "no space left on device" in check.detail
    own.problem, own.folder = "", Path("/proc")
    (check,) = agent_checks.own_etcd(own, tmp_path)
    assert check.check == "disk of etcd"
    assert "free for /proc" in check.detail
    own.close()


def test_containers_that_policies_do_not_protect_fail_the_doctor() -> None:
    """With what to load now, and for the next boot."""
    (found,) = agent_checks.unprotected(["network br: policy web does not protect web: br_netfilter is not loaded"])
    assert (found.status, found.detail) == (
        "fail", "network br: policy web does not protect web: br_netfilter is not loaded"
    )  # fmt: skip
    assert "modprobe br_netfilter" in found.fix
    assert "/etc/modules-load.d/linkspan.conf" in found.fix
    assert agent_checks.unprotected([]) == []
