"""Backend overlay: VXLAN at UDP port 8473, a device for each network."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from linkspan.backends.multi_host import admitted, offered, onlink_routes, theirs, underlay
from linkspan.backends.routed import TunnelBackend
from linkspan.core.addresses import Prefix, derived_mac, mac, mac_text
from linkspan.core.host_view import HostView, Peer
from linkspan.core.model import Network
from linkspan.core.ruleset import tunnel_peer, tunnel_port
from linkspan.core.states.host import FdbEntry, Neighbour, Route, State
from lsy_overlay.states import HostRule, Overlay

PORT = 8473
PRIORITY = 30077


class OverlayBackend(TunnelBackend):
    """The differences from another tunnel."""

    name = "overlay"
    overhead: Mapping[int, int] = {4: 50, 6: 70}

    def device(self, network: Network) -> str:
        """Return ``lsy`` and the VNI in hexadecimal."""
        return f"lsy{_vni(network):x}"

    def announce(self, view: HostView, network: Network) -> Mapping[str, str]:
        """Return the address to which peers send, and the MAC that they send to."""
        assert view.host is not None
        return {"mac": mac_text(_vtep(view.host.id, network)), **super().announce(view, network)}

    def received(self, view: HostView, network: Network) -> Iterable[State]:
        """Return the device, the rule, and that peers alone reach the port."""
        assert view.host is not None
        here = underlay(view, network)
        mtu, local = min(network.mtu, here.mtu - self.overhead[here.outer]), here.bound(here.outer)
        yield Overlay(self.device(network), _vni(network), _vtep(view.host.id, network), mtu, PORT, local)
        yield tunnel_port("udp", PORT)
        yield from (HostRule(PRIORITY, pool) for pool in network.prefixes)

    def met(
        self, view: HostView, network: Network, peer: Peer, address: Prefix, targets: Sequence[Prefix]
    ) -> Iterable[State]:
        """Return the peer's neighbour and FDB entries, and what takes its tunnel packets."""
        far = mac(offered(network, peer, self.name)["mac"])
        yield FdbEntry(self.device(network), far, address.packed)
        yield tunnel_peer(address, "udp", PORT)
        for family in sorted({target.family for target in targets}):
            yield Neighbour(self.device(network), theirs(network, peer, family), far)

    def let_in(
        self, view: HostView, network: Network, peer: Peer, address: Prefix, targets: Sequence[Prefix]
    ) -> Iterable[State]:
        """Return the elements that admit the prefixes from the peer's MAC."""
        station = (self.device(network), offered(network, peer, self.name)["mac"])
        return (admitted("stations", station, target) for target in targets)

    def routes(
        self, view: HostView, network: Network, peer: Peer, address: Prefix, targets: Sequence[Prefix]
    ) -> Iterable[Route]:
        """Return routes whose next hop is the peer's own address."""
        return onlink_routes(view, network, peer, self.device(network), targets)


def _vni(network: Network) -> int:
    return int.from_bytes(hashlib.blake2b(network.name.encode(), digest_size=3).digest(), "big") | 1


def _vtep(host: str, network: Network) -> bytes:
    return derived_mac("overlay", host, network.name)


BACKEND = OverlayBackend()
