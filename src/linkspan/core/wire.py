"""The wire: what a tunnel device puts around a packet, as a trace follows it from host to host.

How the far end is found, what is added, and who unwraps it follow from the encapsulation: a VXLAN's far end is what the
neighbour table and the device's forwarding entries say, IPIP's is the route's next hop (or the helper's table),
WireGuard's is the peer that has the target, ESP's the association that has it.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Encapsulation = Literal["vxlan", "ipip", "wireguard", "esp"]

VXLAN: Encapsulation = "vxlan"
IPIP: Encapsulation = "ipip"
WIREGUARD: Encapsulation = "wireguard"
ESP: Encapsulation = "esp"

ADDED = {VXLAN: 14 + 8 + 8, IPIP: 0, WIREGUARD: 8 + 32, ESP: 8 + 8 + 16 + 5}
"""Bytes between the outer IP header and the inner one."""


class Wire(msgspec.Struct, frozen=True):
    """What a device makes of its packets; ``local`` is the outer source, empty where the route decides."""

    device: str
    kind: Encapsulation
    local: bytes = b""
    port: int = 0
    vni: int = 0
