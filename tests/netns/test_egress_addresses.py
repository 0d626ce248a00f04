"""Egress addresses on the real kernel: they end by themselves, and marked packets have a table of their own."""

from __future__ import annotations

import json

import pytest
from msgspec.structs import replace

from linkspan.backends import egress
from linkspan.core import egress as rules
from linkspan.core.addresses import prefix, whole
from linkspan.core.clock import now
from linkspan.core.errors import Unavailable
from linkspan.core.host_view import Facts
from linkspan.core.model import Egress
from linkspan.core.ruleset import FROM_HOLDER, element, skeleton
from linkspan.core.shell import Shell
from linkspan.core.states.host import (
    HOST,
    UNREACHABLE_METRIC,
    EgressAddress,
    NftChain,
    NftElement,
    NftSet,
    NftTable,
    PolicyRule,
    Route,
    State,
)
from linkspan.kernel.drivers import policy_rules, routes
from linkspan.kernel.drivers.egress_addresses import KINDS, EgressAddressDriver
from linkspan.kernel.drivers.nftables_objects import FirewallDriver
from linkspan.kernel.drivers.policy_rules import PolicyRuleDriver
from linkspan.kernel.drivers.routes import RouteDriver
from linkspan.kernel.io.namespaces import Namespaces
from linkspan.kernel.io.sockets import Sockets
from linkspan.kernel.kinds import kinds
from linkspan.kernel.probe import underlay
from support.netns.machine_fixtures import fresh_namespace, inside, joined, pings, run
from support.polling import until
from support.records.peers import network, view

MARK, TABLE = 0x4C530001, 77_000_001
ADDRESSES = {4: "192.0.2.100", 6: "2001:db8::100"}
OUTER = {4: "192.0.2.9", 6: "2001:db8::9"}
"""Of the outside."""


@pytest.fixture
def uplink(machine: str) -> str:
    """Give the machine a link with a subnet of each family."""
    run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1")
    for end in ("up0", "up1"):
        run("ip", "link", "set", end, "up")
    run("ip", "addr", "add", "192.0.2.1/24", "dev", "up0")
    run("ip", "addr", "add", "2001:db8::1/64", "dev", "up0", "nodad")
    return machine


@pytest.mark.parametrize("family", [4, 6])
def test_an_address_is_there_until_its_time_ends(spaces: Namespaces, uplink: str, family: int) -> None:
    """Not before somebody holds it; it is no address of the underlay, and the kernel removes it."""
    sockets, address = Sockets(spaces), prefix(ADDRESSES[family])
    driver = EgressAddressDriver(sockets)
    state = EgressAddress(driver.place(address), address)
    assert state.device == "up0"
    for other in (("192.0.2.1", "198.51.100.9"), ("2001:db8::1", "2001:db8:1::9"))[family == 6]:
        assert driver.place(prefix(other)) == "", other  # its own, and one of no net here
    assert isinstance(driver.apply([state], [])[state.key], Unavailable)
    assert list(driver.observe(HOST)) == []
    driver.hold(address, now() + 4)
    assert driver.apply([state], []) == {}
    assert list(driver.observe(HOST)) == [state]
    assert driver.place(address) == "up0"
    found = underlay.observe(sockets, "up0")
    assert found is not None
    assert sorted(found.addresses) == ["192.0.2.1/24", "2001:db8::1/64"]
    source = json.loads(run("ip", "-j", "route", "get", "192.0.2.9" if family == 4 else "2001:db8::9"))[0]["prefsrc"]
    assert source in ("192.0.2.1", "2001:db8::1")
    assert list(EgressAddressDriver(sockets).observe(HOST)) == []
    run("ip", "link", "set", "up0", "down")
    assert driver.place(address) == ""
    run("ip", "link", "set", "up0", "up")
    until(lambda: list(driver.observe(HOST)) == [], "it is gone", 10)


def test_it_can_be_put_again_and_removed(spaces: Namespaces, uplink: str) -> None:
    """Each time for the rest of its time; the command that `plan` shows makes the same."""
    address = prefix(ADDRESSES[4])
    driver, state = EgressAddressDriver(Sockets(spaces)), EgressAddress("up0", address)
    for _ in range(3):
        driver.hold(address, now() + 4)
        assert driver.apply([state], []) == {}
    assert driver.apply([], [state]) == {} == driver.apply([], [state])
    assert "192.0.2.100" not in run("ip", "addr", "show", "dev", "up0")
    driver.hold(address, now() + 4)
    (command,) = KINDS[0].commands(state, Shell(lambda _netns: ""))
    run(*command.split())
    assert list(driver.observe(HOST)) == [state]


