"""Requests with policies: as long as a policy file may become, and refused in words beyond that."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from pathlib import Path
from typing import cast

import msgspec
import pytest
from aiohttp import web

from linkspan.agent.agent import Agent
from linkspan.agent.policies import Applied
from linkspan.api import app, policy
from linkspan.api.client import Client
from linkspan.api.middleware import errors_and_rights
from linkspan.core.errors import Invalid
from linkspan.policy.model import Peer, Policy, Ports, Rule, Selector

RULE = Rule(peers=(Peer(select=Selector(labels={"app": "proxy"})),), ports=(Ports("tcp", 80, 80),))


class _Agent:
    """An agent that takes all policies, and records none."""

    def __init__(self) -> None:
        self.policies = self

    async def apply(self, policies: Collection[Policy], *, staged: bool) -> Applied:
        """Say that all are new."""
        assert not staged
        return Applied(created=tuple(one.name for one in policies), changed=(), same=(), warnings=())


async def _applied(path: Path, policies: Collection[Policy]) -> list[str]:
    """Return the names of the policies that an agent takes."""
    served = web.Application(middlewares=[errors_and_rights], client_max_size=app.LARGEST)
    served.add_routes(policy.PolicyRoutes(cast("Agent", _Agent())).routes())
    runner = web.AppRunner(served)
    await runner.setup()
    await web.UnixSite(runner, str(path)).start()
    body = {"policies": msgspec.to_builtins(list(policies))}
    try:
        found = await asyncio.to_thread(Client(str(path)).call, "PUT", "/v1/policies", body)
        return list(found["created"])
    finally:
        await runner.cleanup()


pytestmark = pytest.mark.root  # nobody else may apply


def test_thousands_of_policies_are_one_request(tmp_path: Path) -> None:
    """They are longer than all other requests may be."""
    policies = [Policy(name=f"p{number}", ingress=(RULE,) * 4) for number in range(4000)]
    assert len(msgspec.json.encode(policies)) > app.LARGEST
    assert asyncio.run(_applied(tmp_path / "socket", policies)) == [one.name for one in policies]


def test_more_than_that_is_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is recorded, and the text says what to do."""
    monkeypatch.setattr(policy, "LARGEST", 1 << 20)
    policies = [Policy(name=f"p{number}", ingress=(RULE,) * 4) for number in range(4000)]
    with pytest.raises(Invalid, match="the policies have more than 1 MiB as JSON") as refused:
        asyncio.run(_applied(tmp_path / "socket", policies))
    assert refused.value.hint == "give them in several files, one after the other"
