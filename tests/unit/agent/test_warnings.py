from __future__ import annotations

import msgspec
import pytest

from linkspan.agent.warnings import KERNEL, cautions, data_path, dropped
from linkspan.core.host_view import Facts
from linkspan.core.model import Host, Underlay
from linkspan.core.states.ipsec import Strongswan
from linkspan.core.states.programs import IpipHelper
from linkspan.core.states.wireguard import Tools
from support.records.replicas import network

HERE = Underlay("eth0", ("192.0.2.1/24",), mtu=1500)


def some(count: int, **settings: str) -> list[Host]:
    """Return so many hosts."""
    return [Host(id=f"id{n}", name=f"h{n}", settings=settings) for n in range(count)]


@pytest.mark.parametrize(
    ("pool", "hosts", "mtu", "words"),
    [
        ("10.244.0.0/22", 4, 1450, []),
        ("10.244.0.0/22", 5, 1450, ["has 4 blocks of /24, and there are 5 hosts"]),
        ("10.244.0.0/22", 4, 1451, ["MTU 1451 is more than this host's underlay carries, 1450"]),
    ],
)
def test_too_few_blocks_and_too_large_packets_are_warned_of(
    pool: str, hosts: int, mtu: int, words: list[str]
) -> None:
    """Each in a sentence with the way out; what will do is not."""
    made = msgspec.structs.replace(network(pool=pool), mtu=mtu)
    said = list(cautions(made, some(hosts), HERE))
    assert [word in one for word, one in zip(words, said, strict=True)] == [True] * len(words)


def test_a_network_of_exact_addresses_has_no_blocks_to_run_out_of() -> None:
    """One address is enough for a host."""
    made = msgspec.structs.replace(network(pool="10.244.0.0/24"), mtu=1450, ipam="exact")
    assert list(cautions(made, some(9), HERE)) == []


def test_a_bridge_in_a_cluster_is_said_to_stay_on_each_host() -> None:
    """Alone it is what one wants."""
    made = network(backend="bridge")
    assert list(cautions(made, some(1), HERE)) == []
    (said,) = cautions(made, some(3), HERE)
    assert "does not cross the 3 hosts" in said
    assert "--backend vxlan" in said


def test_a_mesh_of_more_than_a_hundred_hosts_is_warned_of() -> None:
    """With the commands by which reflectors take its place; hosts without the mesh do not count."""
    made = msgspec.structs.replace(network(backend="bgp", pool="10.64.0.0/10", options={}), mtu=1500)
    assert list(cautions(made, some(100), HERE)) == []
    (said,) = cautions(made, some(101), HERE)
    assert "101 hosts form a full mesh, and each has 100 BGP sessions" in said
    assert "linkspan host set --all bgp.mesh=false" in said
    away = {"bgp.mesh": "false", "bgp.peer.rr.address": "192.0.2.254"}
    assert list(cautions(made, [*some(100), *some(50, **away)], HERE)) == []
    assert list(cautions(made, [*some(100), *some(1, **{"bgp.mesh": "perhaps"})], HERE)) == []


@pytest.mark.parametrize(
    ("backend", "facts", "lacks"),
    [
        ("vxlan", Facts(programs=(IpipHelper(("helper",)),)), ""),
        ("ipip", Facts(), ""),
        ("ipip", Facts(programs=(IpipHelper(("helper",)),)), "ipip"),
        ("wireguard", Facts(programs=(Tools("key"),)), ""),
        ("wireguard", Facts(programs=(Tools("key", program=("wireguard-go",)),)), "wireguard"),
        ("ipsec", Facts(programs=(Strongswan("charon", "/", kernel=True, plugin=True),)), ""),
        ("ipsec", Facts(programs=(Strongswan("charon", "/", kernel=False, plugin=True),)), "ESP"),
    ],
)
def test_a_data_path_in_user_space_is_told_with_what_the_kernel_lacks(backend: str, facts: Facts, lacks: str) -> None:
    """It works, and is many times slower."""
    said = data_path(network(backend=backend), facts)
    assert said == (f"in user space: this kernel has no {lacks}" if lacks else KERNEL)


def test_an_option_that_a_migration_drops_is_told() -> None:
    """An option that the backend had chosen by itself is not reported."""
    old = network(options={"direct": "true", "vni": "7"})
    assert list(dropped(old, network(backend="ipip", options={"direct": "true"}))) == []
    (said,) = dropped(old, network(backend="wireguard"))
    assert "backend wireguard has no option direct, so direct=true is dropped" in said
    assert "--opt direct=true" in said
