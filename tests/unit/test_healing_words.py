"""What healing logs: a host whose underlay has lost its address must not fill its disk with that."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest

from linkspan.errors import KernelError, LinkspanError
from linkspan.fights import Fights
from linkspan.healing import Healer
from linkspan.reconcile import Report


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
