"""Parts that a host's drivers are made from, and their end."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from linkspan.kernel.kinds import kinds
from linkspan.kernel.local_host import LocalHost


class Open:
    """A driver that has something open."""

    def __init__(self, _host: LocalHost) -> None:
        self.closed = 0

    def close(self) -> None:
        """Close it."""
        self.closed += 1


class Plain:
    """A driver that has nothing to close."""

    def __init__(self, _host: LocalHost) -> None:
        pass


def test_drivers_are_closed_with_their_host(tmp_path: Path) -> None:
    """Each trace makes drivers of its own, also those of kinds from outside."""
    host = LocalHost(tmp_path, kinds(), cast("Any", None), cast("Any", None))
    driver = host.driver(Open)
    host.driver(Plain)
    host.close()
    assert driver.closed == 1
