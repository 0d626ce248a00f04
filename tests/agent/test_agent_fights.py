"""Another program that undoes what linkspan puts back: pauses, one event, its name; guards hold or ports are down."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from linkspan.core import fights
from support.agent.agent_host import Host, World, first_ip, pings, run
from support.polling import SHARED, until

SOON = 30.0
"""Seconds in which a fight is noticed, or is over: the pauses of a short one are 4, 8 and 16."""
FIRST_PAUSE = 1.0
"""Seconds, beside other tests: a shorter first pause in agents that are copies (tests/support/copies.py)."""


class Ring:
    """A host with a bridged and a routed container, for which somebody else fights."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.host = Host(world)
        self.host.start()
        self.host.network("demo", "10.201.0.0/24")
        self.host.network("far", "10.202.0.0/24", options={"mode": "routed"})
        self.bridged, self.routed = world.namespace(), world.namespace()
        self.near, self.far = self.host.attach(self.bridged), self.host.attach(self.routed, "far")
        run("ip", "link", "add", "br9", "type", "bridge", netns=self.host.netns)
        run("ip", "link", "set", "br9", "up", netns=self.host.netns)

    @contextlib.contextmanager
    def fighter(self, command: str) -> Iterator[None]:
        """Run a command twenty times a second, for two minutes at most, while the block lasts."""
        loop = f"for n in $(seq 2400); do {command}; sleep 0.05; done"
        process = self.world.spawn(
            self.host.netns, "sh", "-c", loop, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            yield
        finally:
            process.kill()
            process.wait()

    def status(self) -> dict[str, Any]:
        """Return what `status` shows."""
        return dict(self.host.client.call("GET", "/v1/status"))

    def events(self, type_: str) -> list[dict[str, Any]]:
        """Return the events of a type."""
        found = [json.loads(line) for line in self.host.client.lines("/v1/events")]
        return [event for event in found if event["type"] == type_]

    def up(self, endpoint: dict[str, Any]) -> bool:
        """Return whether the host's end of an endpoint is up."""
        (link,) = json.loads(run("ip", "-j", "link", "show", endpoint["host_ifname"], netns=self.host.netns))
        return "UP" in link["flags"]

    def works(self) -> bool:
        """Return whether the host reaches both containers."""
        return all(pings(self.host.netns, first_ip(e)) for e in (self.near, self.far))

    def heals(self) -> int:
        """Return how many repairs the log names."""
        return self.host.log.read_text().count('"healed ')

    def well(self) -> bool:
        """Nothing differs, and packets pass."""
        return self.host.differences() == [] and self.status()["drift"] == [] and self.works()


@pytest.fixture
def ring(world: World) -> Iterator[Ring]:
    """Return a host without problems."""
    made = Ring(world)
    try:
        assert made.works()
        yield made
    finally:
        made.host.close()


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pauses be short in agents that start from now on (tests/unit/core/test_fights.py has the real ones)."""
    if SHARED > 1:
        monkeypatch.setattr(fights, "FIRST", FIRST_PAUSE)


@pytest.mark.usefixtures("short_pauses")
@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("ip link set FAR master br9", "Veth"),
        ("ip link delete FAR", "Veth"),
        ("ip route delete 10.202.0.2", "Route"),
        ("sysctl -qw net/ipv4/conf/FAR/forwarding=0", "LinkSysctl"),
        ("sysctl -qw net/ipv4/ip_forward=0", "Sysctl"),
        ("tc qdisc add dev FAR root pfifo limit 1", "ForeignQdisc"),
    ],
)
def test_a_fight_is_told_once_and_slows_down(ring: Ring, command: str, kind: str) -> None:
    """Three repairs, then pauses; status names the object while it is wrong; when it is quiet, everything is ok."""
    command = command.replace("FAR", ring.far["host_ifname"])
    with ring.fighter(command):
        until(lambda: ring.status()["fights"], f"a fight by {command}", SOON)
        words = f"keeps changing {kind} "
        until(lambda: any(words in drift for drift in ring.status()["drift"]), "the fight in drift")
        until(ring.host.differences, "it is wrong: now and then it has just been put back")
        until(lambda: ring.status()["fights"][0]["repairs"] > 3, "a repair after a pause", SOON)
        told = ring.heals()
        until(lambda: ring.status()["fights"][0]["repairs"] > 4, "one more", SOON)
        assert len([e for e in ring.events("heal") if e["about"]["kind"] == kind]) <= 3
        (fight,) = ring.events("fight")
        assert "keeps changing" in fight["what"]
        assert ring.heals() == told
    until(ring.well, "all is well when it is quiet", SOON)
    assert len(ring.events("fight")) == 1


@pytest.mark.usefixtures("short_pauses")
def test_a_program_that_changes_a_route_is_named(ring: Ring) -> None:
    """The kernel reports which process requested a change of routes and addresses."""
    loop = "for n in $(seq 600); do echo route delete 10.202.0.2; sleep 0.05; done | ip -force -batch -"
    with ring.fighter(loop):
        until(lambda: ring.status()["fights"], "a fight", SOON)
        (fight,) = ring.status()["fights"]
        assert fight["by"].startswith("ip, process ")
        (pid,) = [word for word in fight["by"].split() if word.isdigit()]
        run("kill", pid)
    until(ring.well, "all is well when it is quiet", SOON)


@pytest.mark.parametrize(
    "command", ["nft delete table inet linkspan", "nft flush ruleset", "nft flush chain inet linkspan guard"]
)
def test_ports_are_down_while_guards_do_not_hold(ring: Ring, command: str) -> None:
    """Rules come back at once each time; after three times the ports go down, and come up when the rules hold."""
    with ring.fighter(command):
        until(lambda: not ring.up(ring.far) and not ring.up(ring.near), "both ports down", SOON)
        status = ring.status()
        assert status["fights"][0]["ports_down"]
        until(lambda: "nft, process " in ring.status()["fights"][0]["by"], "the program's name")
        assert any("their ports are down until it is in force" in words for words in status["drift"])
        assert ring.host.differences() != []
        until(lambda: ring.status()["fights"][0]["repairs"] > 4, "the rules are put back still", SOON)
        told = ring.heals()
        until(lambda: ring.status()["fights"][0]["repairs"] > 6, "and again", SOON)
        assert not ring.up(ring.far)
        assert ring.heals() == told
    until(ring.well, "ports come up when the rules hold", SOON)
    words = [event["what"] for event in ring.events("fight")]
    assert any("ports are down" in what for what in words)
    assert any("come up" in what for what in words)


def test_ports_are_down_while_guards_cannot_be_put(ring: Ring) -> None:
    """Another program owns a table of our name, and the kernel lets nobody else write into it."""
    nft = ring.world.spawn(ring.host.netns, "nft", "-i", stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert nft.stdin is not None
    nft.stdin.write(b"delete table inet linkspan; add table inet linkspan { flags owner; }\n")
    nft.stdin.flush()
    until(lambda: not ring.up(ring.far) and not ring.up(ring.near), "both ports down", SOON)
    assert any("cannot put back NftTable inet linkspan" in words for words in ring.status()["drift"])
    nft.stdin.close()
    nft.wait()
    until(ring.well, "ports come up when the rules hold", SOON)


def test_only_the_port_whose_guard_does_not_hold_is_down(ring: Ring) -> None:
    """One container's entry in the guard is fought for: the others continue."""
    port = f'\\"{ring.near["host_ifname"]}\\" . {ring.near["mac"]}'
    entry = f"{port} . {first_ip(ring.near)}"
    with ring.fighter(f'nft "delete element bridge linkspan senders4 {{ {entry} }}"'):
        until(lambda: not ring.up(ring.near), "the port down", SOON)
        assert ring.up(ring.far)
        assert pings(ring.host.netns, first_ip(ring.far))
    until(ring.well, "the port comes up when the entry holds", SOON)


def test_a_container_that_comes_while_guards_do_not_hold_has_no_open_port(ring: Ring) -> None:
    """Its port comes up when the rules hold."""
    with ring.fighter("nft flush chain bridge linkspan guard"):
        until(lambda: not ring.up(ring.near), "the port down", SOON)
        late = ring.host.attach(ring.world.namespace())
        assert not ring.up(late)
    until(lambda: ring.up(late) and pings(ring.host.netns, first_ip(late)), "the port comes up", SOON)
