"""Healing: what somebody else breaks is back within two seconds, and reported; foreign objects are not touched."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from support.agent.agent_host import Host, first_ip, pings, run
from support.agent.cpu_time import measured
from support.polling import HEALED_WITHIN, until

POOLS = ("10.201.0.0/24", "fd00:201::/64")
PORT = {"host_ip": "", "host_port": 8080, "port": 80, "protocol": "tcp"}
QUIET = 3.0
"""Seconds for which nothing may happen: longer than the poll of the settings, and than an event takes to settle."""


class Sound:
    """A host with a bridged and a routed network, a container on each, and things of others beside them."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._foreign()
        host.network("demo", *POOLS)
        host.network("far", "10.202.0.0/24", "fd00:202::/64", options={"mode": "routed"})
        host.cli("network", "allow", "demo", "far")
        self.bridged, self.routed = host.world.namespace(), host.world.namespace()
        self.endpoint = host.attach(self.bridged, ports=[PORT])
        self.far = host.attach(self.routed, "far")
        self.others = self._seen()

    def _foreign(self) -> None:
        netns = self.host.netns
        run("ip", "link", "add", "ls-foreign", "type", "veth", "peer", "name", "foreign1", netns=netns)
        run("ip", "addr", "add", "192.0.2.1/24", "dev", "ls-foreign", netns=netns)
        for name in ("ls-foreign", "foreign1"):
            run("ip", "link", "set", name, "up", netns=netns)
        run("ip", "route", "add", "203.0.113.0/24", "via", "192.0.2.9", netns=netns)
        table = "add table inet foreign; add chain inet foreign c { type filter hook input priority 5; }"
        run("nft", f"{table}; add rule inet foreign c tcp dport 9 drop", netns=netns)

    def _seen(self) -> tuple[str, ...]:
        netns = self.host.netns
        return (
            run("ip", "-4", "-o", "addr", "show", "ls-foreign", netns=netns),
            run("ip", "route", "show", "203.0.113.0/24", netns=netns),
            run("nft", "list", "ruleset", netns=netns).partition("table inet foreign")[2],
        )

    def works(self) -> bool:
        """Both containers reach the host and each other, by both families."""
        return all(
            pings(self.bridged, first_ip(self.far, family)) and pings(self.host.netns, first_ip(e, family))
            for family in (4, 6)
            for e in (self.endpoint, self.far)
        )

    def broken(self, *command: str, flushes_others: bool = False) -> list[dict[str, Any]]:
        """Break something by a command on the host; return the repairs, after all is checked.

        It is repaired within two seconds of the break, told in `status`, `events` and the metric, and nothing
        of others is touched.
        """
        before = len(self._heals())
        run(*command, netns=self.host.netns)
        until(
            lambda: len(self._heals()) > before and not self.host.differences(),
            f"a repair, and no difference, after {command}",
            HEALED_WITHIN,
        )
        until(self.works, f"traffic after {command}", HEALED_WITHIN)
        if not flushes_others:
            assert self._seen() == self.others
        heals = self._heals()[before:]
        told = {(h["kind"], h["key"], h["what"]) for h in self.host.heals()}
        assert {(h["kind"], h["key"], h["change"]) for h in heals} <= told or len(heals) > len(told)
        text = self.host.client.call("GET", "/metrics")
        counted = {k: float(n) for k, n in re.findall(r'linkspan_heals_total\{kind="(\w+)"\} (\S+)', text)}
        assert sum(counted.values()) == len(self._heals())
        assert {h["kind"] for h in heals} <= counted.keys()
        return heals

    def _heals(self) -> list[dict[str, Any]]:
        return [e["about"] for e in events(self.host) if e["type"] == "heal"]


def events(host: Host) -> list[dict[str, Any]]:
    """Return what `events` shows."""
    return [json.loads(line) for line in host.client.lines("/v1/events")]


