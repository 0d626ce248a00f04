"""Controller status for agents: with and without an active controller."""

from __future__ import annotations

from pathlib import Path

import pytest

from linkspan.backends.sdn.backend import BACKEND
from linkspan.cluster.controller_status import require
from linkspan.controller.election import KEY
from linkspan.core.errors import Unavailable
from linkspan.store.memory import Memory
from support.records.replicas import Member, network, together

DEMO = BACKEND.completed(network(backend="sdn"), ())


def test_without_an_active_controller_no_network_is_made(tmp_path: Path) -> None:
    """Nor is one migrated to it: packets would go nowhere. Networks of other backends need none."""

    async def work() -> None:
        member = Member(Memory(), tmp_path, "h1")
        await member.replica.start()
        require(member.replica, network(backend="vxlan"), "create network")
        with pytest.raises(Unavailable, match=r"create network demo: .* no controller is active") as raised:
            require(member.replica, DEMO, "create network")
        assert "`linkspan controller`" in raised.value.hint
        await member.replica.write({KEY: b"ctl1"})
        require(member.replica, DEMO, "create network")
        await member.replica.stop()

    together(work)
