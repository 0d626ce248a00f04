"""Interfaces of one container together: rules, tables and published ports."""

from __future__ import annotations

import msgspec

from linkspan.core.addresses import prefix
from linkspan.core.model import Endpoint, Network, Port
from linkspan.core.states.host import LinkSysctl, NftElement, PolicyRule, Route
from linkspan.endpoints.multihoming import (
    INTERNAL,
    MAIN,
    OWN_DEFAULT,
    OWN_POOLS,
    TABLE,
    container_states,
    mates,
    source,
)

NETNS = 4026531999


def _network(name: str, *pools: str, internal: bool = False, bridged: bool = False) -> Network:
    routed = {} if bridged else {"mode": "routed"}
    gateways = tuple(prefix(pool).at(1).address for pool in pools)
    return Network(
        name=name,
        pools=pools,
        subnet_len={},
        backend="bridge",
        options=routed,
        gateways=gateways,
        internal=internal,
    )


def _endpoint(
    network: Network, ifname: str, metric: int, ports: tuple[Port, ...] = (), delivered: str = "", netns: int = NETNS
) -> Endpoint:
    length = "" if network.routed else f"/{network.prefixes[0].length}"
    return Endpoint(
        id="c1",
        ifname=ifname,
        network=network.name,
        addresses=tuple(f"{pool.at(5).address}{length}" for pool in network.prefixes),
        host_ifname=f"lsr-{ifname}",
        netns=netns,
        metric=metric,
        ports=ports,
        delivered=delivered,
    )


FRONT, BACK = _network("front", "10.1.0.0/16", "fd01::/64"), _network("back", "10.2.0.0/16")
WEB = Port("", 8080, 80, "tcp")


def _targets(*homes: tuple[Network, Endpoint]) -> set[tuple[str, str]]:
    found = [s for s in container_states(homes) if isinstance(s, NftElement)]
    return {(element.set, element.data[0]) for element in found}


def test_one_interface_needs_neither_rule_nor_table() -> None:
    """If it has the first default route, nothing is made inside the container."""
    assert list(container_states([(FRONT, _endpoint(FRONT, "eth0", 0))])) == []


def test_one_interface_beside_another_program_s_needs_them() -> None:
    """Another program's default route comes first, so replies from the address need a table of their own."""
    states = list(container_states([(BACK, _endpoint(BACK, "eth1", 1))]))
    assert PolicyRule(NETNS, OWN_DEFAULT, prefix("10.2.0.5"), TABLE + 1) in states


def test_each_address_has_the_pools_of_all_networks_by_its_own_interface() -> None:
    """Rules lead to its table for the pools, then anybody to the main table, then to its default route."""
    homes = [(FRONT, _endpoint(FRONT, "eth0", 0)), (BACK, _endpoint(BACK, "eth1", 1))]
    states = list(container_states(homes))
    mine = [s for s in states if isinstance(s, PolicyRule) and s.prefix == prefix("10.2.0.5")]
    assert [(s.priority, s.table, s.specific) for s in mine] == [
        (OWN_POOLS, TABLE + 1, True),
        (OWN_DEFAULT, TABLE + 1, False),
    ]
    assert PolicyRule(NETNS, MAIN, prefix("0.0.0.0/0"), specific=True) in states
    routes = [s for s in states if isinstance(s, Route) and s.table == TABLE + 1]
    assert {str(s.destination) for s in routes} == {"10.1.0.0/16", "10.2.0.0/16", "0.0.0.0/0"}
    assert {(s.device, s.gateway) for s in routes} == {("eth1", prefix("10.2.0.1").packed)}
    six = [s for s in states if isinstance(s, Route) and s.destination.family == 6]
    assert {(str(s.destination), s.table) for s in six} == {("fd01::/64", TABLE), ("::/0", TABLE)}


def test_a_bridge_s_own_pool_needs_no_gateway() -> None:
    """Its neighbours are on the link, in the table as well."""
    flat = _network("flat", "10.3.0.0/16", bridged=True)
    states = container_states([(FRONT, _endpoint(FRONT, "eth0", 0)), (flat, _endpoint(flat, "eth1", 1))])
    own = next(s for s in states if isinstance(s, Route) and s.device == "eth1" and str(s.destination) == "10.3.0.0/16")
    assert (own.gateway, own.onlink) == (b"", False)


def test_ports_lead_to_the_first_interface_that_has_the_family() -> None:
    """Whichever interface asked for them: one whose network lacks the family leaves it to the next."""
    first, second = _endpoint(BACK, "eth0", 0), _endpoint(FRONT, "eth1", 1, (WEB,))
    assert _targets((FRONT, second), (BACK, first)) == {("publish4", "10.2.0.5"), ("publish6", "fd01::5")}


def test_an_internal_network_s_interface_comes_after_the_others() -> None:
    """A port never leads into it while there is another."""
    inner = _network("inner", "10.4.0.0/16", internal=True)
    homes = [(inner, _endpoint(inner, "eth0", INTERNAL)), (BACK, _endpoint(BACK, "eth1", 0, (WEB,)))]
    assert _targets(*homes) == {("publish4", "10.2.0.5")}


def test_docker_s_ports_stay_where_docker_published_them() -> None:
    """The engine chooses the interface; another one's attachment changes nothing."""
    one = _endpoint(FRONT, "eth0", 0, (WEB,), delivered="lsd1")
    two = _endpoint(BACK, "eth1", 1, (Port("", 9090, 90, "tcp"),), delivered="lsd2")
    found = _targets((FRONT, one), (BACK, two))
    assert found == {("publish4", "10.1.0.5"), ("publish6", "fd01::5"), ("publish4", "10.2.0.5")}


def test_the_host_s_loopback_leads_to_the_interface_that_serves() -> None:
    """127.0.0.1 needs a setting of that interface's host end, not of the one that asked."""
    homes = [(BACK, _endpoint(BACK, "eth0", 0)), (FRONT, _endpoint(FRONT, "eth1", 1, (WEB,)))]
    paths = {s.path for s in container_states(homes) if isinstance(s, LinkSysctl)}
    assert paths == {"net/ipv4/conf/lsr-eth0/route_localnet"}


def test_endpoints_of_one_namespace_belong_together() -> None:
    """An endpoint without a known namespace is a group of its own, with its own source."""
    one, two = _endpoint(FRONT, "eth0", 0), _endpoint(BACK, "eth1", 1)
    unknown = _endpoint(BACK, "eth0", 0, delivered="lsd1", netns=0)
    assert mates(one, [one, two, unknown]) == [two]
    assert mates(unknown, [one, two, unknown]) == []
    assert source(one) == source(two) != source(unknown)
    another = msgspec.structs.replace(two, ifname="eth2", netns_cookie=8)
    assert mates(one, [one, two, another]) == [two], "one whose namespace had the inode before is no mate"
