"""Policy trials: what staged policies would have refused on this host, by whom and how often."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from linkspan.agent.policy_enforcement import Enforcement
from linkspan.agent.policy_flows import Flows, Parties, port_text
from linkspan.core.ruleset import TABLE
from linkspan.kernel.drivers.nftables_texts import MOST as MOST_ELEMENTS
from linkspan.kernel.probe import conntrack, policy_counts, underlay
from linkspan.kernel.probe.policy_counts import Tally
from linkspan.kernel.worker import Worker
from linkspan.policy import readings

MOST = 1000
"""Entries that an answer has."""


class Refusal(msgspec.Struct, frozen=True, kw_only=True, rename={"source": "from", "target": "to"}):
    """Packets that would have been refused, from one container or address to another one at a port ("": none).

    ``line`` is 0 for a network's default.
    """

    policy: str
    line: int
    source: str
    target: str
    port: str
    packets: int


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """Effect that staged policies would have on this host: what they would have refused, and how many flows they cut.

    ``refused`` has at most MOST entries; ``more`` flows were counted that are not among them. If a set of the kernel's
    is ``full``, later flows were not even counted.
    """

    refused: tuple[Refusal, ...]
    more: int
    full: bool
    cuts: int


class Trials:
    """Reads the kernel's counts, and asks the judge of staged policies which policy and line each belongs to."""

    def __init__(self, worker: Worker, enforcement: Enforcement, parties: Parties) -> None:
        self._worker = worker
        self._enforcement = enforcement
        self._parties = parties

    async def trial(self) -> Trial:
        """Return what staged policies would do. Raises KernelError."""
        regime = self._enforcement.regime
        if not regime.staged:
            return Trial(refused=(), more=0, full=False, cuts=0)
        local = await self._worker.run(underlay.every_address, self._worker.machine.sockets)
        now, past = (self._parties.flows(regime.trial, local, past=past) for past in (False, True))
        return await asyncio.to_thread(self._of, now, past)

    def _of(self, flows: Flows, past: Flows) -> Trial:
        """Read and judge in a thread of its own: a container that scans ports fills sets with 65,535 flows."""
        sets = policy_counts.tallies(TABLE, readings.TALLIES)
        counted = sorted((one for some in sets for one in some), key=lambda one: -one.packets)
        refused, more = summed(counted, flows)
        full = any(len(some) >= MOST_ELEMENTS for some in sets)
        return Trial(refused=refused, more=more, full=full, cuts=conntrack.count(past))


def summed(tallies: Sequence[Tally], flows: Flows) -> tuple[tuple[Refusal, ...], int]:
    """Return who would be refused by what, the most packets first, and how many tallies are left out.

    The tallies come with the most packets first. Those after the MOSTth entry are not judged.
    """
    found: dict[tuple[str, int, str, str, str], int] = {}
    more = 0
    for number, tally in enumerate(tallies):
        if len(found) == MOST:
            more = len(tallies) - number
            break
        verdict = flows.refusal(tally.flow)
        if verdict is None or (by := verdict.by) is None:
            continue  # it was counted for a version of the policies that is gone
        key = (by.policy, by.line, *flows.names(tally.flow), port_text(tally.flow))
        found[key] = found.get(key, 0) + tally.packets
    listed = sorted(found.items(), key=lambda one: -one[1])
    refused = tuple(
        Refusal(policy=policy, line=line, source=source, target=target, port=port, packets=packets)
        for (policy, line, source, target, port), packets in listed
    )
    return refused, more
