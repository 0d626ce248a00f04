"""Checks of the machine that are read from files, below a folder of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from linkspan.backends import BACKENDS
from linkspan.core.model import Underlay
from linkspan.diagnose.doctor import host_checks, link_checks
from linkspan.diagnose.doctor.checks import Surroundings
from linkspan.diagnose.trace.kernel_view import Chain, Device
from support.diagnose.empty_host import EmptyHost
from support.diagnose.nft_rules import DROP, Kernel, field, match
from support.records.replicas import network

HEAD = "entries  allocs   destroys\n"


@pytest.mark.parametrize(
    ("entries", "status"), [(0, "ok"), (800, "ok"), (900, "warn"), (1024, "fail"), (2600, "fail")]
)
def test_a_full_neighbour_table_is_told_with_its_fix(tmp_path: Path, entries: int, status: str) -> None:
    """The kernel counts in hexadecimal; more than the limit are there while permanent ones count too."""
    limit, table = tmp_path / "proc/sys/net/ipv4/neigh/default/gc_thresh3", tmp_path / "proc/net/stat/arp_cache"
    for file, text in ((limit, "1024\n"), (table, f"{HEAD}{entries:08x} 0 0\n{entries:08x} 0 0\n")):
        file.parent.mkdir(parents=True)
        file.write_text(text)
    (found,) = host_checks.neighbours(EmptyHost(), Surroundings(root=tmp_path))
    assert found.status == status
    assert found.detail.startswith(f"{entries} of 1024 entries")
    assert bool(found.fix) == (status != "ok")


def test_a_namespace_that_does_not_see_the_table_is_skipped(tmp_path: Path) -> None:
    """Only the machine's own namespace has the limit."""
    (found,) = host_checks.neighbours(EmptyHost(), Surroundings(root=tmp_path))
    assert found.status == "skip"


@pytest.mark.parametrize(("mtu", "status"), [(1500, "ok"), (1499, "fail")])
def test_an_mtu_that_the_way_to_the_hosts_does_not_carry_is_found(mtu: int, status: str) -> None:
    """VXLAN adds 50 bytes over IPv4."""
    here = Underlay("eth0", ("192.0.2.1/24",), mtu)
    (found,) = host_checks.mtus(EmptyHost(), Surroundings([network(mtu=1450)], underlay=here, backends=BACKENDS))
    assert found.status == status
    assert (f"--mtu {mtu - 50}" in found.fix) == (status == "fail")


@pytest.mark.parametrize(
    ("up", "carrier", "why"),
    [(False, False, "is down"), (True, False, "has no carrier"), (True, True, ""), (None, None, "does not exist")],
)
def test_a_link_to_the_other_hosts_that_passes_nothing_is_named(
    up: bool | None, carrier: bool | None, why: str
) -> None:
    """It is the cause of all that is said of peers and the store then; a sound one is not mentioned."""

    class Linked(EmptyHost):
        def device(self, netns: int, name: str) -> Device | None:
            return None if up is None else Device(name, "", up, bool(carrier), 1500, bytes(6))

    around = Surroundings(underlay=Underlay("eth0", ("192.0.2.1/24",), 1500))
    found = list(link_checks.underlay(Linked(), around))
    assert [one.detail for one in found] == ([f"link eth0 to the other hosts {why}"] if why else [])
    assert all(one.status == "fail" and one.fix for one in found)


@pytest.mark.parametrize(
    ("family", "table", "status"), [("inet", "linkspan", "ok"), ("ip", "linkspan", "fail"), ("inet", "mine", "fail")]
)
def test_only_chains_of_others_are_in_the_way_of_a_pool(family: str, table: str, status: str) -> None:
    """The first container of a network, whose packet is judged, may have a policy that refuses all egress."""
    first = match(field("ip", "saddr"), "10.244.0.2")
    chain = Chain(family, table, "policy_out", "filter", "forward", rules=((first, DROP),))
    around = Surroundings([network(pools=("10.244.0.0/16",))])
    (found,) = host_checks.nft_forward(Kernel(chain), around)
    assert found.status == status
    assert bool(found.fix) == (status == "fail")
