"""A lab under churn and failures for a while: pings that never pause, names that are asked for, leases that must stay.

The benchmark `bench/soak.py` has its long form, and the tests have a short one. What happens, by parts of the time:

- all the while containers come and go, and their names are asked for on other hosts
- 0.10 etcd's leading member is killed; 0.30 it comes back
- 0.40 two hosts do not reach each other; 0.50 they do again
- 0.60 agents are killed; 0.75 they start again
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from linkspan.lab import agents, containers, etcd_servers, faults, sockets, topology
from linkspan.lab.record import Container, Host, Lab
from linkspan.lab.underlay import PARTITION
from linkspan.store.etcd import EtcdStore
from support.dns_queries import ask

GATEWAY = "10.244.0.1"
EVERY = 0.2
"""Seconds between two pings of a pair."""
LATE = 5.0
"""Seconds after which a ping without an answer is lost."""
NAMED = 5.0
"""Seconds in which a name is right on every host."""
STEP = 0.5
"""Seconds between two containers that come, and go."""
STAY = 10
"""Containers of the churn that are there at a time."""
ASKED = 2
"""Hosts that are asked for each name that changes."""
PATIENCE = 120.0
_ECHO, _REPLY = 8, 0  # RFC 792


class Pair(NamedTuple):
    """Two containers on two hosts, of which the first pings the second."""

    source: Container
    target: Container


class Sent(NamedTuple):
    """A ping: of which pair, and when (monotonic clock)."""

    pair: Pair
    at: float


class Pings(threading.Thread):
    """Pings of all pairs, until it is stopped."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        super().__init__(name="pings")
        self.count = 0
        self._pairs = pairs
        self._open: dict[tuple[int, int], Sent] = {}
        """Pings without an answer, by the pair's number and the ping's."""
        self._over = threading.Event()
        self._ways: dict[str, socket.socket] = {}
        self._ready = selectors.DefaultSelector()
        for pair in pairs:
            if (netns := pair.source.namespace) not in self._ways:
                with sockets.inside(netns):
                    way = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
                way.setblocking(False)
                self._ways[netns] = way
                self._ready.register(way, selectors.EVENT_READ)

    def run(self) -> None:
        """Send and listen."""
        number, due = 0, time.monotonic()
        while not self._over.is_set():
            number += 1
            for index, pair in enumerate(self._pairs):
                self.count += 1
                self._open[index, number] = Sent(pair, time.monotonic())
                with contextlib.suppress(OSError):  # without a route it is lost, too
                    address = pair.target.addresses[0].partition("/")[0]
                    self._ways[pair.source.namespace].sendto(_echo(index, number), (address, 0))
            due = max(due + EVERY, time.monotonic())
            self._listen(due)
        self._listen(time.monotonic() + LATE)

    def _listen(self, until: float) -> None:
        while self._open and (left := until - time.monotonic()) > 0:
            for key, _ in self._ready.select(left):
                assert isinstance(key.fileobj, socket.socket)
                with contextlib.suppress(OSError):
                    packet = key.fileobj.recv(512)
                    start = (packet[0] & 15) * 4
                    if packet[start] == _REPLY:
                        self._open.pop(struct.unpack_from("!II", packet, start + 8), None)
        time.sleep(max(until - time.monotonic(), 0.0) if not self._over.is_set() else 0.0)

    def stop(self) -> list[Sent]:
        """End, and return the pings that were lost."""
        self._over.set()
        self.join()
        for way in self._ways.values():
            way.close()
        return list(self._open.values())


def _echo(index: int, number: int) -> bytes:
    body = struct.pack("!II", index, number)
    head = struct.pack("!BBHHH", _ECHO, 0, 0, index & 0xFFFF, number & 0xFFFF)
    total = sum(struct.unpack("!8H", head + body))
    total = (total & 0xFFFF) + (total >> 16)
    total += total >> 16
    return head[:2] + struct.pack("!H", ~total & 0xFFFF) + head[4:] + body


