"""Liveness under real agents and an etcd of three members: what it costs, and how soon a death is known."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator

import pytest

from linkspan.core.store_contract import LIFE
from support.lab.etcd_runs import HOSTS, EtcdRun
from support.polling import SHARED, until

pytestmark = [
    pytest.mark.skipif(shutil.which("etcdctl") is None, reason="needs etcd and etcdctl"),
    pytest.mark.skipif(shutil.which("dnsmasq") is None, reason="needs dnsmasq: apt install dnsmasq-base"),
    pytest.mark.alone,
]

STEADY, ELECTION = 5.0 * SHARED, 12.0 * SHARED
"""Seconds in which a death is to be known everywhere: while etcd has a leader, and where that goes as well."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[EtcdRun]:
    """Give three hosts with a container each, whose names are known everywhere."""
    found = EtcdRun()
    try:
        with pytest.MonkeyPatch.context() as patched:
            found.up(patched)
            until(found.well, "all live")
            found.all_known()
            yield found
    finally:
        found.run("down")


def test_a_cluster_in_which_nothing_happens_costs_etcd_nothing(cluster: EtcdRun) -> None:
    """In twenty seconds neither its log nor its revision grows, of whatever: three agents run, with containers."""
    keys = ("get", "", "--prefix", "--keys-only")
    until(lambda: "upkeep/etcd" in cluster.etcdctl(*keys), "an agent took the first turn of the upkeep")
    before, since = cluster.stands(), time.monotonic()

    def rests() -> bool:
        nonlocal before, since
        if before != (now := cluster.stands()):
            before, since = now, time.monotonic()
        return time.monotonic() - since > LIFE + 1

    until(rests, "nothing is under way: the leases of the agents that were stopped have ended, too")
    end = time.monotonic() + 20
    until(lambda: time.monotonic() > end, "twenty seconds have passed")
    assert cluster.stands() == before
    assert cluster.well()


@pytest.mark.parametrize("later", [0.0, 0.4, 0.8])
def test_a_death_is_known_everywhere_in_time(cluster: EtcdRun, later: float) -> None:
    """By host list and by names, on each other host; and so is the return."""
    begun = time.monotonic() + later
    until(lambda: time.monotonic() >= begun, "another time between two keepalives")
    cluster.run("break", "h2", "agent-kill")
    killed = time.monotonic()
    until(lambda: all(cluster.states(host)["h2"] == "silent" for host in ("h1", "h3")), "both know")
    known = time.monotonic() - killed
    until(lambda: not any(cluster.knows(place, "c2") for place in ("c1", "c3")), "its names are gone")
    named = time.monotonic() - killed
    assert max(known, named) <= STEADY, (known, named)
    assert cluster.pings("c1", cluster.address("c2"))
    cluster.start("h2")
    until(cluster.well, "it lives", 5 * SHARED)
    until(lambda: all(cluster.knows(place, "c2") for place in ("c1", "c3")), "its names are back", 5 * SHARED)


def test_a_death_is_known_though_etcd_s_leader_dies_with_the_host(cluster: EtcdRun) -> None:
    """Another member is elected meanwhile, and none of the others is taken for dead."""
    cluster.give_leadership("m2")
    cluster.kill("m2")
    cluster.run("break", "h2", "agent-kill")
    killed = time.monotonic()

    def known() -> bool:
        told = [cluster.states(host) for host in ("h1", "h3")]
        assert not any(one[host] == "silent" for one in told for host in ("h1", "h3"))
        return all(one["h2"] == "silent" for one in told)

    until(known, "both know")
    assert time.monotonic() - killed <= ELECTION
    cluster.revive("m2")
    cluster.start("h2")
    until(cluster.well, "all live", 5 * SHARED)


def test_a_leader_of_etcd_that_freezes_and_goes_on_makes_nobody_silent(cluster: EtcdRun) -> None:
    """It slept for longer than leases live; no name goes, and no ping is lost.

    tests/store/test_etcd_liveness.py freezes one leader after the other.
    """
    cluster.give_leadership("m2")

    def goes_on(seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert not any("silent" in cluster.states(host).values() for host in HOSTS)
            assert cluster.knows("c1", "c2")

    with cluster.no_loss("c1", cluster.address("c2")):
        with cluster.frozen("m2"):
            goes_on(8)
        goes_on(5)
    until(cluster.well, "all live", 5 * SHARED)
    assert cluster.status("h1")["store"]["ok"]
