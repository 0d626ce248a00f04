"""Peers that a trace gets as silent."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any, cast

from linkspan.cluster.peer_ping import SILENT, Probes
from support.records.peers import network, peer


class Wire:
    """An echo socket whose peers answer, or not, as soon as they are asked."""

    def __init__(self, probes: Probes, answering: set[str]) -> None:
        self.asked: list[str] = []
        self._probes = probes
        self._answering = answering
        self._answers: set[str] = set()

    def ask(self, address: str) -> None:
        """Ask, and have the answer come a moment later."""
        self.asked.append(address)
        if address in self._answering:
            self._answers.add(address)
            asyncio.get_running_loop().call_soon(self._probes._heard, cast("Any", self))

    def answers(self) -> set[str]:
        """Return who answered since the last look."""
        found, self._answers = self._answers, set()
        return found


def confirmed(answering: set[str], since: float) -> tuple[dict[tuple[str, str, int], str], list[str]]:
    """Return what a trace gets, and who was asked for it, where a peer has not answered for so long."""
    demo = network("vxlan", (4, 6))
    known = {("demo", "id2"): peer(demo, {})}
    probes = Probes(known)
    wire = Wire(probes, answering)
    probes._echoes = dict.fromkeys((4, 6), cast("Any", wire))
    probes._since = {(("demo", "id2"), "10.77.2.0"): time.monotonic() - since}
    return asyncio.run(probes.confirmed()), wire.asked


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
