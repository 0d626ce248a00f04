"""Policy trials: what staged policies would have refused on this host, by whom and how often."""

from __future__ import annotations

import asyncio

import msgspec

from linkspan.agent.policy_enforcement import Enforcement
from linkspan.core.ruleset import TABLE
from linkspan.kernel.probe import conntrack, policy_counts, underlay
from linkspan.kernel.worker import Worker
from linkspan.policy import rules
from linkspan.policy.model import Ports


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
    """What staged policies would do on this host: what they would have refused, and how many flows they would cut."""

    refused: tuple[Refusal, ...]
    cuts: int


class Trials:
    """Reads the kernel's counts, and asks the judge of staged policies which policy and line each belongs to."""

    def __init__(self, worker: Worker, enforcement: Enforcement) -> None:
        self._worker = worker
        self._enforcement = enforcement

    async def trial(self) -> Trial:
        """Return what staged policies would do. Raises KernelError."""
        regime = self._enforcement.regime
        if not regime.staged:
            return Trial(refused=(), cuts=0)
        local = await self._worker.run(underlay.every_address, self._worker.machine.sockets)
        flows = self._enforcement.flows(regime.trial, local)
        found: dict[tuple[str, int, str, str, str], int] = {}
        for tally in await asyncio.to_thread(policy_counts.tallies, TABLE, rules.TALLIES):
            verdict = flows.refusal(tally.flow)
            if verdict is None or (by := verdict.by) is None:
                continue  # it was counted for a version of the policies that is gone
            source, target = (self._enforcement.name_of(end.address) for end in (tally.flow.source, tally.flow.target))
            key = (by.policy, by.line, source, target, port_text(tally.flow))
            found[key] = found.get(key, 0) + tally.packets
        refused = [
            Refusal(policy=policy, line=line, source=source, target=target, port=port, packets=packets)
            for (policy, line, source, target, port), packets in sorted(found.items(), key=lambda one: -one[1])
        ]
        return Trial(refused=tuple(refused), cuts=await asyncio.to_thread(conntrack.count, flows))


def port_text(flow: conntrack.Flow) -> str:
    """Return a flow's protocol, with its port if it has one, as people write it: 80/tcp, icmp, 47."""
    if flow.protocol in ("tcp", "udp", "sctp"):
        return str(Ports(flow.protocol, flow.port, flow.port))  # type: ignore[arg-type]
    return flow.protocol
