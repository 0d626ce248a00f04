"""Events of our own changes: a detach causes no observation, because it would be of all rules, addresses and routes."""

from __future__ import annotations

import threading

import pytest

from linkspan.core.addresses import whole
from linkspan.core.kinds import Event
from linkspan.core.states.host import (
    ALTNAME,
    HOST,
    Address,
    Bridge,
    NftElement,
    NftExit,
    NftLinkChain,
    NftSet,
    NftTable,
    PolicyRule,
    Route,
    State,
    Veth,
)
from linkspan.kernel.events import NftEvents, RouteEvents
from linkspan.kernel.kinds import kinds
from linkspan.kernel.machine import Machine
from support.netns.machine_fixtures import run
from support.polling import until

BRIDGE = Bridge("ls-demo", bytes.fromhex("020000000001"), 1500)
RULES: list[State] = [NftTable("inet", "linkspan"), NftSet("inet", "linkspan", "macs", "ether_addr")]
NEW_GENERATION = (10 << 8) | 15  # NFNL_SUBSYS_NFTABLES, NFT_MSG_NEWGEN
ELEMENT = NftElement("inet", "linkspan", "macs", ("02:00:00:00:00:09",))


def test_what_goes_with_a_link_that_we_delete_is_no_event(host: Machine) -> None:
    """The kernel takes its addresses and routes away, and says of none of that who caused it."""
    assert host.links.apply([BRIDGE], []) == {}
    run("ip", "address", "add", "10.77.0.1/24", "dev", BRIDGE.name)
    run("ip", "-6", "address", "add", "fd00:77::1/64", "dev", BRIDGE.name, "nodad")
    events = RouteEvents(kinds(), host.ports(), host.neighbours.own, host.links.leaving)
    try:
        assert host.links.apply([], [BRIDGE]) == {}
        told: set[type[State]] = set()

        def ended() -> bool:
            told.update(events.dirty())
            return not host.links.leaving

        until(ended, "the kernel tells of the bridge's end")
        assert told == set()
        assert host.links.apply([BRIDGE], []) == {}
        run("ip", "address", "add", "10.77.0.1/24", "dev", BRIDGE.name)
        events.dirty()
        run("ip", "link", "del", BRIDGE.name)
        assert {Bridge, Address, Route} <= events.dirty()
    finally:
        events.socket.close()


@pytest.mark.parametrize("goes", ["del", "name other"])
def test_rules_are_observed_after_a_link_has_gone_and_not_after_one_has_come(host: Machine, goes: str) -> None:
    """Each attach makes links, the kernel names nobody for some of their events, and a listing of rules takes long."""
    link, (verb, *more) = "lsr0123456789ab", goes.split()
    events = RouteEvents(kinds(), host.ports(), host.neighbours.own, host.links.leaving)
    try:
        run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth9")
        run("ip", "link", "property", "add", "dev", link, "altname", f"{ALTNAME}{link}")
        for change in ("up", "down"):
            run("ip", "link", "set", link, change)
        come = events.dirty()
        assert Veth in come
        assert come.isdisjoint(kinds().after(Event.NFT))
        run("ip", "link", *((verb, link) if verb == "del" else ("set", link, verb, *more)))
        assert {Veth, NftLinkChain, NftExit} <= events.dirty()
    finally:
        events.socket.close()


def test_a_policy_rule_of_ours_that_another_program_removes_is_an_event(host: Machine) -> None:
    """Changes by linkspan itself and rules of others are no events: nobody looks at rules each second."""
    events = RouteEvents(kinds(), host.ports(), host.neighbours.own, host.links.leaving)
    try:
        for family in (4, 6):
            rule = PolicyRule(HOST, 31000, whole(family), 76010, mark=0x10)
            assert host.reconciler.change(("egress",), [rule]) == {}
            run("ip", f"-{family}", "rule", "add", "pref", "31001", "lookup", "100")
            run("ip", f"-{family}", "rule", "del", "pref", "31001")
            assert events.dirty() == frozenset()
            run("ip", f"-{family}", "rule", "del", "pref", "31000")
            assert events.dirty() == {PolicyRule}
            run("ip", f"-{family}", "rule", "add", "pref", "31002", "lookup", "100", "protocol", "76")
            assert events.dirty() == {PolicyRule}
            assert host.reconciler.change(("egress",), ()) == {}
    finally:
        events.socket.close()


def test_a_transaction_of_a_thread_of_ours_is_no_event(host: Machine) -> None:
    """The kernel names the thread, and the worker has one of its own; another process's is an event."""
    events, answers = NftEvents(kinds()), list[object]()
    end = threading.Event()

    def work() -> None:
        answers.append(host.reconciler.change(("rules",), [*RULES, ELEMENT]))
        answers.append(host.reconciler.change(("rules",), RULES))
        end.wait(60)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        until(lambda: len(answers) == 2, "the thread has changed the rules twice")
        assert answers == [{}, {}]
        assert events.dirty() == frozenset()
        run("nft", "add", "element", "inet", "linkspan", "macs", "{ 02:00:00:00:00:09 }")
        assert NftElement in events.dirty()
        assert events.actor.startswith("nft, process ")
    finally:
        end.set()
        worker.join()
        events.socket.close()


def test_of_a_transaction_only_its_end_is_received(host: Machine) -> None:
    """Ten thousand elements of a policy would be as many messages, which nobody looks at."""
    events = NftEvents(kinds())
    try:
        assert host.reconciler.change(("rules",), [*RULES, ELEMENT]) == {}
        assert [kind for kind, _, _ in events.socket.receive()] == [NEW_GENERATION]
        with pytest.raises(BlockingIOError):
            list(events.socket.receive())
    finally:
        events.socket.close()
