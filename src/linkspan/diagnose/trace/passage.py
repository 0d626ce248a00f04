"""Passage of a packet in a namespace: hooks, attached programs, policies, routes, links and neighbours.

Each of these lets it pass, stops it (``Broken``), or is a place with an unknown result (``unknown``).
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator

import msgspec

from linkspan.core.addresses import Prefix, mac_text
from linkspan.core.model import Endpoint
from linkspan.core.states.host import HOST
from linkspan.diagnose.trace import netfilter_hooks
from linkspan.diagnose.trace.hops import (
    Broken,
    Hop,
    Map,
    Unknown,
    forwarding_off,
    headers,
    show,
    where,
)
from linkspan.diagnose.trace.kernel_view import (
    BLACKHOLE,
    LOCAL,
    PROHIBIT,
    UNREACHABLE,
    Device,
    KernelView,
    Lookup,
)
from linkspan.diagnose.trace.packet import Outer, Packet, towards, within
from linkspan.diagnose.trace.rule_meanings import meaning
from linkspan.diagnose.trace.verdict import Frame, Verdict
from linkspan.kernel.probe.xfrm_and_rules import Rule, XfrmPolicy

_MAC = 6
"""Bytes of a MAC."""
_NEVER = 8
"""The level of arp_ignore at which the kernel answers for no address (Documentation/networking/ip-sysctl)."""
_ASKABLE = frozenset({"icmp", "tcp", "udp"})
"""Protocols that KernelView.route considers."""
_REFUSING = {BLACKHOLE: "blackhole", UNREACHABLE: "unreachable", PROHIBIT: "prohibit"}


class Passage:
    """The passage of one packet; ``hops`` grows as it proceeds, ``mtu`` is the smallest on the path.

    ``unknown`` are the places where nobody can decide whether it passes.
    """

    def __init__(self, asked: KernelView, known: Map) -> None:
        self.hops: list[Hop] = []
        self.mtu = 65535
        self.unknown: list[Unknown] = []
        self._asked = asked
        self._known = known
        self._outer: Outer | None = None

    # Hooks, and what trace cannot read.

    def _after(self, found: Verdict, netns: int, device: str, packet: Packet) -> Packet:
        """Return the packet after a hook. Raises Broken if it is dropped there."""
        for rule in found.unsure:
            self._note(netns, device, f"whether a rule applies is not known: {rule}", packet)
        for what in found.later:
            why = f"a connection's first segment passes, and {what}"
            self._note(netns, device, why, packet, later=True)
        if not found.passes:
            why = meaning(found.by, packet)
            if found.policy:
                why = f"the policy of a foreign {found.policy} chain drops it"
            raise self._broken(netns, device, packet, f"{why} ({found.where}: {found.rule})")
        return found.packet or packet

    def _ingress(self, frame: Frame) -> Packet:
        """Receive a frame by its device: past programs and filters, and nftables' hook there."""
        packet, found = self._ingressed(frame)
        if any(found.forwarded):
            link, to = found.forwarded
            self._note(frame.netns, frame.arriving, f"{found.where} forwards it by {link} to {to}", frame.packet)
        return packet

    def _ingressed(self, frame: Frame) -> tuple[Packet, Verdict]:
        """Receive a frame by its device; return also the verdict of nftables' hook there, which may forward it."""
        self._below("ingress", frame, frame.arriving)
        attached = self._asked.attached(frame.netns, frame.arriving).ingress
        packet = self._past(attached, frame.netns, frame.arriving, frame.packet)
        found = netfilter_hooks.passed_link(self._asked, "ingress", msgspec.structs.replace(frame, packet=packet))
        return self._after(found, frame.netns, frame.arriving, packet), found

    def _egress(self, frame: Frame) -> Packet:
        """Send a frame by its device: nftables' hook there, then programs, filters and queues."""
        found = netfilter_hooks.passed_link(self._asked, "egress", frame)
        packet = self._after(found, frame.netns, frame.leaving, frame.packet)
        attached = self._asked.attached(frame.netns, frame.leaving).egress
        packet = self._past(attached, frame.netns, frame.leaving, packet)
        self._below("egress", msgspec.structs.replace(frame, packet=packet), frame.leaving)
        return packet

    def _below(self, hook: str, frame: Frame, device: str) -> None:
        """Pass the devices by which a foreign bridge, bond or VLAN sends: any of its ports may be the one."""
        if any(network.bridge == device for network in self._known.networks.values()):
            return  # the walk passes a port of ours itself
        ways = {"ingress": ("prerouting", "input"), "egress": ("output", "postrouting")}[hook]
        for lower in self._asked.below(frame.netns, device):
            told = self._asked.attached(frame.netns, lower)
            self._past(told.ingress if hook == "ingress" else told.egress, frame.netns, lower, frame.packet)
            there = msgspec.structs.replace(frame, **{"arriving" if hook == "ingress" else "leaving": lower})
            found = [netfilter_hooks.passed_link(self._asked, hook, there)]
            found += [netfilter_hooks.passed_bridge(self._asked, way, there) for way in ways]
            for one in found:
                for rule in one.unsure:
                    self._note(frame.netns, lower, f"whether a rule applies is not known: {rule}", frame.packet)
                if not one.passes:
                    why = f"{one.where} drops it where it goes by {lower}: {one.rule}"
                    self._note(frame.netns, lower, why, frame.packet)

    def _past(self, attached: tuple[str, ...], netns: int, device: str, packet: Packet) -> Packet:
        for one in attached:
            place = f"{device} in {self._known.name(netns)}"
            why = f"{one} at {place} may drop, redirect or mark it, and trace cannot read that"
            self._note(netns, device, why, packet)
        return msgspec.structs.replace(packet, mark=None) if attached else packet

    def _note(self, netns: int, device: str, why: str, packet: Packet, *, later: bool = False) -> None:
        """Remember a place where nobody can decide whether the packet passes, or (``later``) later ones."""
        self._hop(netns, device, "unknown", why, packet)
        self.unknown.append(Unknown(where(self.hops[-1]), why, later=later))

    def _beyond_us(self, address: bytes) -> None:
        """Remember that the last hop is the end of linkspan's knowledge of the path to or from an address."""
        at = self.hops[-1]
        place = f"{at.device} of " + (f"host {at.host}" if at.namespace == "host" else f"{at.namespace} on {at.host}")
        why = f"beyond {place} nobody was asked: {show(address)} is on no host of linkspan's"
        self.unknown.append(Unknown(where(at), why, beyond=True))

    # What stops a packet.

    def _require_policy(self, netns: int, direction: int, device: str, packet: Packet) -> None:
        """Raise for an XFRM policy that blocks; note one that wants encryption, whose result is unknown."""
        for policy in self._asked.policies(netns):
            if policy.direction != direction or not _chosen(policy, packet):
                continue
            ends = f"src {policy.source} dst {policy.target} dir {('in', 'out', 'fwd')[direction]}"
            sure = not policy.ports and not policy.device and (not policy.mark[1] or packet.mark is not None)
            if policy.blocks and sure:
                raise self._broken(netns, device, packet, f"an XFRM policy blocks it (ip xfrm policy: {ends})")
            if policy.blocks or policy.transforms:
                self._note(netns, device, f"an XFRM policy may block or encrypt it ({ends})", packet)
            if sure:
                return

    def _require_own(self, netns: int, device: Device, packet: Packet, *, guarded: bool = False) -> None:
        """Raise for a link whose packets another device takes; note one whose taker is up and may pass them on.

        ``guarded``: the guard accepts the packet only on this link.
        """
        name = self._known.name(netns)
        for taker in self._asked.takers(netns, device.name):
            self._taken(netns, device, taker, f"has the macvlan {taker} in mode passthru", packet, guarded)
        if device.port is not None:
            self._taken(netns, device, device.master, f"is a port of bridge {device.master}", packet, guarded)
        elif device.master:
            self._note(netns, device.name, f"{device.name} in {name} belongs to {device.master}", packet)

    def _taken(self, netns: int, device: Device, taker: str, how: str, packet: Packet, guarded: bool) -> None:
        there = self._asked.device(netns, taker)
        reason = f"link {device.name} in {self._known.name(netns)} {how}, which takes its packets"
        if guarded:
            raise self._broken(netns, device.name, packet, reason)
        if there is None or not there.up:
            raise self._broken(netns, device.name, packet, f"{reason}, and is down")
        self._note(netns, device.name, f"{reason}, and may pass it on", packet)

    def _require_source(self, netns: int, packet: Packet) -> None:
        if packet.source and packet.source not in self._asked.addresses(netns):
            name = self._known.name(netns)
            owner = self._known.holding(packet.source)
            device = owner.ifname if owner and netns != HOST else ""
            where = f" on {device}" if device else ""
            raise self._broken(
                netns, device, packet, f"address {show(packet.source)} is missing in {name}{where}"
            )

    def _usable(self, netns: int, name: str, packet: Packet) -> Device:
        found = self._asked.device(netns, name)
        where = self._known.name(netns)
        if found is None:
            raise self._broken(netns, name, packet, f"link {name} does not exist in {where}")
        if not found.up:
            raise self._broken(netns, name, packet, f"link {name} in {where} is down")
        if not found.carrier and found.kind != "bridge":
            raise self._broken(
                netns, name, packet, f"link {name} in {where} has no carrier: its other end is down"
            )
        return found

    def _looked_up(self, netns: int, packet: Packet, arriving: str = "") -> Lookup:
        """Return the packet's route. Raises Broken if there is none.

        If policy rules depend on unknown properties of the packet, its route is one of several.
        """
        lookup = self._asked.route(netns, packet, arriving)
        looked_at = self._asked.rules(netns, packet.family)
        # A route found by the first rule, usually in the table of local addresses, has precedence over later
        # rules.
        first = min((r.priority for r in looked_at if not r.action), default=0)
        unsure = [
            r for r in looked_at
            if (lookup.kind != LOCAL or r.priority <= first) and _applies(r, packet, arriving) is None
        ]  # fmt: skip
        for other in _others(packet, unsure):
            if not _stops(lookup):
                break
            lookup = self._asked.route(netns, other, arriving)
        for rule in unsure:
            self._note(netns, arriving or lookup.device, f"whether a policy rule applies is not known: {rule}", packet)
        self._require_route(netns, arriving, packet, lookup)
        return lookup

    def _require_route(self, netns: int, arriving: str, packet: Packet, lookup: Lookup) -> None:
        where, target = self._known.name(netns), show(packet.target)
        why = f": {lookup.learnt}" if lookup.learnt else ""
        if not _stops(lookup):
            return
        refusing = (r for r in self._asked.rules(netns, packet.family) if r.action)
        rule = next((r for r in refusing if _applies(r, packet, arriving)), None)
        if rule is not None and lookup.error != errno.EXDEV:
            raise self._broken(netns, arriving, packet, f"a policy rule refuses {target} in {where} ({rule})")
        if lookup.kind in _REFUSING:
            reason = f"{target} meets the {_REFUSING[lookup.kind]} route {lookup.matched} in {where}"
            raise self._broken(netns, arriving, packet, reason + (why or ": nobody has this address"))
        if lookup.error == errno.EINVAL:
            onward = self._asked.route(netns, msgspec.structs.replace(packet, source=b""))
            if onward.error == errno.EINVAL:
                raise self._broken(netns, arriving, packet, f"{target} meets a blackhole route in {where}")
        if arriving and packet.family == 4:
            self._require_forwarding(netns, arriving, packet, lookup)
        if lookup.error in (errno.EHOSTUNREACH, errno.EACCES):
            raise self._broken(netns, arriving, packet, f"{target} meets an unreachable route in {where}{why}")
        if lookup.error == errno.ENETUNREACH:
            raise self._broken(netns, arriving, packet, f"{where} has no route to {target}")
        words = errno.errorcode.get(lookup.error, str(lookup.error))
        refused = f"the kernel refuses to route to {target} in {where} ({words})"
        raise self._broken(netns, arriving, packet, refused)

    def _require_forwarding(self, netns: int, arriving: str, packet: Packet, lookup: Lookup) -> None:
        """Raise with the setting that makes the kernel refuse a received IPv4 packet."""
        where = self._known.name(netns)
        if lookup.error == errno.EHOSTUNREACH:
            local = self._asked.route(netns, msgspec.structs.replace(packet, source=b""))
            if not local.error and self._asked.setting(netns, f"net/ipv4/conf/{arriving}/forwarding") == "0":
                raise self._broken(netns, arriving, packet, forwarding_off(4, arriving))
        if lookup.error in (errno.EINVAL, errno.EXDEV):
            back = self._asked.route(netns, towards(packet.source))
            levels = [self._asked.setting(netns, f"net/ipv4/conf/{n}/rp_filter") for n in ("all", arriving)]
            if back.kind == LOCAL:
                raise self._broken(
                    netns, arriving, packet, f"{show(packet.source)} is an address of {where} itself"
                )
            way = f"by {back.device}" if back.device else "nowhere"
            reason = f"the route back to {show(packet.source)} leads {way}, not by {arriving}"
            mode = "strict" if max(levels) == "1" else "loose"
            raise self._broken(
                netns, arriving, packet, f"rp_filter ({mode}) on {arriving} drops it: {reason}"
            )

    def _broken(self, netns: int, device: str, packet: Packet, reason: str) -> Broken:
        self._hop(netns, device, "dropped", reason, packet)
        return Broken(self.hops[-1], reason)

    # Neighbours.

    def _silent(self, owner: Endpoint, device: Device | None) -> str:
        """Return why a container does not answer ARP for its own address, '' if it does."""
        name = self._known.name(owner.netns)
        if device is not None and device.silent:
            return f"ARP is off on {owner.ifname} in {name}"
        levels = [self._asked.setting(owner.netns, f"net/ipv4/conf/{n}/arp_ignore") for n in ("all", owner.ifname)]
        level = max(int(value or 0) for value in levels)
        return f"arp_ignore={level} in {name}" if level >= _NEVER else ""

    def _require_neighbour(
        self,
        netns: int,
        device: Device,
        following: bytes,
        own: bytes,
        packet: Packet,
        why: str = "",
        at: tuple[int, str] = (HOST, ""),
    ) -> bytes:
        """Return the next hop's MAC, which is ``own`` if known; ``why`` is why it would not answer.

        The neighbour table's entry must be true, and without an entry the next hop must answer: ``at`` is the
        namespace and the link on which it is asked.
        """
        address, where = show(following), self._known.name(netns)
        entry = self._asked.neighbour(netns, device.name, following)
        if device.silent and (entry is None or not entry.known or entry.mac == device.mac):
            reason = f"ARP is off on {device.name} in {where}, so {address} is not asked for its MAC"
            raise self._broken(netns, device.name, packet, reason)
        if entry is not None and entry.known:
            if own and entry.mac != own:
                reason = f"{where} has {mac_text(entry.mac)} as the neighbour {address}, whose MAC is {mac_text(own)}"
                raise self._broken(netns, device.name, packet, reason)
            return entry.mac
        self._require_asking(netns, device, following, packet)
        if not why and own:
            source = packet.source if len(packet.source) == len(following) else b""
            if source not in self._asked.addresses(netns):
                source = self._asked.route(netns, towards(following)).source
            question = Packet(source, following, "arp")
            if packet.family == 4:
                asking = Frame(question, "", device.name, device.mac, netns=netns)
                self._after(netfilter_hooks.passed_arp(self._asked, "output", asking), netns, device.name, packet)
                answer = Packet(following, source, "arp", established=True)
                taking = Frame(answer, device.name, "", own, device.mac, netns)
                self._after(netfilter_hooks.passed_arp(self._asked, "input", taking), netns, device.name, packet)
                if source and at[1]:  # the kernel answers only those from whom it would accept packets
                    self._looked_up(at[0], question, at[1])
            if not source or self._asked.answering(netns, device.name, source, following) is not None:
                return own
            why = f"this trace just asked on {device.name} of {where}"
        if not why:
            return own
        raise self._broken(netns, device.name, packet, f"nobody answers for {address}: {why}")

    def _require_asking(self, netns: int, device: Device, following: bytes, packet: Packet) -> None:
        """Raise for a link on which the kernel does not ask for unknown MACs (ip-sysctl, neigh)."""
        family = 4 if len(following) == 4 else 6
        path = f"net/ipv{family}/neigh/{device.name}"
        if len(device.mac) != _MAC or self._asked.setting(netns, f"{path}/mcast_solicit") != "0":
            return
        setting = f"{path.replace('/', '.')}.mcast_solicit=0"
        why = f"{self._known.name(netns)} does not ask for it on {device.name} ({setting})"
        if self._asked.setting(netns, f"{path}/app_solicit") not in ("0", ""):
            self._note(netns, device.name, f"{why}, except by a program", packet)
            return
        raise self._broken(netns, device.name, packet, f"the MAC of {show(following)} is not known, and {why}")

    # Hops and notes.

    def _hop(self, netns: int, device: str, action: str, detail: str, packet: Packet, port: str = "") -> None:
        name = self._known.name(netns, device)
        told = headers(packet, self._outer)
        self.hops.append(Hop(self._known.host, name, device, action, detail, told, port, mtu=self.mtu))

    def _narrow(self, *mtus: int) -> None:
        self.mtu = min(self.mtu, *(m for m in mtus if m)) if any(mtus) else self.mtu


