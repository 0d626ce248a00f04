"""Kernel answers for what a reader has built: any device may be a tunnel, and not only linkspan's own."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence

from linkspan.core.addresses import Prefix, prefix
from linkspan.core.wire import WIREGUARD, Wire
from linkspan.diagnose.trace.bgp_routes import Learning
from linkspan.diagnose.trace.hops import show
from linkspan.diagnose.trace.kernel_answers import NO_FOLDER, KernelAnswers
from linkspan.diagnose.trace.kernel_view import Secured
from linkspan.kernel.io.namespaces import Namespaces
from linkspan.kernel.probe import wireguard_device

_EVERY = bytes(6)
"""The MAC of a VXLAN's entries for all other MACs (``remote`` of `ip link add`; bridge(8), default destination)."""
_GREETING = 1.0
"""Seconds for the first handshake of a WireGuard peer."""


class ReaderKernel(KernelAnswers):
    """Asks the kernel of the host that the calling thread is in."""

    def __init__(self, namespaces: Namespaces, wires: Sequence[Wire], learning: Learning | None) -> None:
        """``wires`` are the host's tunnel devices, ``learning`` is its BGP speaker."""
        super().__init__(namespaces, NO_FOLDER, learning)
        self._wires = tuple(wires)

    def tunnels(self) -> tuple[Wire, ...]:
        """Return the tunnel devices."""
        return self._wires

    def remote(self, device: str, mac: bytes, address: bytes) -> bytes:
        """Return the FDB's answer; a device without MACs and without a far end sends to the destination itself."""
        if not mac:
            return address
        return super().remote(device, mac, b"") or super().remote(device, _EVERY, b"")

    def secured(self, address: bytes) -> Secured | None:
        """Ask the WireGuard devices. A peer that has never answered gets a packet: only then it is greeted."""
        found = self._holder(address)
        if found is not None and found.remote and found.since < 0:
            argv = ["ping", "-c1", f"-W{_GREETING:g}", show(address)]
            subprocess.run(argv, check=False, capture_output=True)
            found = self._holder(address)
        return found

    def _holder(self, address: bytes) -> Secured | None:
        target = Prefix(address, len(address) * 8)
        for wire in self._wires:
            table = wireguard(wire.device) if wire.kind == WIREGUARD else None
            peer = table.holder(target) if table is not None else None
            if table is None or peer is None:
                continue
            host, _, number = peer.endpoint.rpartition(":")
            remote = prefix(host.strip("[]")).packed if host else b""
            since = time.time() - peer.handshake if peer.handshake else -1
            return Secured(table.public, peer.public, remote, int(number or 0), since, peer.keepalive, table.port)
        return None


def wireguard(device: str, inside: Sequence[str] = ()) -> wireguard_device.Table | None:
    """Return what a WireGuard device has, None if it cannot be asked; ``inside`` are the words before the command."""
    try:
        argv = [*inside, "wg", "show", device, "dump"]
        done = subprocess.run(argv, check=False, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return None if done.returncode else wireguard_device.parsed(done.stdout)
