"""Peers that a trace gets as silent."""

from __future__ import annotations

import asyncio
import math
import re
import socket
import time
from collections import Counter
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from linkspan.cluster.peer_ping import CONFIRMED, RATE, SILENT, PeerPings, _Awaited
from linkspan.core.event_log import EventLog
from linkspan.core.supervise import ended
from linkspan.kernel.probe.ping import Echo, Reply
from support.records.peers import network, peer
from support.virtual_time import in_virtual_time

TOOK = 0.25
"""Seconds until an answer, by the kernel's clock."""


class Wire:
    """An echo socket whose peers answer, or not, as soon as they are asked."""

    def __init__(self, peer_pings: PeerPings, answering: set[str]) -> None:
        self.asked: list[str] = []
        self._peer_pings = peer_pings
        self._answering = answering
        self._answers: dict[str, Reply] = {}

    def ask(self, address: str, number: int) -> bool:
        """Ask, and have the answer come a moment later."""
        self.asked.append(address)
        if address in self._answering:
            self._answers[address] = Reply(number, time.time() + TOOK)
            asyncio.get_running_loop().call_soon(self._peer_pings._heard, cast("Any", self))
        return True

    def answers(self) -> dict[str, Reply]:
        """Return who answered since the last look."""
        found, self._answers = self._answers, {}
        return found


def confirmed(answering: set[str], since: float, asked: int = 3) -> tuple[dict[tuple[str, str, int], str], list[str]]:
    """Return what a trace gets, and who was asked for it, where a peer has not answered for so long."""
    demo = network("vxlan", (4, 6))
    known = {("demo", "id2"): peer(demo, {})}
    peer_pings = PeerPings(known, EventLog(Path()))
    wire = Wire(peer_pings, answering)
    peer_pings._echoes = dict.fromkeys((4, 6), cast("Any", wire))
    peer_pings._awaited = {"10.77.2.0": _Awaited(("demo", "id2"), 4, time.monotonic() - since, asked)}
    return asyncio.run(peer_pings.confirmed()), wire.asked


def test_a_silent_peer_is_asked_once_more_before_it_is_called_so() -> None:
    """It is reported with network, host, family and the time, which continues; nobody else is asked."""
    found, asked = confirmed(set(), 12)
    assert found.keys() == {("demo", "id2", 4)}
    silent = re.fullmatch(
        r"no answer to pings of 10\.77\.2\.0, its own address there, for (\d+) s", found["demo", "id2", 4]
    )
    assert silent is not None
    assert 12 <= int(silent[1]) < 60
    assert asked == ["10.77.2.0"]


def test_a_peer_that_answers_again_is_not_called_silent() -> None:
    """A silence that ended a moment ago gives no doubt."""
    assert confirmed({"10.77.2.0"}, 12) == ({}, ["10.77.2.0"])


def test_a_peer_that_was_asked_a_moment_ago_is_not_silent_yet() -> None:
    """One lost ping proves nothing, and costs no trace any time."""
    assert confirmed(set(), SILENT - 1) == ({}, [])


def test_a_peer_that_was_asked_once_is_not_silent_however_long_a_round_takes() -> None:
    """With many peers the next ping comes late: until then nothing is known."""
    assert confirmed(set(), 60, asked=1) == ({}, [])


def test_a_ping_counts_when_it_had_time_for_an_answer() -> None:
    """Between the second ping and its answer nothing is known of a peer, however late the ping was."""
    demo = network("vxlan", (4,))
    peer_pings = PeerPings({("demo", "id2"): peer(demo, {})}, EventLog(Path()))
    peer_pings._echoes = {4: cast("Any", Quiet())}
    now = time.monotonic()
    peer_pings._awaited = {"10.77.2.0": _Awaited(("demo", "id2"), 4, now - 60, 2, last=now)}
    assert peer_pings.silent() == {}
    peer_pings._awaited = {"10.77.2.0": _Awaited(("demo", "id2"), 4, now - 60, 2, last=now - CONFIRMED)}
    assert peer_pings.silent().keys() == {("demo", "id2")}


class Quiet:
    """An echo socket to which nobody answers; it knows when each address was asked."""

    def __init__(self) -> None:
        self.asked: dict[str, list[float]] = {}

    def ask(self, address: str, number: int) -> bool:
        """Ask an address."""
        self.asked.setdefault(address, []).append(asyncio.get_running_loop().time())
        return True


