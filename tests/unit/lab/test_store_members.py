"""Members of a lab's etcd: where the hosts find them, and which numbers there may be."""

from __future__ import annotations

import pytest

from linkspan.core.errors import Invalid
from linkspan.core.store_url import etcd_parts
from linkspan.lab import etcd_servers, topology, underlay
from linkspan.lab.underlay import STORE_CUT


def test_each_host_knows_all_members_and_is_cut_off_from_all() -> None:
    """Each member has a port of its own on the switch."""
    lab = topology.planned(topology.Wishes(hosts=2, store="etcd", store_members=3))
    url = etcd_parts(topology.store_url(lab, lab.hosts[0]))
    assert url.endpoints == ("192.0.2.253:2379", "192.0.2.253:2389", "192.0.2.253:2399")
    assert etcd_servers.names(lab) == {"lab": 2379, "lab2": 2389, "lab3": 2399}
    lab.hosts[1].broken.append(STORE_CUT)
    assert [*underlay._store_rules(lab)] == ["ip saddr 192.0.2.2 tcp dport { 2379, 2389, 2399 } drop"]


@pytest.mark.parametrize(
    ("wishes", "why"),
    [
        (topology.Wishes(store="etcd", store_members=2), "out of range"),
        (topology.Wishes(store_members=3), "are etcd's"),
        (topology.Wishes(store="etcd", store_members=3, backend="bridge"), "are etcd's"),
    ],
)
def test_members_that_make_no_sense_are_refused(wishes: topology.Wishes, why: str) -> None:
    """An even number, and members of a store that has none."""
    with pytest.raises(Invalid, match=why):
        topology.planned(wishes)
