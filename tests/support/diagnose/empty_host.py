"""A host that has nothing, for fakes that answer a few of the questions of a trace."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from linkspan.core.wire import Wire
from linkspan.diagnose.trace.kernel_view import (
    Associated,
    Attached,
    Chain,
    Device,
    Forwarding,
    IptablesTable,
    KernelView,
    Lookup,
    Neighbour,
    Secured,
)
from linkspan.diagnose.trace.packet import Packet
from linkspan.kernel.probe.path_mtu import Passed
from linkspan.kernel.probe.xfrm_and_rules import Rule, XfrmPolicy


class EmptyHost(KernelView):
    """A host without links, routes and rules."""

    def route(self, netns: int, packet: Packet, arriving: str = "") -> Lookup:
        """Return an answer without a route."""
        return Lookup()

    def device(self, netns: int, name: str) -> Device | None:
        """Return none."""
        return None

    def addresses(self, netns: int) -> Mapping[bytes, str]:
        """Return none."""
        return {}

    def neighbour(self, netns: int, device: str, address: bytes) -> Neighbour | None:
        """Return none."""
        return None

    def rules(self, netns: int, family: int) -> tuple[Rule, ...]:
        """Return none."""
        return ()

    def takers(self, netns: int, device: str) -> tuple[str, ...]:
        """Return none."""
        return ()

    def below(self, netns: int, device: str) -> tuple[str, ...]:
        """Return none."""
        return ()

    def attached(self, netns: int, device: str) -> Attached:
        """Return nothing, each way."""
        return Attached()

    def policies(self, netns: int) -> tuple[XfrmPolicy, ...]:
        """Return none."""
        return ()

    def bridge_port(self, bridge: str, mac: bytes) -> Forwarding | None:
        """Return none."""
        return None

    def tunnels(self) -> tuple[Wire, ...]:
        """Return none."""
        return ()

    def remote(self, device: str, mac: bytes, address: bytes) -> bytes:
        """Return none."""
        return b""

    def exit(self, source: bytes) -> bytes:
        """Return none."""
        return b""

    def secured(self, address: bytes) -> Secured | None:
        """Return none."""
        return None

    def associated(self, address: bytes, spi: str = "") -> Associated | None:
        """Return none."""
        return None

    def answering(self, netns: int, device: str, source: bytes, address: bytes) -> bytes | None:
        """Nobody answers."""
        return None

    def passing(self, source: bytes, target: bytes, sizes: Iterable[int]) -> Passed:
        """No packet passes."""
        return Passed()

    def setting(self, netns: int, path: str) -> str:
        """Return none."""
        return ""

    def chains(self, netns: int) -> tuple[Chain, ...]:
        """Return none."""
        return ()

    def holds(self, netns: int, chain: Chain, name: str, key: tuple[str, ...]) -> bool:
        """No set has the key."""
        return False

    def elements(self, netns: int, chain: Chain, name: str) -> Sequence[Any]:
        """Return none."""
        return ()

    def mapping(self, netns: int, chain: Chain, name: str) -> Sequence[Any]:
        """Return none."""
        return ()

    def iptables(self, netns: int, family: int) -> tuple[IptablesTable, ...]:
        """Return none."""
        return ()

    def listens(self, netns: int, packet: Packet) -> bool:
        """Nobody listens."""
        return False
