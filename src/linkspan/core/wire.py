"""Wire format of tunnels: what a tunnel device puts around a packet, as a trace follows it between hosts.

The far end, the added headers, and the device that unwraps follow from the encapsulation. A VXLAN's far end
comes from the neighbour table and the device's FDB entries, IPIP's is the route's next hop (or in the
helper's table), WireGuard's is the peer that has the destination, and ESP's is in the association that has
it.
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
    """Headers that a device adds to its packets; ``local`` is the outer source, empty if the route decides.

    ``remote`` is the far end of a device that has only one, and accepts packets from no other.
    """

    device: str
    kind: Encapsulation
    local: bytes = b""
    port: int = 0
    vni: int = 0
    remote: bytes = b""
