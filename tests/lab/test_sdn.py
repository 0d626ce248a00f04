"""SDN on real Open vSwitch: a spine and two leaves, two controllers, both families, etcd."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from linkspan.api.client import Client
from linkspan.controller.controller import TAKE_OVER
from linkspan.core.errors import Unavailable
from linkspan.lab import commands, etcd_servers, record
from support.lab.sdn_runs import TAKEN_OVER, SdnRun
from support.polling import HEALED_WITHIN, SHARED, until

pytestmark = [
    pytest.mark.skipif(shutil.which("ovs-ofctl") is None, reason="needs Open vSwitch: apt install openvswitch-switch"),
    pytest.mark.skipif(shutil.which("etcd") is None, reason="needs etcd: apt install etcd-server"),
]


@pytest.fixture(scope="module")
def sdn() -> Iterator[SdnRun]:
    """Give three hosts: h1 and h3 at sw2, h2 at sw3."""
    found = SdnRun()
    try:
        found.run("up", "--backend sdn --switches 3 --controllers 2 --store etcd --underlay dual")
        until(found.settled, "the switches have all flows")
        yield found
    finally:
        found.run("down")


def _reaches(sdn: SdnRun) -> bool:
    return sdn.pings("c1", sdn.address("c2")) and sdn.pings("c2", sdn.address("c3"))


def test_all_pairs_are_well_and_nothing_differs(sdn: SdnRun) -> None:
    """Ping, TCP and full-sized packets of both families; no drift on hosts and switches; nobody typed in a port."""
    outcome = sdn.json("test")
    assert outcome["failed"] == []
    assert outcome["pairs"] >= 15
    sdn.clean()
    until(sdn.settled, "the switches have all flows")
    found = sdn.controller()
    assert {(h["host"], h["switch"], h["port"]) for h in found["hosts"]} == {
        ("h1", "sw2", "h1"), ("h2", "sw3", "h2"), ("h3", "sw2", "h3"),
    }  # fmt: skip
    both = {(a, b, "up") for a in ("sw1", "sw2", "sw3") for b in ("sw1", "sw2", "sw3") if a != b}
    until(lambda: _links(sdn) == both, "all links are seen both ways")
    until(
        lambda: all(p["sent"]["packets"] and p["received"]["packets"] for p in sdn.controller()["prefixes"]),
        "each prefix's packets are counted",
    )


def _links(sdn: SdnRun) -> set[tuple[str, str, str]]:
    return {(one["switch"], one["to"], one["state"]) for one in sdn.controller()["links"]}


def _by(sdn: SdnRun) -> list[str]:
    """Return the switches by which a packet from c1 to c2 goes, as a trace tells them."""
    return [hop["host"] for hop in sdn.traced("c1", "c2")["hops"] if hop["namespace"] == "switch"]


def test_a_host_knows_no_peer(sdn: SdnRun) -> None:
    """Of other hosts' addresses, MACs and prefixes, a host's plan has none: its state is the same for any number."""
    # Names of containers elsewhere stand in a file of the names' server, which is no way to reach them.
    texts = [one["command"] for one in sdn.call("h1", "GET", "/v1/plan") if one["kind"] != "File"]
    assert any("169.254.76.1" in text for text in texts)
    others = [host for host in sdn.controller()["hosts"] if host["host"] != "h1"]
    words = [host["mac"] for host in others]
    words += [p["prefix"].rpartition(".")[0] or p["prefix"] for p in sdn.controller()["prefixes"] if p["host"] != "h1"]
    assert not [text for text in texts if any(word in text for word in words)]


@pytest.mark.alone
def test_flows_that_are_deleted_are_back_and_others_are_left_alone(sdn: SdnRun) -> None:
    """All of ours are back within two seconds; a foreign flow stays."""
    before = sdn.ours("sw2")
    sdn.ofctl("del-flows", "sw2", "cookie=0x4c53000000000000/0xffff000000000000")
    sdn.ofctl("add-flow", "sw2", "cookie=0x77,table=0,priority=7,tcp,tp_dst=4711,actions=NORMAL")
    until(lambda: sdn.ours("sw2") == before, "the flows are back", HEALED_WITHIN)
    until(lambda: sdn.switch("sw2")["healed"] > 0, "the repair is told")
    until(sdn.settled, "nothing differs")
    assert "tp_dst=4711" in sdn.ofctl("dump-flows", "sw2")
    assert _reaches(sdn)


@pytest.mark.alone
def test_what_a_host_has_of_it_is_back_too(sdn: SdnRun) -> None:
    """The gateway's neighbour and the pool's route, deleted by hand."""
    before = sorted(sdn.ip("h1", "neigh show nud permanent").splitlines() + sdn.ip("h1", "route").splitlines())
    sdn.ip("h1", "neigh del 169.254.76.1 dev eth0")
    sdn.ip("h1", "route del 10.244.0.0/16 via 169.254.76.1")

    def mended() -> bool:
        now = sdn.ip("h1", "neigh show nud permanent").splitlines() + sdn.ip("h1", "route").splitlines()
        return sorted(now) == before

    until(mended, "both are back", HEALED_WITHIN)


@pytest.mark.alone
def test_a_flow_that_was_changed_is_put_right(sdn: SdnRun) -> None:
    """A changed prefix and a surplus flow with our cookie are repaired."""
    before = sdn.ours("sw3")
    forward = next(f for f in sdn.flows("sw3") if f["table"] == 102 and f["priority"] > 100)
    text = f"cookie={forward['cookie']},table=102,priority={forward['priority']},{','.join(forward['match'])}"
    sdn.ofctl("add-flow", "sw3", f"{text},actions=drop")
    sdn.ofctl("add-flow", "sw3", "cookie=0x4c53050000000001,table=102,priority=900,ip,actions=drop")
    until(lambda: sdn.ours("sw3") == before, "the flows are right", HEALED_WITHIN)


def test_a_link_that_fails_is_gone_round(sdn: SdnRun) -> None:
    """The leaves' own link is cut: by the spine within two seconds; and back when it is repaired."""
    target = sdn.address("c2")
    until(lambda: set(_by(sdn)) == {"sw2", "sw3"}, "the short way is taken")
    sdn.fail("sw2", "link-down:sw3")
    until(lambda: sdn.pings("c1", target), "c1 reaches c2 by the spine", HEALED_WITHIN)
    until(lambda: "sw1" in _by(sdn), "the trace goes by the spine")
    sdn.well("sw2")
    until(lambda: set(_by(sdn)) == {"sw2", "sw3"}, "the short way is taken again")
    assert sdn.pings("c1", target)