@pytest.mark.parametrize("family", [4, 6])
def test_marked_packets_have_a_table_of_their_own(spaces: Namespaces, uplink: str, family: int) -> None:
    """Rule and routes are observed as put, also by a driver with no memory, and removed."""
    sockets = Sockets(spaces)
    rule = PolicyRule(HOST, 31000, whole(family), TABLE, mark=MARK)
    gateway = prefix("192.0.2.2" if family == 4 else "2001:db8::2").packed
    led = Route(whole(family), "up0", gateway, onlink=True, table=TABLE)
    ways = [led, Route(whole(family), metric=UNREACHABLE_METRIC, table=TABLE)]
    assert RouteDriver(sockets).apply(ways, []) == {}
    assert PolicyRuleDriver(sockets).apply([rule], []) == {}
    assert list(PolicyRuleDriver(sockets).observe(HOST)) == [rule]
    assert set(RouteDriver(sockets).observe(HOST)) == set(ways)
    target = "198.51.100.9" if family == 4 else "2001:db8:1::9"
    assert "via" in run("ip", "route", "get", target, "mark", str(MARK))
    assert RouteDriver(sockets).apply([], [led]) == {}
    assert "No route to host" in run("sh", "-c", f"ip route get {target} mark {MARK} 2>&1 || true")
    assert PolicyRuleDriver(sockets).apply([], [rule]) == {}
    shell = Shell(lambda _netns: "")
    for command in (*routes.KINDS[0].commands(led, shell), *policy_rules.KINDS[0].commands(rule, shell)):
        run(*command.split())
    assert list(PolicyRuleDriver(sockets).observe(HOST)) == [rule]
    assert set(RouteDriver(sockets).observe(HOST)) == set(ways)


def test_a_new_agent_finds_the_rules_as_it_would_put_them() -> None:
    """It has no memory of how nft printed them, and changes nothing; they go without a trace."""
    demo = replace(network("vxlan", (4, 6), vni="100"), egress=(Egress(ADDRESSES[4]), Egress(ADDRESSES[6])))
    wanted: list[State] = []
    for holder in ("id1", "id2"):
        seen = replace(view(demo), exits={("demo", family): holder for family in (4, 6)})
        found = [s for s in egress.network_states(seen, demo) if isinstance(s, NftChain | NftSet | NftElement)]
        wanted += [s for s in found if s not in wanted]
    wanted += [element("egress_hops4", "192.0.2.2"), element("egress_hops6", "fd02::2")]
    wanted += [element("egress_links", "lsipip"), element("egress_tunnels", "lsipip", str(FROM_HOLDER))]
    wanted += [element("egress_tunnels", "lsipip", "0"), element("ipip_holders", "192.0.2.2")]
    with fresh_namespace() as netns, inside(netns):
        first, second = FirewallDriver(), FirewallDriver()
        try:
            assert first.apply([*skeleton(Facts(), kinds()), *wanted], ()) == {}
            observed = {state.key: state for state in second.observe(HOST)}
            assert [state for state in wanted if observed.get(state.key) != state] == []
            assert first.apply((), wanted[::-1]) == {}
            assert not [state for state in second.observe(HOST) if state in wanted]
        finally:
            first.close()
            second.close()


@pytest.mark.parametrize("family", [4, 6])
def test_the_target_after_translation_decides(spaces: Namespaces, container: str, outside: str, family: int) -> None:
    """Another program leads one service to a container, one to the outside, and the address to a container."""
    joined(container, "lsx1", 1)
    joined(outside, "lsx2", 2)
    ip, pool = ("ip", "10.99.0.0/16") if family == 4 else ("ip6", "fd99::/16")
    service, far, near = ("10.96.0.1", "10.96.0.2", "10.99.2.2") if family == 4 else ("fd96::1", "fd96::2", "fd99:2::2")
    away, address = OUTER[family], ADDRESSES[family]
    run("nft", f"add table {ip} other; add chain {ip} other to {{ type nat hook prerouting priority dstnat; }}")
    for one, target in ((service, near), (far, away), (address, near)):
        run("nft", f"add rule {ip} other to {ip} daddr {one} dnat to {target}")
    run("ip", "addr", "add", away, "dev", "eth0", *(["nodad"] if family == 6 else []), netns=outside)
    run("ip", "route", "add", away, "via", near)
    until(lambda: all(pings(container, one) for one in (service, far, address)), "all answer")
    sockets, firewall = Sockets(spaces), FirewallDriver()
    assert RouteDriver(sockets).apply([Route(whole(family), metric=UNREACHABLE_METRIC, table=TABLE)], []) == {}
    assert PolicyRuleDriver(sockets).apply([PolicyRule(HOST, 31000, whole(family), TABLE, mark=MARK)], []) == {}
    sets = [state for state in skeleton(Facts(), kinds()) if isinstance(state, NftTable | NftSet)]
    elements = [
        element(f"pools{family}", pool),
        element(f"egress_marks{family}", pool, data=(str(MARK),)),
        element(f"egress_here{family}", address),
    ]
    try:
        assert firewall.apply([*sets, *rules.chains(), *elements], ()) == {}
    finally:
        firewall.close()
    assert pings(container, service)
    assert not any(pings(container, one) for one in (far, away, address))
