"""A host that does not know which addresses are in use gives none, until the store says."""

from __future__ import annotations

from pathlib import Path

import pytest

from linkspan.core.errors import Unavailable
from linkspan.store.memory import Memory
from support.records.replicas import Member, network, together


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
