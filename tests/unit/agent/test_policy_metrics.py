"""Metrics of policies: which of the kernel's counts are an agent's own."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from linkspan.agent.policy_metrics import PolicyMetrics
from linkspan.kernel.probe import policy_counts
from linkspan.kernel.probe.policy_counts import Counted


class Enforced:
    """An enforcement with policies."""

    regime = True


def test_a_new_agent_counts_from_its_start_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules stay over a restart with their counters: what the last agent has told is not told again."""
    rule, packets = Counted("policy_in4", "policy web line 1", 7), [1000]
    monkeypatch.setattr(policy_counts, "of_rules", lambda _table: {rule: packets[0]})
    added: list[tuple[Any, ...]] = []
    enforcement: Any = Enforced()
    counter: Any = type("Adding", (), {"add": lambda _self, *what: added.append(what)})()
    metrics = PolicyMetrics(enforcement, counter)

    async def main() -> None:
        await metrics.begin()
        packets[0] = 1003
        await metrics.look()

    asyncio.run(main())
    assert added == [(3, "web", "ingress", "refused")]
