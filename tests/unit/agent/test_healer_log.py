"""What healing logs, for a host that lost its underlay must not fill its disk, and what ends no healing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from linkspan.agent.healer import Healer
from linkspan.core.errors import KernelError, LinkspanError
from linkspan.core.fights import Fights
from linkspan.core.reconcile import Report
from linkspan.core.states.host import NftTable, State


def test_what_cannot_be_mended_is_logged_once_until_it_is_well(caplog: pytest.LogCaptureFixture) -> None:
    """For all objects with one cause together; another cause, and the same one later, are told again."""
    failing: dict[Any, LinkspanError] = {}
    reconciler = SimpleNamespace(failing=failing, fights=Fights())
    worker = cast("Any", SimpleNamespace(machine=SimpleNamespace(reconciler=reconciler)))
    nothing = cast("Any", None)
    healer = Healer(worker, nothing, nothing, nothing, nothing, nothing, nothing, 30)

    def told(**failed: str) -> list[str]:
        caplog.clear()
        failing.update({key: KernelError(why) for key, why in failed.items()})
        with caplog.at_level(logging.WARNING):
            healer.record(Report([], {key: failing[key] for key in failed}))
        return [record.getMessage().partition(": ")[2] for record in caplog.records]

    assert told(x="add a", y="add a") == ["add a"]
    assert told(x="add a") == told() == told(y="add a") == []
    assert told(x="add b", y="add a") == ["add b"]
    assert told(x="add b") == []
    failing.clear()
    assert told() == []
    assert told(x="add a") == ["add a"]


@pytest.mark.parametrize("error", [LinkspanError("the store is away"), RuntimeError("a fault")])
def test_what_fails_before_a_look_at_the_kernel_does_not_skip_it(error: Exception) -> None:
    """Facts that cannot be read leave rules mended all the same; the look is tried again."""
    seen: list[set[type[State]]] = []
    twice = asyncio.Event()

    def resync(kinds: set[type[State]]) -> Report:
        seen.append(kinds)
        if len(seen) == 2:  # the second look is the one that follows a failure
            twice.set()
        return Report()

    async def run(function: Callable[..., Any], *words: Any) -> Any:
        return function(*words)

    async def nothing() -> None:
        pass

    async def fails() -> None:
        raise error

    async def mended() -> None:
        reconciler = SimpleNamespace(failing={}, fights=Fights(), resync=resync)
        worker = cast("Any", SimpleNamespace(machine=SimpleNamespace(reconciler=reconciler), run=run))
        registry = cast("Any", SimpleNamespace(endpoints={}))
        healer = Healer(worker, registry, cast("Any", None), cast("Any", None), fails, nothing, nothing, 30)
        healer._dirty, wanted = {NftTable}, {NftTable}
        healer._wake.set()
        task = asyncio.create_task(healer._mend())
        async with asyncio.timeout(10):
            await twice.wait()
        task.cancel()
        assert seen[0] == wanted == seen[1]

    asyncio.run(mended())