@pytest.fixture
def sound(host: Host) -> Iterator[Sound]:
    """All is ok, at the beginning and at the end."""
    made = Sound(host)
    assert made.works()
    assert host.differences() == []
    yield made
    assert host.differences() == []
    assert host.check()["ok"]


def kinds(heals: list[dict[str, Any]]) -> set[tuple[str, str]]:
    """Return (kind, what was done) of repairs."""
    return {(h["kind"], h["change"]) for h in heals}


@pytest.mark.alone
def test_a_flushed_ruleset_comes_back(sound: Sound) -> None:
    """`nft flush ruleset` takes all tables; ours are back with their sets, chains and elements."""
    tables = {name: rules(sound.host, name) for name in ("inet", "bridge")}
    healed = kinds(sound.broken("nft", "flush", "ruleset", flushes_others=True))
    assert healed >= {(f"Nft{kind}", "added") for kind in ("Table", "Set", "Chain", "Element")}
    assert {name: rules(sound.host, name) for name in tables} == tables


def rules(host: Host, family: str) -> list[str]:
    """Return the words of our table, sorted, for sets keep no order."""
    return sorted(run("nft", "list", "table", family, "linkspan", netns=host.netns).replace(",", "").split())


@pytest.mark.alone
def test_single_elements_and_rules_come_back(sound: Sound) -> None:
    """One element deleted or added, one rule deleted or added, is one repair of that object."""
    host = sound.host
    port = f'"{sound.endpoint["host_ifname"]}" . {sound.endpoint["mac"]}'
    healed = sound.broken("nft", f"delete element bridge linkspan senders4 {{ {port} . 10.201.0.2 }}")
    assert [(h["kind"], h["change"]) for h in healed] == [("NftElement", "added")]
    healed = sound.broken("nft", f"add element bridge linkspan senders4 {{ {port} . 10.201.0.77 }}")
    assert [(h["kind"], h["change"]) for h in healed] == [("NftElement", "removed")]
    handles = run("nft", "-a", "list", "chain", "inet", "linkspan", "forward", netns=host.netns)
    handle = re.findall(r"reject.*# handle (\d+)", handles)[0]
    healed = sound.broken("nft", "delete", "rule", "inet", "linkspan", "forward", "handle", handle)
    assert kinds(healed) == {("NftChain", "changed")}
    healed = sound.broken("nft", "insert", "rule", "inet", "linkspan", "input", "tcp", "dport", "1", "drop")
    assert kinds(healed) == {("NftChain", "changed")}
    healed = sound.broken("nft", "delete", "table", "bridge", "linkspan")
    assert ("NftTable", "added") in kinds(healed)


@pytest.mark.alone
def test_a_mapping_led_elsewhere_comes_back(sound: Sound) -> None:
    """A published port that was pointed at another container leads to its own again."""
    change = "delete element inet linkspan publish4 { tcp . 8080 }; "
    change += "add element inet linkspan publish4 { tcp . 8080 : 10.201.0.99 . 80 }"
    assert kinds(sound.broken("nft", change)) == {("NftElement", "changed")}
    assert "10.201.0.2 . 80" in run("nft", "list", "map", "inet", "linkspan", "publish4", netns=sound.host.netns)


@pytest.mark.alone
def test_a_deleted_bridge_comes_back_with_its_ports(sound: Sound) -> None:
    """The bridge, its MAC, addresses, routes, settings and ports are as before."""
    show = ("ip", "-j", "link", "show", "ls-demo")
    before = json.loads(run(*show, netns=sound.host.netns))[0]["address"]
    healed = kinds(sound.broken("ip", "link", "delete", "ls-demo"))
    assert healed >= {("Bridge", "added"), ("Veth", "changed"), ("Address", "added")}
    assert json.loads(run(*show, netns=sound.host.netns))[0]["address"] == before