def test_a_trace_walks_the_switches_and_names_what_drops(sdn: SdnRun) -> None:
    """Flows with cookie and counter, both ways; and the foreign flow that takes the packet."""
    told: dict[str, Any] = {}

    def walked(target: str, condition: Callable[[], object]) -> None:
        def look() -> object:
            told.update(sdn.traced("c1", target))
            return condition()

        until(look, f"the trace to {target} is told")  # a machine that is out of breath may not tell its part in time

    walked("c2", lambda: told["reachable"] and "sw1" not in {hop["host"] for hop in told["hops"]})
    steps = [hop for hop in told["hops"] if hop["namespace"] == "switch"]
    assert [hop["host"] for hop in steps] == ["sw2", "sw2", "sw2", "sw3", "sw3"]
    assert all("cookie 0x4c53" in hop["detail"] and "packets" in hop["detail"] for hop in steps)
    sdn.ofctl("add-flow", "sw3", f"cookie=0x99,priority=50000,ip,nw_dst={sdn.address('c2')},actions=drop")
    walked("c2", lambda: "a foreign flow" in told["reason"])
    assert told["broken_at"].startswith("sw3/")
    sdn.ofctl("del-flows", "sw3", "cookie=0x99/-1")
    walked("10.244.3.3", lambda: "nobody has" in told["reason"])
    assert not told["reachable"]
    walked("c2", lambda: told["reachable"])


