"""IPsec where the way between hosts is another: an underlay of IPv6, and a host behind a NAT."""

from __future__ import annotations

import time
from functools import partial

import pytest

from linkspan.core.errors import LinkspanError
from support.lab.ipsec_runs import IpsecRun
from support.lab.migration_runs import HOSTS
from support.polling import until


@pytest.mark.parametrize("wishes", ["--underlay v6", "--nat h3"])
def test_all_pairs_reach_each_other(wishes: str) -> None:
    """With packets of the network's MTU, and nobody misses anything; a killed daemon is back in time on either side."""
    cluster = IpsecRun()
    try:
        cluster.run("up", f"--backend ipsec {wishes}")
        assert cluster.json("test")["failed"] == []
        assert "mtu 1400" in cluster.inside("c1", "ip link show eth0")
        for host in ("h3", "h1"):
            before, since = cluster.spis(host), time.monotonic()
            cluster.run("break", host, "helper-kill")
            cluster.back(since, "c3", "c1")
            until(partial(_other, cluster, host, before), f"{host} has other associations than {sorted(before)}")
            cluster.reaches("c3", "c1")
            cluster.reaches("c1", "c3")
        cluster.well()
        assert not any("IPsec" in cluster.not_well(host) for host in HOSTS)
    finally:
        cluster.run("down")


def _other(cluster: IpsecRun, host: str, before: set[str]) -> bool:
    """Return whether a host's new daemon has associations, and none of before.

    How many says nothing: if both ends begin at once, a pair of hosts has two associations for a while.
    """
    try:
        now = cluster.spis(host)
    except LinkspanError:  # it has not begun yet
        return False
    return bool(now) and not now & before


def test_two_hosts_behind_nats_are_told_that_they_cannot_meet() -> None:
    """The error says what to do, and both reach a third host. No containers: ``lab up`` would wait for them."""
    cluster = IpsecRun()
    try:
        cluster.run("up", "--backend ipsec --nat h2,h3 --containers-per-host 0")
        for host, other in (("h2", "h3"), ("h3", "h2")):
            cluster.told(host, f"host {other} and this host are both behind a NAT")
        (target,) = cluster.host("h1")["leases"][0]["host_address"]
        waiting = {"h2", "h3"}

        def all_answered() -> bool:
            waiting.difference_update(h for h in tuple(waiting) if not cluster.silent(h, target.partition("/")[0]))
            return not waiting

        until(all_answered, "both reach h1 through IPsec")
    finally:
        cluster.run("down")
