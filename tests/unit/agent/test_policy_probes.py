"""Policy probes: what is checked before a packet is sent."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from linkspan.agent.policy_probes import MOST, PolicyProbes
from linkspan.core.errors import Invalid, NotFound
from linkspan.policy.model import Case, End


class Answers:
    """Answers that know nobody."""

    async def pair(self, source: End, _target: End) -> tuple[None, None]:
        """Return no ends."""
        if source.name == "nobody":
            raise NotFound("no container is called nobody", "see endpoint list")
        raise AssertionError("nobody is the only end")


def _cases(*names: str) -> list[Case]:
    return [Case(source=End(name=name), target=End(name="web"), line=line) for line, name in enumerate(names, 1)]


def test_a_case_about_nobody_fails_without_a_packet() -> None:
    """With its line and the reason: the other cases of the file are asked all the same."""
    answers: Any = Answers()
    probes = PolicyProbes(Any, {}, answers)  # type: ignore[arg-type]
    found = asyncio.run(probes.test(_cases("nobody", "nobody")))
    assert [(one.line, one.got) for one in found.failed] == [(1, "unknown"), (2, "unknown")]
    assert found.failed[0].why == "no container is called nobody; see endpoint list"
    assert not found.skipped
    with pytest.raises(Invalid, match="1001 cases are too many"):
        asyncio.run(probes.test(_cases(*["web"] * (MOST + 1))))
