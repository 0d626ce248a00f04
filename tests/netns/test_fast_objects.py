"""Objects of the fast path: put, observed, repaired and removed on the real kernel."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from linkspan.core import fast_path
from linkspan.core.addresses import prefix
from linkspan.core.host_view import Facts, HostView
from linkspan.core.model import Host, Underlay
from linkspan.core.reconcile import Reconciler
from linkspan.core.states.host import NftExit, NftLinkChain, State
from linkspan.diagnose.plan.plan import commands, ordered
from linkspan.kernel.drivers import nftables_links, nftables_objects
from linkspan.kernel.drivers.nftables_objects import FirewallDriver
from support.netns.machine_fixtures import fresh_namespace, inside, run
from support.records.fast_network import CONTAINER, DEVICE, NETWORK


def link(name: str) -> None:
    """Make a container's link."""
    run("ip", "link", "add", name, "type", "veth", "peer", "name", f"far{name}")
    run("ip", "link", "set", name, "up")


def states() -> list[State]:
    """Return a network with a peer and a container."""
    host = Host(id="h1", name="h1", underlay=Underlay("eth0", ("192.0.2.1/24",)))
    view = HostView((NETWORK,), facts=Facts(early=True), host=host)
    targets = [prefix("10.77.2.0/24"), prefix("10.77.9.9/32"), prefix("fd77:0:0:2::/64")]
    hops = {4: "10.77.2.0", 6: "fd77:0:0:2::"}
    return [
        *fast_path.network_states(view, NETWORK, DEVICE, 50),
        *fast_path.peer_states(view, DEVICE, "02:00:00:00:00:02", targets, hops),
        *fast_path.endpoint_states(CONTAINER, DEVICE),
    ]


@contextlib.contextmanager
def a_host() -> Iterator[Reconciler]:
    """Give a reconciler of these kinds inside a host that has the links, and nothing else."""
    with fresh_namespace() as netns, inside(netns):
        link("lsr1")
        run("ip", "link", "add", DEVICE, "type", "vxlan", "id", "100", "dstport", "4789")
        driver = FirewallDriver()
        try:
            yield Reconciler([(kind, driver) for kind in (*nftables_objects.KINDS, *nftables_links.KINDS)])
        finally:
            driver.close()


@pytest.fixture
def reconciler() -> Iterator[Reconciler]:
    """Give such a reconciler, with all of the states desired and put."""
    with a_host() as found:
        assert found.change(("all",), states()) == {}
        yield found


def differs(reconciler: Reconciler) -> list[str]:
    """Return the kinds of what is not as desired."""
    change, _ = reconciler.difference()
    return sorted({type(state).__name__ for state in (*change.put, *change.delete)})


def test_all_is_observed_as_it_was_put(reconciler: Reconciler) -> None:
    """Also by an agent with no memory of what it put."""
    assert differs(reconciler) == []
    fresh = FirewallDriver()
    try:
        assert {s.key: s for s in fresh.observe(0)} == {s.key: s for s in states()}
    finally:
        fresh.close()


def test_the_commands_of_a_plan_make_the_same() -> None:
    """Typed in order, they leave the reconciler nothing to do."""
    with a_host() as reconciler:
        for state in ordered(states()[::-1]):
            for line in commands(state, lambda _netns: ""):
                run("sh", "-ec", line)
        reconciler.desired.replace(("all",), states())
        assert differs(reconciler) == []


@pytest.mark.parametrize(
    "command",
    [
        "flush table netdev linkspan",
        "delete table netdev linkspan",
        "flush chain netdev linkspan lsr1",
        "add rule netdev linkspan out4_lsx64 accept",
        "delete element netdev linkspan ends4_lsx64 { 10.77.1.2 }",
        "flush map netdev linkspan hops4_lsx64",
        "add element netdev linkspan vteps4_lsx64 { 02:00:00:00:00:09 . 10.77.2.0 }",
        "flush chain netdev linkspan lsx64; delete chain netdev linkspan lsx64",
    ],
)
def test_what_somebody_changes_is_put_back(reconciler: Reconciler, command: str) -> None:
    """Within one resync."""
    run("nft", command)
    assert differs(reconciler) != []
    assert reconciler.resync().failed == {}
    assert differs(reconciler) == []


def test_a_link_that_was_made_again_is_led_to_again(reconciler: Reconciler) -> None:
    """The kernel keeps the index of the old one, which leads nowhere, and no transaction of nftables says so."""
    assert differs(reconciler) == []
    run("ip", "link", "del", "lsr1")
    link("lsr1")
    assert "NftExit" in differs(reconciler)
    assert reconciler.resync().failed == {}
    assert differs(reconciler) == []
    (chain,) = [one for one in states() if isinstance(one, NftLinkChain) and one.name == "lsr1"]
    assert 'device "lsr1"' in run("nft", "list", "chain", "netdev", "linkspan", chain.name)


def test_an_endpoint_without_a_link_is_put_once_it_has_one(reconciler: Reconciler) -> None:
    """Neither direction is there before."""
    other = [s for s in fast_path.endpoint_states(CONTAINER, DEVICE) if isinstance(s, NftLinkChain | NftExit)]
    run("ip", "link", "del", "lsr1")
    assert reconciler.change(("all",), [s for s in states() if s not in other]) == {}
    assert reconciler.change(("again",), other) != {}
    assert not [s for s in reconciler.observed((NftExit,)) if isinstance(s, NftExit) and s.data == ("lsr1",)]
    link("lsr1")
    assert reconciler.resync().failed == {}
    assert differs(reconciler) == []


def test_nothing_is_left_of_the_last_network(reconciler: Reconciler) -> None:
    """Links, elements, chains and the table are deleted in an order that the kernel accepts."""
    assert reconciler.change(("all",), ()) == {}
    assert run("nft", "list", "tables") == ""