def test_a_host_sends_from_its_own_prefixes_alone(sdn: SdnRun) -> None:
    """Another's address as a source is dropped and counted; so is a packet that is sent past the gateway."""
    forged = sdn.address("c2").rpartition(".")[0] + ".77"
    target = sdn.address("c3")
    before = sdn.dropped("foreign")
    sdn.ip("h1", f"addr add {forged}/32 dev lo")
    argv = f"ping -c2 -i0.2 -W1 -I {forged} {target}"
    try:
        sdn.run("exec", "h1", "--", argv, code=1)
    finally:
        sdn.ip("h1", f"addr del {forged}/32 dev lo")
    until(lambda: sdn.dropped("foreign") >= before + 2, "the forged packets are counted")
    before = sdn.dropped("past")
    sdn.ip("h1", f"route add {target}/32 via 192.0.2.3")
    try:
        sdn.run("exec", "h1", "--", f"ping -c2 -i0.2 -W1 {target}", code=1)
    finally:
        sdn.ip("h1", f"route del {target}/32 via 192.0.2.3")
    until(lambda: sdn.dropped("past") >= before + 2, "what went past the gateway is counted")
    assert _reaches(sdn)


def test_the_gateway_answers_and_hosts_keep_their_own_traffic(sdn: SdnRun) -> None:
    """ARP and neighbour solicitation for the gateway have answers; hosts reach each other as before."""
    answer = sdn.inside("h1", "arping -c1 -w5 -I eth0 169.254.76.1")
    assert "02:4C:53:00:00:01" in answer.upper()
    sdn.ip("h1", "neigh del fe80::4c:53ff:fe00:1 dev eth0")
    sdn.run("exec", "h1", "--", "ping -c1 -W1 -I eth0 fe80::4c:53ff:fe00:1", code=-1)
    until(lambda: "02:4c:53:00:00:01" in sdn.ip("h1", "neigh show fe80::4c:53ff:fe00:1"), "the gateway's MAC is known")
    assert sdn.pings("h1", "192.0.2.2")
    assert sdn.pings("h1", "2001:db8:1::3")


def test_a_host_with_another_mac_is_followed(sdn: SdnRun) -> None:
    """Its agent hears of it, and the switches let it in by the new one, long before anything is checked again."""
    before = next(h["mac"] for h in sdn.controller()["hosts"] if h["host"] == "h3")
    for mac in ("06:00:00:00:00:33", before):
        sdn.ip("h3", f"link set eth0 address {mac}")
        until(
            lambda mac=mac: any(f"dl_src={mac}" in flow for flow in sdn.ours("sw2")),
            "the switch knows it",
            10 * SHARED,
        )
        until(lambda: sdn.pings("c3", sdn.address("c2")), "c3 reaches c2")
    until(sdn.settled, "nothing differs")


def test_two_hosts_with_one_mac_keep_their_prefixes_where_they_are(sdn: SdnRun) -> None:
    """H3 is given the MAC of h1: both are named, neither's place changes, and both are reached from another switch."""
    places = {h["host"]: (h["switch"], h["port"]) for h in sdn.controller()["hosts"]}
    macs = {h["host"]: h["mac"] for h in sdn.controller()["hosts"]}
    sdn.ip("h3", f"link set eth0 address {macs['h1']}")
    try:
        until(lambda: "host h1: its MAC" in str(sdn.controller()["problems"]), "h1 is named")
        assert f"host h3: its MAC {macs['h1']} is also that of host h1" in str(sdn.controller()["problems"])
        for name in ("c1", "c3"):
            until(lambda name=name: sdn.pings("c2", sdn.address(name)), f"c2 reaches {name}")
        assert {h["host"]: (h["switch"], h["port"]) for h in sdn.controller()["hosts"]} == places
    finally:
        sdn.ip("h3", f"link set eth0 address {macs['h3']}")
    until(lambda: not sdn.controller()["problems"], "nobody is named any more")
    until(sdn.settled, "nothing differs")


