"""Policy probes: what is checked before a packet is sent."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from linkspan.agent.policy_probes import MOST, PolicyProbes
from linkspan.core.errors import Invalid, NotFound
from linkspan.policy.model import Case, End


class Answers:
    """Answers that know every name but one, and nothing more: whoever asks further has begun to send."""

    async def pair(self, source: End, _target: End) -> tuple[None, None]:
        """Return no ends."""
        if source.name == "nobody":
            raise NotFound("no container is called nobody")
        return None, None


def _cases(*names: str) -> list[Case]:
    return [Case(source=End(name=name), target=End(name="web"), line=line) for line, name in enumerate(names, 1)]


def test_an_unknown_name_is_told_before_any_packet_is_sent() -> None:
    """With its line, though the cases before it could be asked."""
    answers: Any = Answers()
    probes = PolicyProbes(Any, {}, answers)  # type: ignore[arg-type]
    with pytest.raises(NotFound, match="test at line 2: no container"):
        asyncio.run(probes.test(_cases("web", "nobody")))
    with pytest.raises(Invalid, match="1001 cases are too many"):
        asyncio.run(probes.test(_cases(*["web"] * (MOST + 1))))