@pytest.mark.alone
def test_deleted_pairs_come_back_in_their_containers(sound: Sound) -> None:
    """A host end that was deleted is made again with the container's interface, MAC, addresses and routes."""
    for netns, endpoint in ((sound.bridged, sound.endpoint), (sound.routed, sound.far)):
        healed = kinds(sound.broken("ip", "link", "delete", endpoint["host_ifname"]))
        assert ("Veth", "added") in healed
        shown = json.loads(run("ip", "-j", "addr", "show", "eth0", netns=netns))[0]
        assert shown["address"] == endpoint["mac"]
        own = {f"{a['local']}/{a['prefixlen']}" for a in shown["addr_info"] if a["scope"] == "global"}
        assert own == set(endpoint["addresses"])


@pytest.mark.alone
def test_links_set_down_come_up(sound: Sound) -> None:
    """Bridge, bridge port and routed host end are up again, with the addresses and routes that fell."""
    for name in ("ls-demo", sound.endpoint["host_ifname"], sound.far["host_ifname"]):
        healed = sound.broken("ip", "link", "set", name, "down")
        assert name in {h["key"] for h in healed}


@pytest.mark.alone
def test_ports_are_put_right(sound: Sound) -> None:
    """A port that was taken off its bridge, or has lost hairpin, MTU or MAC, is as before."""
    name = sound.endpoint["host_ifname"]
    for change in (
        ("ip", "link", "set", name, "nomaster"),
        ("ip", "link", "set", name, "type", "bridge_slave", "hairpin", "off"),
        ("ip", "link", "set", name, "mtu", "1400"),
        ("ip", "link", "set", name, "address", "02:00:00:00:00:99"),
        ("ip", "link", "set", "ls-demo", "mtu", "1400"),
        ("ip", "link", "set", "ls-demo", "address", "02:00:00:00:00:99"),
    ):
        healed = kinds(sound.broken(*change))
        assert healed & {("Veth", "changed"), ("Bridge", "changed")}, change


@pytest.mark.alone
def test_addresses_and_routes_come_back(sound: Sound) -> None:
    """Gateway addresses, host routes and the pools' unreachable routes are put again; strange ones go."""
    far = sound.far["host_ifname"]
    for change, expected in (
        (("ip", "addr", "flush", "dev", "ls-demo", "scope", "global"), ("Address", "added")),
        (("ip", "addr", "del", "10.202.0.1/32", "dev", far), ("Address", "added")),
        (("ip", "-6", "addr", "flush", "dev", far, "scope", "global"), ("Address", "added")),
        (("ip", "route", "del", "10.202.0.2"), ("Route", "added")),
        (("ip", "-6", "route", "del", "fd00:202::2"), ("Route", "added")),
        (("ip", "route", "del", "unreachable", "10.201.0.0/24"), ("Route", "added")),
        (("ip", "route", "flush", "proto", "76"), ("Route", "added")),
        (("ip", "route", "replace", "10.202.0.2", "dev", "ls-foreign", "proto", "76"), ("Route", "changed")),
        (("ip", "route", "add", "10.9.0.0/16", "dev", "ls-demo", "proto", "76"), ("Route", "removed")),
        (("ip", "addr", "add", "10.201.0.200/24", "dev", "ls-demo"), ("Address", "removed")),
    ):
        assert expected in kinds(sound.broken(*change)), change


@pytest.mark.alone
def test_settings_are_put_again(sound: Sound) -> None:
    """Kernel settings have no events, but are back in time."""
    for name, value in (
        ("net.ipv4.ip_forward", "0"),
        ("net.ipv6.conf.all.forwarding", "0"),
        ("net.ipv4.conf.ls-demo.route_localnet", "0"),
        ("net.ipv6.conf.ls-demo.accept_ra", "1"),
        ("net.ipv6.conf.ls-demo.disable_ipv6", "1"),
    ):
        healed = sound.broken("sysctl", "-qw", f"{name}={value}")
        assert name.replace(".", "/") in {h["key"] for h in healed}