@dataclass
class Outcome:
    """Findings of a soak. Times are seconds."""

    pings: int = 0
    lost: list[Sent] = field(default_factory=list)
    cut: int = 0
    """Pings lost between the two hosts that did not reach each other."""
    came: int = 0
    asked: int = 0
    slowest: float = 0.0
    """The longest time until a name was right."""
    wrong: list[str] = field(default_factory=list)
    """Names that were not right in time."""
    changed: list[str] = field(default_factory=list)
    """Keys of leases and blocks that are others than at the beginning."""
    dead: list[str] = field(default_factory=list)
    """Living hosts that were taken for dead."""


class Soak:
    """One lab, for so many seconds; ``killed`` is how many agents are."""

    def __init__(
        self, lab: Lab, seconds: float, killed: int, say: Callable[[str], None], named: float = NAMED
    ) -> None:
        self.lab = lab
        self.found = Outcome()
        self._seconds = seconds
        self._named = named
        self._say = say
        self._killed = lab.hosts[-killed:]
        self._silent: list[Host] = []
        self._parted = (lab.hosts[0], lab.hosts[1])
        self._apart = (0.0, 0.0)
        self._gone = ""
        """The member of etcd that is killed."""
        self._churn: deque[str] = deque()
        self._random = random.Random()  # noqa: S311 - it chooses hosts

    def run(self) -> Outcome:
        """Do all of it."""
        self._say("names are known everywhere")
        self._everywhere(PATIENCE)
        self.found = Outcome()
        before = self._records()
        first = [next(c for c in self.lab.containers if c.host == host.name) for host in self.lab.hosts]
        steps = range(1, min(3, len(first)))
        pings = Pings([Pair(one, first[(n + step) % len(first)]) for n, one in enumerate(first) for step in steps])
        pings.start()
        try:
            self._go_on()
        finally:
            lost = pings.stop()
        self._say("every name on every host")
        self._everywhere(self._named)
        self.found.pings = pings.count
        cut = [one for one in lost if self._excused(one)]
        self.found.cut, self.found.lost = len(cut), [one for one in lost if one not in cut]
        after = self._records()
        self.found.changed = sorted(key for key in before | after if before.get(key) != after.get(key))
        return self.found

    def _excused(self, sent: Sent) -> bool:
        names = {host.name for host in self._parted}
        begun, ended = self._apart
        return {sent.pair.source.host, sent.pair.target.host} == names and begun <= sent.at <= ended

    def _go_on(self) -> None:
        events: list[tuple[float, str, Callable[[], None]]] = [
            (0.10, "etcd's leader is killed", self._kill_member),
            (0.30, "it comes back", self._revive_member),
            (0.40, "two hosts are parted", self._part),
            (0.50, "they reach each other", self._join),
            (0.60, "agents are killed", self._kill_agents),
            (0.75, "they start again", self._start_agents),
        ]
        begun = time.monotonic()
        while (now := time.monotonic() - begun) < self._seconds:
            if events and now >= events[0][0] * self._seconds:
                _, what, event = events.pop(0)
                self._say(f"{now:.0f} s: {what}")
                event()
            self._come_and_go()
            self._look_at_hosts()
            time.sleep(max(0.0, begun + now + STEP - time.monotonic()))
        assert not events, "the time was too short for all that was to happen"

    # -------------------------------------------------------------- what happens

    def _kill_member(self) -> None:
        self._gone = etcd_servers.leader(self.lab)
        assert self._gone, "etcd has no leader"
        etcd_servers.kill(self.lab, self._gone)

    def _revive_member(self) -> None:
        etcd_servers.start(self.lab)

    def _part(self) -> None:
        one, other = self._parted
        self._apart = (time.monotonic() - EVERY, float("inf"))
        faults.do(self.lab, one, PARTITION + other.name)

    def _join(self) -> None:
        faults.mend(self.lab, self._parted[0])
        self._apart = (self._apart[0], time.monotonic() + EVERY)

    def _kill_agents(self) -> None:
        for host in self._killed:
            faults.do(self.lab, host, faults.KILLED)
            self._silent.append(host)
        names = {c.host: c.name for c in self.lab.containers}
        self._expect({names[host.name]: [] for host in self._killed}, self._some())

    def _start_agents(self) -> None:
        agents.start(self.lab, self._killed)
        for host in self._killed:
            host.broken = []
        self.lab.save()
        self._silent = []
        there = {c.host: c for c in self.lab.containers}
        back = (there[host.name] for host in self._killed)
        self._expect({c.name: _addresses(c) for c in back}, self._some())

    def _come_and_go(self) -> None:
        self.found.came += 1
        host, name = self._random.choice(self._living()), f"x{self.found.came}"
        containers.add(self.lab, host.name, name, self.lab.network, [])
        self._churn.append(name)
        expected = {name: _addresses(self.lab.container(name))}
        living = {one.name for one in self._living()}
        if len(self._churn) > STAY and self.lab.container(self._churn[0]).host in living:
            gone = self._churn.popleft()
            containers.remove(self.lab, gone)
            expected[gone] = []
        self._expect(expected, self._some())

    def _look_at_hosts(self) -> None:
        """See that no living host is taken for dead."""
        asked = self._random.choice(self._living())
        states = {one["name"]: one["state"] for one in agents.client(self.lab, asked.name).call("GET", "/v1/hosts")}
        living = {host.name for host in self._living()}
        wrong = [name for name, state in states.items() if state == "silent" and name in living]
        self.found.dead += [f"{name}, says {asked.name}" for name in wrong]

    # -------------------------------------------------------------- what is looked at

    def _living(self) -> list[Host]:
        return [host for host in self.lab.hosts if host not in self._silent]

    def _some(self) -> list[Host]:
        living = self._living()
        return self._random.sample(living, min(ASKED, len(living)))

    def _expect(self, names: dict[str, list[str]], hosts: Iterable[Host]) -> None:
        """Wait until these names have just these addresses on hosts."""
        begun = time.monotonic()
        left = [(host, name) for host in hosts for name in names]
        self.found.asked += len(left)
        while left:
            left = [(host, name) for host, name in left if _asked(host, name) != names[name]]
            took = time.monotonic() - begun
            if took > self._named:
                self.found.wrong += [f"{name} on {host.name}" for host, name in left]
                break
            time.sleep(0.02)
        self.found.slowest = max(self.found.slowest, took if names else 0.0)

    def _everywhere(self, seconds: float) -> None:
        """Wait until every name is right on every host."""
        wanted = {c.name: _addresses(c) for c in self.lab.containers}
        end = time.monotonic() + seconds
        left = [(host, name) for host in self.lab.hosts for name in wanted]
        self.found.asked += len(left)
        while left := [(host, name) for host, name in left if _asked(host, name) != wanted[name]]:
            if time.monotonic() > end:
                self.found.wrong += [f"{name} on {host.name}" for host, name in left]
                return
            time.sleep(0.1)

    def _records(self) -> dict[str, bytes]:
        """Return the leases and blocks that the store has."""

        async def read() -> dict[str, bytes]:
            store = EtcdStore(topology.etcd_url(self.lab, "127.0.0.1"))
            try:
                found = [*(await store.list("leases/"))[0], *(await store.list("blocks/"))[0]]
            finally:
                await store.close()
            return {record.key: record.value for record in found}

        with sockets.inside(self.lab.switch):
            return asyncio.run(read())


def _addresses(container: Container) -> list[str]:
    return [text.partition("/")[0] for text in container.addresses]


def _asked(host: Host, name: str) -> list[str]:
    """Return what a host's server answers for a name; it is asked again later if it does not answer."""
    with sockets.inside(host.namespace):
        try:
            return ask(GATEWAY, name, seconds=1.0).data
        except OSError:
            return ["no answer"]