def test_another_controller_takes_over(sdn: SdnRun) -> None:
    """The active one is killed: what runs continues, the other is active within five seconds, new containers come."""
    until(lambda: sdn.controller()["active"], "one is active")
    first = sdn.controller()["leader"]
    other = {"ctl1": "ctl2", "ctl2": "ctl1"}[first]
    with sdn.no_loss("c1", sdn.address("c2")):
        sdn.fail(first, "controller-kill")
        until(lambda: sdn.controller(other)["active"], f"{other} is active", TAKEN_OVER * SHARED)
        until(lambda: sdn.status("h1")["controller"] == other, "the agents know")
        until(lambda: sdn.settled(other), "it finds nothing to do")
        sdn.container("h2", "c9")
        until(lambda: sdn.pings("c1", sdn.address("c9")), "the new container is reached")
    sdn.ofctl("del-flows", "sw2", "table=102,cookie=0x4c53000000000000/0xffff000000000000")
    until(lambda: sdn.settled(other), "the new one heals")
    sdn.well(first)
    until(lambda: sdn.controller(first)["leader"] == other, "the old one stands by")


def test_a_controller_that_starts_without_a_switch_leaves_the_others_as_they_are(sdn: SdnRun) -> None:
    """Sw3 is not reached, and carries packets: the ways to its hosts stay, and doctor and diff name it.

    Before one is active again, no network is made.
    """
    until(sdn.settled, "nothing differs")
    before = {name: sdn.ours(name) for name in ("sw1", "sw2")}
    with sdn.no_loss("c1", sdn.address("c2")), sdn.unreachable("sw3"):
        for name in ("ctl1", "ctl2"):
            sdn.fail(name, "controller-kill")
        until(lambda: sdn.status("h1")["controller"] == "", "none is active")
        with pytest.raises(Unavailable, match="no controller is active"):
            sdn.call("h1", "POST", "/v1/networks", {"name": "more", "pools": ["10.9.0.0/16"], "backend": "sdn"})
        sdn.well("ctl1")
        until(lambda: sdn.controller("ctl1")["active"], "it is active")
        until(lambda: "sw3" in sdn.switch("sw3", "ctl1")["problem"], "it says that sw3 does not answer")
        begun = time.monotonic()
        while time.monotonic() < begun + TAKE_OVER + 1:  # for as long as it may think that all hosts could be found
            assert {name: sdn.ours(name) for name in before} == before
        (unknown,) = sdn.controller("ctl1", "/diff")["unknown"]
        assert unknown["device"] == "sw3"
        checks = [one for one in sdn.call("h1", "GET", "/v1/doctor") if one["check"] == "controller"]
        assert any(one["status"] == "fail" and "sw3" in one["detail"] for one in checks)
    until(sdn.settled, "sw3 answers, and nothing differs")
    until(lambda: {name: sdn.ours(name) for name in before} == before, "all is as it was")
    sdn.well("ctl2")