def test_what_is_inside_a_container_is_its_own(sound: Sound) -> None:
    """A container that takes its interface down or adds an address is left alone; `diff` shows what is missing."""
    run("ip", "addr", "add", "192.0.2.77/32", "dev", "eth0", netns=sound.routed)
    run("ip", "link", "set", "eth0", "down", netns=sound.routed)
    assert ("Interface", "changed") in {(d["kind"], d["what"]) for d in sound.host.differences()}
    before = len(events(sound.host))
    quiet(sound.host, before)
    assert "192.0.2.77" in run("ip", "addr", netns=sound.routed)
    run("ip", "link", "set", "eth0", "up", netns=sound.routed)
    sound.host.restart()  # an agent that starts puts what is missing, and removes nothing
    assert "192.0.2.77" in run("ip", "addr", netns=sound.routed)
    run("ip", "addr", "del", "192.0.2.77/32", "dev", "eth0", netns=sound.routed)
    assert sound.works()


def test_what_differs_inside_a_container_is_told_apart_with_what_to_do(sound: Sound) -> None:
    """`diff` names the container, and that nothing is put back; `status` is ok; what it says to do repairs it."""
    host = sound.host
    before = len(events(host))
    run("ip", "link", "set", "eth0", "down", netns=sound.bridged)
    found = host.differences()
    assert ("Interface", "changed") in {(one["kind"], one["what"]) for one in found}
    assert {one["inside"] for one in found} == {sound.bridged}
    said = host.cli("diff", code=3)
    assert f"{sound.bridged}  put    Interface" in said
    assert "different: up no, not yes" in said
    assert "linkspan repairs nothing inside a running container" in said
    quiet(host, before)
    assert host.json("status")["ok"]
    for line in host.json("plan"):
        if not line["present"]:
            run("sh", "-c", line["command"], netns=host.netns)
    assert host.differences() == []
    assert sound.works()
    run("ip", "route", "del", "default", netns=sound.routed)
    assert {one["inside"] for one in host.differences()} == {sound.routed}
    host.restart()
    assert host.differences() == []


def quiet(host: Host, events_before: int) -> None:
    """Nothing happens for a while."""
    deadline = time.monotonic() + QUIET
    while time.monotonic() < deadline:
        assert len(events(host)) == events_before, events(host)[events_before:]
        time.sleep(0.1)


@pytest.mark.alone
def test_a_second_pass_changes_nothing_and_costs_nothing(sound: Sound) -> None:
    """While nothing happens, nothing is repaired, and the agent uses next to no CPU."""
    host = sound.host
    assert host.process is not None
    until(lambda: not host.differences(), "no difference")
    before = len(events(host))
    used = measured(host.process, QUIET)
    assert used.share <= 0.02, used
    quiet(host, before)
    assert host.differences() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_packet_is_lost_over_a_restart(sound: Sound, number: signal.Signals) -> None:
    """A ping from container to container, and one to the host, lose nothing while the agent ends and starts."""
    command = ["ip", "netns", "exec", sound.bridged, "ping", "-i", "0.01", "-w", "30"]
    targets = (first_ip(sound.far), first_ip(sound.far, 6), "10.201.0.1")
    running = [subprocess.Popen([*command, t], stdout=subprocess.PIPE, text=True) for t in targets]
    try:
        for _ in range(4):  # each takes at least a tenth of a second, so more than 20 requests are sent
            sound.host.restart(number)
    finally:
        for process in running:
            process.send_signal(signal.SIGINT)
    for process in running:
        assert process.stdout is not None
        said = process.stdout.read()
        process.wait()
        sent, received = map(int, re.findall(r"(\d+) packets transmitted, (\d+) received", said)[0])
        assert sent > 20
        assert received >= sent - 1, said[-200:]  # the last one may be under way
        assert max(map(int, re.findall(r"icmp_seq=(\d+)", said))) >= sent - 1


