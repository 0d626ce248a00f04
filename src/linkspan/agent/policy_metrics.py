"""Policy metrics: how many packets each policy refused on this host."""

from __future__ import annotations

import asyncio
import re

from linkspan.agent.metrics import Counter
from linkspan.agent.policy_enforcement import Enforcement
from linkspan.core.ruleset import TABLE
from linkspan.kernel.probe import policy_counts

_WHOSE = re.compile(r"policy (?P<policy>\S+)( line \d+)?|(?P<default>default of network .+)")
_DIRECTIONS = {"in": "ingress", "out": "egress"}


class PolicyMetrics:
    """Adds up the rules' counters. When a chain is put again it has new rules, whose counters begin at 0."""

    def __init__(self, enforcement: Enforcement, counter: Counter) -> None:
        self._enforcement = enforcement
        self._counter = counter
        self._before: dict[policy_counts.Counted, int] = {}

    async def begin(self) -> None:
        """Take what the rules have counted under the last agent as counted. Raises KernelError."""
        self._before = await self._read()

    async def _read(self) -> dict[policy_counts.Counted, int]:
        return await asyncio.to_thread(policy_counts.of_rules, TABLE) if self._enforcement.regime else {}

    async def look(self) -> None:
        """Count what the rules have refused since the last look. Raises KernelError."""
        found = await self._read()
        for rule, packets in found.items():
            whose = _WHOSE.fullmatch(rule.comment)
            tier, _, way = rule.chain.partition("_")
            direction = _DIRECTIONS.get(way.partition("_")[0].rstrip("46"))
            if whose is not None and direction:
                name, effect = whose["policy"] or whose["default"], "staged" if tier == "staged" else "refused"
                self._counter.add(packets - self._before.get(rule, 0), name, direction, effect)
        self._before = found
