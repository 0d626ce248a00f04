"""A host that does not know which addresses are in use gives none, until it knows."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from linkspan.cluster.presence import ALONE
from linkspan.core.errors import Conflict, Unavailable
from linkspan.store.memory import Memory
from support.records.replicas import Member, network, together
from support.virtual_time import in_virtual_time, soon


def test_no_address_is_given_while_a_running_container_s_are_not_known(tmp_path: Path) -> None:
    """Not even if this host has a block; the error names the link, and ends with the doubt."""

    async def work() -> None:
        memory, net = Memory(), network(backend="bridge", options={})
        one = Member(memory, tmp_path, "h1")
        await one.replica.start()
        await one.networks.create(net)
        one.networks.refresh()
        one.blocks.refresh()
        one.readiness.doubt("lsp3")
        assert await one.attach(net, "c1"), "the store says which addresses endpoints have"
        one.replica.listed = False
        with pytest.raises(Unavailable, match="it does not know the addresses of lsp3, whose containers run"):
            await one.attach(net, "c2")
        one.readiness.trust("lsp3")
        assert await one.attach(net, "c2")
        await one.replica.stop()

    together(work)


def test_no_address_is_given_while_another_agent_has_the_host_s_id(tmp_path: Path) -> None:
    """Both would give out the addresses of the same blocks; a network of this host alone is not concerned."""

    async def work() -> None:
        net, local = network(), network("local", "10.9.0.0/24", backend="bridge", options={}, gateways=("10.9.0.1",))
        one = Member(Memory(), tmp_path, "h1")
        await one.start()
        for each in (net, local):
            await one.networks.create(each)
        await one.converge(net)
        one.second = "host id h1 is in use by another agent that lives, on web1"
        with pytest.raises(Conflict, match="h1 gives no address now: host id h1 is in use by another agent"):
            await one.attach(net, "c1")
        assert await one.attach(local, "c2")
        one.second = ""
        assert await one.attach(net, "c1")
        await one.stop()

    together(work)


def test_a_new_agent_gives_no_address_that_another_one_with_its_id_may_have_given(tmp_path: Path) -> None:
    """The other agent was frozen, and its record has ended: its container keeps its name and address for a while."""

    async def work() -> None:
        memory, net = Memory(), network()
        (tmp_path / "new").mkdir()
        old, new = Member(memory, tmp_path, "h1"), Member(memory, tmp_path / "new", "h1")
        await old.start()
        await old.networks.create(net)
        await old.converge(net)
        first = await old.attach(net, "c1")
        await soon(lambda: "endpoints/h1/c1/eth0" in memory.entries, "the store has c1", 1)
        await old.stop()
        await new.start()
        await new.converge(net)
        assert await new.attach(net, "c2") != first
        with pytest.raises(Conflict, match="is in use by c1 of another agent with this host's id"):
            await new.attach(net, "c3", first)
        await asyncio.sleep(ALONE + 2)
        assert not memory.entries["endpoints/h1/c1/eth0"][0]
        assert await new.attach(net, "c3", first) == first
        await new.stop()

    in_virtual_time(work)
