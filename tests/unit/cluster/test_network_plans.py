"""Requests for networks: what they make, and why they are refused."""

from __future__ import annotations

from typing import Any

import pytest

from linkspan.cluster.network_plans import InUse, NetworkRequest, enlarged, planned
from linkspan.core.addresses import prefix
from linkspan.core.errors import Conflict, Invalid
from linkspan.core.model import Host, Network, Underlay

HERE = Underlay("eth0", ("192.0.2.1/24",), mtu=1500)
HOSTS = tuple(Host(id=name, name=name) for name in ("h1", "h2", "h3"))
ALONE, TOGETHER = InUse(hosts=HOSTS[:1]), InUse(hosts=HOSTS)
AWAY = Host(id="h4", name="h4", underlay=Underlay("eth0", ("198.51.100.2/24",)))


def plan(in_use: InUse = TOGETHER, underlay: Underlay | None = HERE, **wishes: Any) -> Network:
    """Return the network that a request for network six makes."""
    given = {"name": "six", "pools": ("10.60.0.0/16",), **wishes}
    return planned(NetworkRequest(**given), in_use, underlay, 9000)


@pytest.mark.parametrize(
    ("in_use", "backend", "options", "length", "mtu"),
    [
        (ALONE, "bridge", {}, 16, 1500),
        (TOGETHER, "vxlan", {"direct": "true"}, 24, 1450),
    ],
)
def test_a_request_without_wishes_gets_what_fits_the_cluster(
    in_use: InUse, backend: str, options: dict[str, str], length: int, mtu: int
) -> None:
    """One host needs a bridge; several get VXLAN with blocks for each, and plain routes to neighbours."""
    made = plan(in_use)
    assert (made.backend, made.subnet_len, made.mtu) == (backend, {"4": length}, mtu)
    assert made.options.items() >= options.items()


def test_without_an_underlay_the_uplink_s_mtu_counts() -> None:
    """It has no tunnel's overhead to take off."""
    assert plan(ALONE, None).mtu == 9000


def test_a_vni_is_none_of_another_network_s() -> None:
    """One that is given is refused then, with the network that has it."""
    first = plan()
    wishes: dict[str, Any] = {"name": "other", "pools": ("10.61.0.0/16",), "backend": "vxlan"}
    in_use = InUse((first,), HOSTS)
    assert plan(in_use, **wishes).options["vni"] != first.options["vni"]
    with pytest.raises(Conflict, match="is used by network six"):
        plan(in_use, **wishes, options={"vni": first.options["vni"]})


@pytest.mark.parametrize("pool", ["10.60.1.0/31", "10.60.1.0/32", "fd00::/127", "fd00::/128"])
def test_a_pool_without_room_for_a_block_is_refused_before_there_is_a_network(pool: str) -> None:
    """In a cluster hosts take blocks, of four addresses at least."""
    with pytest.raises(Invalid, match=f"pool {pool} has no room for a block of a host"):
        plan(pools=(pool,), backend="vxlan")


@pytest.mark.parametrize(
    ("wishes", "why"),
    [
        ({"pools": ("10.60.0.0/16", "10.60.1.0/24")}, "pools 10.60.0.0/16 and 10.60.1.0/24 overlap"),
        ({"pools": ("10.60.0.1/16",)}, "has host bits set"),
        ({"mtu": 100}, "MTU 100 is not from"),
        ({"subnet_len": (15,)}, "blocks of /15 do not fit its pools"),
        ({"subnet_len": (64,)}, "has no IPv6 pool to take blocks of /64 from"),
        ({"backend": "bridge", "subnet_len": (24,)}, "has one block, the pool itself, and no /24"),
        ({"backend": "host", "pools": (), "expose": ("docker",)}, "there is nothing to expose"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(wishes: dict[str, Any], why: str) -> None:
    """Before anything is written."""
    with pytest.raises(Invalid) as refused:
        plan(**wishes)
    assert why in refused.value.message


@pytest.mark.parametrize(
    ("in_use", "why"),
    [
        (InUse((plan(),), HOSTS), "network six exists"),
        (InUse((plan(name="other"),), HOSTS), "overlaps with pool 10.60.0.0/16 of network other"),
        (InUse((), HOSTS, {prefix("10.60.7.0/24"): "by eth1"}), "this host's route 10.60.7.0/24 by eth1"),
    ],
)
def test_a_pool_that_somebody_has_is_refused(in_use: InUse, why: str) -> None:
    """A network of the cluster, or a route of this host; its default route overlaps with nothing."""
    with pytest.raises(Conflict) as refused:
        plan(in_use)
    assert why in refused.value.message
    assert plan(InUse((), HOSTS, {prefix("0.0.0.0/0"): "by eth0"})).pools == ("10.60.0.0/16",)


def test_a_pool_over_a_host_s_underlay_is_refused() -> None:
    """Whichever host it is: packets to it would go into the network that they are to carry."""
    with pytest.raises(Conflict, match=r"covers 198\.51\.100\.2, the underlay address of host h4"):
        plan(InUse((), (*HOSTS, AWAY)), pools=("198.51.0.0/16",), backend="ipip")


def test_a_change_of_a_network_keeps_the_length_of_blocks() -> None:
    """Hosts have blocks of it: neither another MTU nor a further pool changes it, and a pool below it is refused."""
    made = plan(subnet_len=(26,), backend="ipip")
    in_use = InUse((made,), HOSTS)
    assert made.subnet_len == {"4": 26}
    assert enlarged(made, (), 1400, {}, in_use).subnet_len == {"4": 26}
    more = enlarged(made, ("10.61.0.0/24",), 0, {}, in_use)
    assert (more.pools, more.subnet_len) == (("10.60.0.0/16", "10.61.0.0/24"), {"4": 26})
    with pytest.raises(Invalid, match="smaller than a block of network six, /26"):
        enlarged(made, ("10.62.0.0/27",), 0, {}, in_use)


def test_a_change_adds_no_pool_that_the_network_has() -> None:
    """Nor other options: hosts have made devices of them."""
    made = plan(backend="ipip")
    in_use = InUse((made,), HOSTS)
    with pytest.raises(Conflict, match=r"overlaps with pool 10\.60\.0\.0/16 of network six"):
        enlarged(made, ("10.60.1.0/24",), 0, {}, in_use)
    with pytest.raises(Invalid, match="options of backend ipip cannot change"):
        enlarged(made, (), 0, {"direct": "true"}, in_use)
