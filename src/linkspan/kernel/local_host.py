"""Local host: what its drivers are made from: its namespaces, netlink sockets, the state folder, and each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from linkspan.core.kinds import Kinds
from linkspan.kernel.io.namespaces import Namespaces
from linkspan.kernel.io.sockets import Sockets

D = TypeVar("D")


class LocalHost:
    """This host, as drivers get it. One thread at a time uses it and them (``Worker``)."""

    def __init__(self, state_dir: Path, kinds: Kinds, namespaces: Namespaces, sockets: Sockets) -> None:
        self.state_dir = state_dir
        self.kinds = kinds
        self.namespaces = namespaces
        self.sockets = sockets
        self._drivers: dict[Callable[[LocalHost], Any], Any] = {}

    def close(self) -> None:
        """Close the drivers that have something to close."""
        for driver in self._drivers.values():
            if (close := getattr(driver, "close", None)) is not None:
                close()

    def driver(self, make: Callable[[LocalHost], D]) -> D:
        """Return the driver that a function makes; it is made once for all callers."""
        if make not in self._drivers:
            self._drivers[make] = make(self)
        found: D = self._drivers[make]
        return found