def _chosen(policy: XfrmPolicy, packet: Packet) -> bool:
    """Return whether an XFRM policy may match a packet, as far as is known."""
    if policy.target.family != packet.family:
        return False
    bits = len(packet.target) * 8
    ends = policy.source.holds(Prefix(packet.source, bits)) and policy.target.holds(Prefix(packet.target, bits))
    mark, mask = policy.mark
    marked = packet.mark is None or packet.mark & mask == mark
    return ends and marked and policy.protocol in (0, packet.number)


def _stops(lookup: Lookup) -> bool:
    return bool(lookup.error) or lookup.kind in _REFUSING


def _applies(rule: Rule, packet: Packet, arriving: str) -> bool | None:
    """Return whether a policy rule matches a packet that comes by a link, or ('') starts here; None: unknown."""
    bits = len(packet.target) * 8
    mark, mask = rule.mark
    number = packet.number
    tests = [
        rule.source is None or rule.source.holds(Prefix(packet.source, bits)),
        rule.target is None or rule.target.holds(Prefix(packet.target, bits)),
        rule.arriving in ("", arriving or "lo"),
        not rule.leaving,
        not rule.more,
        rule.protocol in (0, number),
        (None if mask else True) if packet.mark is None else packet.mark & mask == mark & mask,
        within(packet.source_ports if packet.has_ports else (0, 0), *rule.sports),
        within(packet.target_ports if packet.has_ports else (0, 0), *rule.dports),
    ]
    if rule.protocol == number and packet.protocol not in _ASKABLE:
        tests.append(None)  # the kernel cannot look up a route for this protocol
    if False in tests:
        return rule.inverted
    return None if None in tests else not rule.inverted


def _others(packet: Packet, unsure: Iterable[Rule]) -> Iterator[Packet]:
    """Yield the packet with other client ports that these rules may distinguish."""
    first, last = packet.client
    edges = [edge for rule in unsure for one in (rule.sports, rule.dports) for edge in (one[0] - 1, one[1] + 1)]
    for port in dict.fromkeys((first, last, *edges) if edges else ()):
        if any(packet.client) and first <= port <= last:
            own = {"port": port} if packet.established else {"source_port": port}
            yield msgspec.structs.replace(packet, **own)
