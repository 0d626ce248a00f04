"""Requests with policies: as long as a policy file may become, and refused in words beyond that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager
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
from linkspan.core.clock import now
from linkspan.core.errors import Invalid
from linkspan.policy.model import Peer, Policy, Ports, Rule, Selector
from linkspan.store.contact import Contact

RULE = Rule(peers=(Peer(select=Selector(labels={"app": "proxy"})),), ports=(Ports("tcp", 80, 80),))


class _Agent:
    """An agent that takes all policies, and records none; one of them selects nobody."""

    def __init__(self, silence: float = 0.0) -> None:
        """Have a store that has not answered for ``silence`` seconds."""
        self.policies = self.policy_answers = self.hosts = self.replica = self
        self.shared = True
        self.contact = Contact()
        self.contact.heard = now() - silence

    async def apply(self, policies: Collection[Policy], *, staged: bool) -> Applied:
        """Say that all are new."""
        assert not staged
        return Applied(created=tuple(one.name for one in policies), changed=(), same=(), warnings=("first",))

    def all(self) -> list[Policy]:
        """Return what is recorded."""
        return [Policy(name="p0", ingress=())]

    def warnings(self, policy: Policy) -> Iterator[str]:
        """Yield one warning of each policy."""
        yield f"{policy.name} is odd"

    async def idle(self, policies: Collection[Policy]) -> frozenset[str]:
        """Return the first one."""
        return frozenset(policy.name for policy in policies if policy.name == "p0")


@asynccontextmanager
async def _serving(path: Path, agent: _Agent) -> AsyncIterator[None]:
    """Serve an agent's policies at a socket."""
    served = web.Application(middlewares=[errors_and_rights], client_max_size=app.LARGEST)
    served.add_routes(policy.PolicyRoutes(cast("Agent", agent)).routes())
    runner = web.AppRunner(served)
    await runner.setup()
    await web.UnixSite(runner, str(path)).start()
    try:
        yield
    finally:
        await runner.cleanup()


async def _applied(path: Path, policies: Collection[Policy]) -> list[str]:
    """Return the names of the policies that an agent takes."""
    body = {"policies": msgspec.to_builtins(list(policies))}
    async with _serving(path, _Agent()):
        found = await asyncio.to_thread(Client(str(path)).call, "PUT", "/v1/policies", body)
        return list(found["created"])


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


def test_whoever_selects_nobody_is_told_so(tmp_path: Path) -> None:
    """When policies are applied, listed, or compared with what is recorded."""
    path, told = str(tmp_path / "socket"), "policy p0 selects no container now"

    async def main() -> None:
        async with _serving(tmp_path / "socket", _Agent()):
            body = {"policies": msgspec.to_builtins([Policy(name=name, ingress=()) for name in ("p0", "p1")])}
            found = await asyncio.to_thread(Client(path).call, "PUT", "/v1/policies", body)
            assert found["warnings"] == ["first", told]
            (listed,) = await asyncio.to_thread(Client(path).call, "GET", "/v1/policies")
            assert listed["warnings"] == ["p0 is odd", told]
            before = await asyncio.to_thread(Client(path).call, "POST", "/v1/policy/warnings", body)
            assert before == ["p0 is odd", "p1 is odd", told]

    asyncio.run(main())


@pytest.mark.parametrize("silence", [0.0, 100.0])
def test_answers_from_memory_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silence: float) -> None:
    """While the store is away; then nobody knows whom policies select."""
    said: list[str] = []
    monkeypatch.setattr(Client, "warned", Client.warned)
    Client.warn_by(said.append)

    async def main() -> None:
        async with _serving(tmp_path / "socket", _Agent(silence)):
            (listed,) = await asyncio.to_thread(Client(str(tmp_path / "socket")).call, "GET", "/v1/policies")
            assert len(listed["warnings"]) == (1 if silence else 2)

    asyncio.run(main())
    text = "the store has not answered for 100 s: this is what this host knew last"
    assert said == ([text] if silence else [])