def test_a_switch_that_has_lost_its_flows_keeps_its_links(sdn: SdnRun) -> None:
    """Sw1 is not reached and forwards LLDP frames, so its neighbours hear each other through it; nothing is lost."""
    until(lambda: set(_by(sdn)) == {"sw2", "sw3"}, "the short way is taken")
    until(sdn.settled, "nothing differs")
    pairs = {(a, b) for a in ("sw1", "sw2", "sw3") for b in ("sw1", "sw2", "sw3") if a != b}
    before = {name: sdn.heard(name, f"{name}-sw1") for name in ("sw2", "sw3")}
    with sdn.no_loss("c1", sdn.address("c2")):
        with sdn.unreachable("sw1") as address:
            commands.run("ovs-ofctl", "-O", "OpenFlow13", "del-flows", address)
            commands.run("ovs-ofctl", "-O", "OpenFlow13", "add-flow", address, "priority=0,actions=NORMAL")
            for name, known in before.items():
                until(
                    lambda name=name, known=known: sdn.heard(name, f"{name}-sw1").isdisjoint(known),
                    f"what {name} noted of sw1 itself has ended",
                )
                assert sdn.heard(name, f"{name}-sw1")
            silent = {(a, b, "silent" if "sw1" in (a, b) else "up") for a, b in pairs}
            until(lambda: _links(sdn) == silent, "the links of sw1 are where they were, and silent")
        until(lambda: _links(sdn) == {(a, b, "up") for a, b in pairs}, "all links are up")
        until(sdn.settled, "nothing differs")
    assert _reaches(sdn)


def test_switches_that_start_anew_get_all_flows(sdn: SdnRun) -> None:
    """The daemon is killed, and comes back with none."""
    sdn.fail("sw1", "switch-kill")
    until(lambda: sdn.switch("sw2")["problem"] != "", "the controller says that it does not answer")
    sdn.well("sw1")
    until(lambda: _reaches(sdn), "containers reach each other")
    until(lambda: sdn.switch("sw1")["problem"] == "", "the problem is over")
    until(sdn.settled, "nothing differs")


def test_a_switch_of_older_openflow_is_named(sdn: SdnRun) -> None:
    """It speaks only 1.0: that is reported, the others continue; when it speaks 1.3 again, everything is ok."""
    sdn.vsctl("set", "bridge", "sw1", "protocols=OpenFlow10")
    until(lambda: "OpenFlow 1.0" in sdn.switch("sw1")["problem"], "the version is named")
    assert sdn.switch("sw2")["problem"] == ""
    sdn.vsctl("clear", "bridge", "sw1", "protocols")
    until(lambda: sdn.switch("sw1")["problem"] == "", "it is well again")
    until(sdn.settled, "nothing differs")
    until(lambda: _reaches(sdn), "containers reach each other")


def test_without_the_store_what_runs_goes_on(sdn: SdnRun) -> None:
    """Etcd is killed: containers reach each other, and the controllers report it; etcd comes back."""
    try:
        with sdn.no_loss("c1", sdn.address("c2")):
            os.kill(sdn.etcd(), signal.SIGKILL)
            until(lambda: sdn.controller()["store"]["problem"] != "", "the store is missed")
            until(lambda: not any(sdn.controller(n)["active"] for n in ("ctl1", "ctl2")), "nobody claims to be active")
    finally:  # the tests after this one need it
        etcd_servers.start(record.load(sdn.name))
    until(lambda: any(sdn.controller(n)["active"] for n in ("ctl1", "ctl2")), "one is active again")
    until(sdn.settled, "nothing differs")
    assert _reaches(sdn)


def test_the_command_line_tells(sdn: SdnRun) -> None:
    """Status and plan are reported as text, flows as JSON; the metrics have every prefix."""
    until(lambda: "active" in sdn.exec("h1", "linkspan controller status", code=-1), "the status is told")
    plan = sdn.exec("h1", "linkspan controller plan --switch sw2")
    assert plan.count("ovs-ofctl -O OpenFlow13 add-flow") > 20
    until(lambda: all(one["present"] for one in sdn.controller(path="/plan")["plan"]), "all that is planned is there")
    told = sdn.flows("sw2")
    assert {flow["switch"] for flow in told} == {"sw2"}
    assert any(not flow["ours"] for flow in told)
    metrics = Client(f"{sdn.folder}/ctl1/controller.sock").call("GET", "/metrics")
    for prefix in sdn.controller()["prefixes"]:
        assert f'prefix="{prefix["prefix"]}"' in metrics