def test_what_broke_while_no_agent_ran_is_mended_at_its_start(sound: Sound, container: Callable[[], str]) -> None:
    """Everything that was changed in its absence is corrected before it says ready."""
    host = sound.host
    host.stop(signal.SIGKILL)
    run("nft", "flush", "ruleset", netns=host.netns)
    run("ip", "link", "delete", "ls-demo", netns=host.netns)
    run("ip", "link", "delete", sound.far["host_ifname"], netns=host.netns)
    run("sysctl", "-qw", "net.ipv4.ip_forward=0", netns=host.netns)
    run("ip", "addr", "flush", "dev", "eth0", netns=sound.bridged)
    host.start()
    assert host.differences() == []
    assert sound.works()


@pytest.mark.alone
def test_rules_in_dockers_chain_come_back(sound: Sound) -> None:
    """The rules in DOCKER-USER are added when Docker starts, and again after a flush, and only they are ours."""
    netns = sound.host.netns

    def rules() -> str:
        return run("iptables", "-S", "DOCKER-USER", netns=netns)

    def stands() -> bool:
        found = rules()
        return all(f"{side} 10.20{n}.0.0/24" in found for side in ("-s", "-d") for n in (1, 2))

    for words in ("-P FORWARD DROP", "-N DOCKER-USER", "-A DOCKER-USER -s 203.0.113.9/32 -j DROP"):
        run("iptables", *words.split(), netns=netns)
    run("iptables", "-I", "FORWARD", "-j", "DOCKER-USER", netns=netns)
    until(stands, "rules in the chain", HEALED_WITHIN)
    assert sound.works()
    run("iptables", "-F", "DOCKER-USER", netns=netns)
    until(stands, "rules in the flushed chain", HEALED_WITHIN)
    assert sound.works()
    assert ("ForwardAccept", "added") in {(h["kind"], h["what"]) for h in sound.host.heals()}
    run("iptables", "-A", "DOCKER-USER", "-s", "203.0.113.8/32", "-j", "DROP", netns=netns)
    until(lambda: not sound.host.differences(), "no difference", HEALED_WITHIN)
    assert "203.0.113.8/32" in rules()


def test_a_link_of_anothers_with_our_name_is_told(host: Host) -> None:
    """If a foreign bridge has the name of ours, the network is refused, and that link stays unchanged."""
    run("ip", "link", "add", "ls-demo", "type", "bridge", netns=host.netns)
    run("ip", "addr", "add", "192.0.2.1/24", "dev", "ls-demo", netns=host.netns)

    def seen() -> tuple[str, str]:
        link = run("ip", "-d", "addr", "show", "ls-demo", netns=host.netns)
        return link, run("sysctl", "-a", "-r", "ls-demo", netns=host.netns)

    before = seen()
    said = host.cli("network", "create", "demo", "--pool", "10.201.0.0/24", code=1)
    assert "ls-demo exists and is not linkspan's" in said
    assert seen() == before
    assert host.json("network", "list") == []
    assert host.differences() == []


@pytest.mark.alone
def test_a_link_of_anothers_that_took_our_name_meanwhile_is_told(sound: Sound) -> None:
    """While a foreign link has the bridge's name, `status` reports it; when it is gone, the bridge is back."""
    host = sound.host
    host.stop(signal.SIGKILL)
    run("ip", "link", "delete", "ls-demo", netns=host.netns)
    run("ip", "link", "add", "ls-demo", "type", "bridge", netns=host.netns)
    host.start()
    (drift,) = host.client.call("GET", "/v1/status")["drift"]
    assert "ls-demo exists and is not linkspan's" in drift
    assert "10.201.0.1" not in run("ip", "addr", "show", "ls-demo", netns=host.netns)
    run("ip", "link", "delete", "ls-demo", netns=host.netns)
    until(lambda: not host.differences(), "the bridge", HEALED_WITHIN)
    until(sound.works, "traffic", HEALED_WITHIN)
    assert host.client.call("GET", "/v1/status")["drift"] == []
