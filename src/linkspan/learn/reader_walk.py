"""Walk through a reader's host: as linkspan's, and by what linkspan does not make itself: IPsec policies, a switch."""

from __future__ import annotations

from linkspan.core.states.host import HOST
from linkspan.core.wire import ESP
from linkspan.diagnose.trace.between_hosts import Crossing
from linkspan.diagnose.trace.hops import Broken, Hop, Map, Translation, headers, show
from linkspan.diagnose.trace.kernel_view import FORWARD, IN, OUT, Device, KernelView
from linkspan.diagnose.trace.packet import Outer, Packet
from linkspan.learn import reader_switch
from linkspan.learn.reader_switch import Plug, Switches
from linkspan.learn.reader_xfrm import State, Xfrm


class Sealed(Outer, frozen=True):
    """The headers around a packet that a state has encrypted; ``secret`` is that state's."""

    secret: str = ""


class ReaderWalk(Crossing):
    """The walk through a host."""

    def __init__(
        self, asked: KernelView, known: Map, translation: Translation, xfrm: Xfrm, switches: Switches
    ) -> None:
        """``xfrm`` is what the host has of IPsec; ``switches`` are those between the hosts."""
        super().__init__(asked, known, translation)
        self._xfrm = xfrm
        self._switches = switches
        self._opened: State | None = None
        """The state that has decrypted the packet on its arrival."""

    def _leave(self, device: Device, following: bytes, packet: Packet) -> None:
        policy = self._xfrm.policy(OUT, device.name, packet)
        if policy is None or policy.ends is None:
            if device.name in self._xfrm.devices:
                reason = f"no policy with the if_id of {device.name} is for it"
                raise self._broken(HOST, device.name, packet, reason)
            super()._leave(device, following, packet)
            return
        state = self._xfrm.sending(policy)
        if state is None:
            source, target = policy.ends
            reason = f"the {policy} wants a state (SA) from {show(source)} to {show(target)}, and there is none"
            raise self._broken(HOST, device.name, packet, reason)
        outer = Sealed(ESP, state.source, state.target, key=state.spi, secret=state.secret)
        self._sealed(outer, device, f"by the {policy}, SPI {state.spi}, {state.ciphers}", packet)

    def _cross(
        self, link: Device, source: bytes, following: bytes, target: bytes, packet: Packet, host: str = ""
    ) -> None:
        super()._cross(link, source, following, target, packet, host)
        near = self._switches.links.get((self._known.host, link.name))
        far = self._switches.addresses.get(following)
        if near is None or far is None or near.switch != far.switch:
            return
        mac = self.frame[1] or link.mac  # if nobody has answered, any MAC stands for the other one
        if self.silent:
            self._switched("ARP requests", reader_switch.arp(source, following, link.mac), near, far, packet)
            self._switched("ARP replies", reader_switch.arp(following, source, mac, link.mac), far, near, packet)
        wire = self._outer.packet() if self._outer is not None else packet
        self._switched("the packet", reader_switch.ip(wire, link.mac, mac), near, far, packet)

    def _switched(self, what: str, frame: str, near: Plug, far: Plug, packet: Packet) -> None:
        """Ask the switch where a frame goes, and note it. Raises Broken if the frame does not leave by the far port."""
        flow, out = reader_switch.passage(near, frame)
        reason = "" if far.port in out else f"switch {near.switch} does not send {what} to port {far.port}: {flow}"
        action, detail = ("dropped", reason) if reason else ("switched", f"{what}: {flow}")
        told = headers(packet, self._outer)
        hop = Hop(self._known.host, near.namespace, near.port, action, detail, told, far.port, mtu=self.mtu)
        self.hops.append(hop)
        if reason:
            raise Broken(hop, reason)

    def _unwrapping(self, outer: Outer, at: bytes, link: str, packet: Packet) -> Device:
        if not isinstance(outer, Sealed):
            return super()._unwrapping(outer, at, link, packet)
        state = self._xfrm.receiving(at, outer.key)
        if state is None:
            raise self._broken(HOST, link, packet, f"no state (SA) to {show(at)} has the SPI {outer.key}")
        if state.secret != outer.secret:
            reason = f"the state (SA) with the SPI {outer.key} has another key or cipher here than where it was sent"
            raise self._broken(HOST, link, packet, reason)
        self._opened = state
        name = next((name for name, if_id in self._xfrm.devices.items() if if_id == state.if_id), link)
        return self._usable(HOST, name, packet)

    def _authenticated(self, device: Device, outer: Outer, packet: Packet) -> int:
        self._hop(HOST, device.name, "decrypted", f"by the state (SA) with SPI {outer.key}", packet)
        return 0

    def _require_policy(self, netns: int, direction: int, device: str, packet: Packet) -> None:
        if netns != HOST:
            super()._require_policy(netns, direction, device, packet)
            return
        policy = self._xfrm.policy(direction, device, packet)
        if policy is not None and policy.blocks:
            raise self._broken(HOST, device, packet, f"the {policy} blocks it")
        if direction not in (IN, FORWARD) or packet.protocol == ESP:
            return
        if policy is not None and policy.ends is not None:
            if self._opened is None or not policy.wants(self._opened):
                raise self._broken(HOST, device, packet, f"the {policy} wants it from a tunnel, and it is from none")
        elif self._opened is not None:
            name = "fwd" if direction == FORWARD else "in"
            raise self._broken(HOST, device, packet, f"it came out of a tunnel, and no {name} policy accepts that")