def rounds(count: int, seconds: float, came: int = 0) -> dict[str, list[float]]:
    """Return when each of so many peers is asked within so many seconds, and let the time be virtual.

    In the first second the last ``came`` of them come, and as many before these go.
    """
    wire = Quiet()

    async def run() -> None:
        demo = network("vxlan", (4,))
        one = peer(demo, {})
        known = {}
        for number in range(count):
            lease = msgspec.structs.replace(one.lease, addresses=(f"10.77.{number // 256}.{number % 256}/32",))
            known["demo", f"id{number}"] = msgspec.structs.replace(one, lease=lease)
        later = {pair: known.pop(pair) for pair in [*known][count - came :]}
        peer_pings = PeerPings(known, EventLog(Path()))
        peer_pings._echoes = {4: cast("Any", wire)}
        task = asyncio.create_task(peer_pings._ask())
        await asyncio.sleep(0.5)
        for pair in [*known][count - 2 * came : count - came] if came else ():
            del known[pair]
        known.update(later)
        await asyncio.sleep(seconds - 0.5)
        await ended(task)

    in_virtual_time(run)
    return wire.asked


def test_a_few_peers_are_asked_every_two_seconds() -> None:
    """So a silence is known within ten seconds."""
    asked = rounds(3, 20)
    assert all(9 <= len(times) <= 11 for times in asked.values())


def test_many_peers_are_asked_in_turn_and_cost_no_more() -> None:
    """However many there are, a second has at most RATE pings, and each peer has its turn."""
    asked = rounds(10 * RATE, 25)
    seconds = Counter(math.floor(at) for times in asked.values() for at in times)
    assert len(asked) == 10 * RATE
    assert max(seconds.values()) <= RATE
    assert all(2 <= len(times) <= 3 for times in asked.values())


def test_a_new_peer_does_not_wait_for_a_long_round_and_a_gone_one_is_not_asked() -> None:
    """A round of 6,000 addresses takes two minutes."""
    asked = rounds(10 * RATE, 25, came=3)
    numbers = [10 * RATE - 1 - back for back in range(6)]
    new, gone = numbers[:3], numbers[3:]
    begun = min(times[0] for times in asked.values())
    assert all(asked[f"10.77.{number // 256}.{number % 256}"][0] < begun + 2 for number in new)
    assert not any(f"10.77.{number // 256}.{number % 256}" in asked for number in gone)


def test_pings_measure_the_path() -> None:
    """By the time at which the kernel received the answer, not when somebody read it; a gone peer is forgotten."""

    async def run() -> None:
        demo = network("vxlan", (4,))
        known = {("demo", "id2"): peer(demo, {})}
        peer_pings = PeerPings(known, EventLog(Path()))
        address = known["demo", "id2"].lease.addresses[0].split("/")[0]
        peer_pings._echoes = {4: cast("Any", Wire(peer_pings, {address}))}
        task = asyncio.create_task(peer_pings._ask())
        await asyncio.sleep(5)
        ((pair, measured, quality),) = peer_pings.paths()
        assert (pair, measured, quality.loss) == (("demo", "id2"), address, 0)
        assert TOOK / 2 < quality.round_trip < 2 * TOOK
        known.clear()
        await asyncio.sleep(5)
        assert peer_pings._qualities == {}
        await ended(task)

    in_virtual_time(run)


class Full(Wire):
    """An echo socket whose peers answer, and whose buffer has room for every other request only."""

    def ask(self, address: str, number: int) -> bool:
        """Ask, or not."""
        if len(self.asked) % 2:
            self.asked.append("")
            return False
        return super().ask(address, number)


def test_a_ping_that_was_not_sent_is_not_lost() -> None:
    """The socket's buffer was full, which says nothing of the path: the peer has answered all that it got."""

    async def run() -> None:
        known = {("demo", "id2"): peer(network("vxlan", (4,)), {})}
        peer_pings = PeerPings(known, EventLog(Path()))
        address = known["demo", "id2"].lease.addresses[0].split("/")[0]
        wire = Full(peer_pings, {address})
        peer_pings._echoes = {4: cast("Any", wire)}
        task = asyncio.create_task(peer_pings._ask())
        await asyncio.sleep(20)
        ((_, _, quality),) = peer_pings.paths()
        assert wire.asked.count("") >= 4
        assert (quality.loss, quality.asked) == (0, wire.asked.count(address))
        assert peer_pings._awaited == {}
        await ended(task)

    in_virtual_time(run)


def test_a_socket_without_room_says_that_it_did_not_send(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a ping that the kernel took was sent."""

    class Raw(socket.socket):
        """A socket that needs no rights, and has room for one packet."""

        room = 1

        def __init__(self, *_words: int) -> None:
            super().__init__(socket.AF_INET, socket.SOCK_DGRAM)

        def setsockopt(self, *_words: Any) -> None:
            """Set nothing."""

        def sendto(self, *_words: Any) -> int:
            """Send, if there is room."""
            if not self.room:
                raise BlockingIOError
            self.room -= 1
            return 16

    with monkeypatch.context() as patched:
        patched.setattr(socket, "socket", Raw)
        echo = Echo(4)
    assert [echo.ask("10.77.2.0", number) for number in range(2)] == [True, False]
    echo.close()
