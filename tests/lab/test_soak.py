"""A small cluster under churn, while etcd's leader, a link and agents fail in turn: `bench/soak.py` in short."""

from __future__ import annotations

import shutil

import pytest

from linkspan.lab import build, topology
from support.lab.lab_runs import LabRun
from support.lab.soak import NAMED, Soak
from support.polling import SHARED

pytestmark = [
    pytest.mark.skipif(shutil.which("etcd") is None, reason="needs etcd: apt install etcd-server"),
    pytest.mark.skipif(shutil.which("dnsmasq") is None, reason="needs dnsmasq: apt install dnsmasq-base"),
    pytest.mark.alone,
]

HOSTS, CONTAINERS, KILLED = 5, 2, 2
SECONDS = 30.0


def test_failures_in_turn_lose_no_lease_no_ping_and_no_name(lab: LabRun) -> None:
    """Containers come and go all the while; only two hosts that do not reach each other lose pings, to each other."""
    wishes = topology.Wishes(
        lab=lab.name, hosts=HOSTS, store="etcd", store_members=3, containers_per_host=CONTAINERS
    )
    made = topology.planned(wishes)
    build.up(made)
    found = Soak(made, SECONDS, KILLED, print, NAMED * SHARED).run()
    assert found.changed == []
    assert found.lost == []
    assert found.cut > 0
    assert found.wrong == []
    assert found.dead == []
    assert found.came > SECONDS / 3
