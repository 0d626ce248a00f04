"""Names of a container's interfaces: those that nobody gives are free ones, also beside attaches that are under way."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from linkspan.core.model import AttachRequest
from linkspan.endpoints.attach import attach
from support.records.one_host import network
from support.records.registry_stage import RegistryStage

NETWORKS = [network(name, f"10.{number}.0.0/24", routed=True) for number, name in enumerate(("one", "two", "three"), 1)]


def test_a_free_name_is_none_that_another_attach_is_about_to_use(tmp_path: Path) -> None:
    """One is asked for by its name, and holds the kernel; two take what is left."""

    async def run() -> None:
        stage, free = RegistryStage(tmp_path), threading.Event()
        await stage.start(*NETWORKS)
        busy = asyncio.create_task(stage.worker.run(free.wait, 10))
        await asyncio.sleep(0)
        attaches = []
        for name, ifname in (("one", "eth0"), ("two", ""), ("three", "")):
            request = AttachRequest(id="c1", network=name, ifname=ifname)
            attaches.append(asyncio.create_task(attach(stage.registry, request, -1, "", delivered=True)))
            for _ in range(20):
                await asyncio.sleep(0)
        free.set()
        await busy
        assert {one.network: one.ifname for one in await asyncio.gather(*attaches)} == {
            "one": "eth0", "two": "eth1", "three": "eth2"
        }  # fmt: skip
        await stage.stop()

    asyncio.run(run())
