"""Netfilter hooks that a packet passes: their chains, the order, and the common verdict.

At each hook nftables' base chains and iptables' tables are called by their priorities. Any drop is final, and
each chain sees what earlier ones changed (marks, addresses, TTL). The kernel puts a new hook before those of equal
priority (nf_hook_entries_grow in its net/netfilter/core.c), but its list of rulesets does not say when each was
registered. So where two orders of such chains lead to different verdicts, the verdict is unsure.
"""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable, Sequence

import msgspec

from linkspan.core.addresses import SOCKET_FAMILY
from linkspan.core.errors import KernelError
from linkspan.core.ruleset import INET, TABLE
from linkspan.diagnose.trace import iptables_verdict, nft_verdict
from linkspan.diagnose.trace.hops import show
from linkspan.diagnose.trace.kernel_view import KernelView
from linkspan.diagnose.trace.packet import ACK, DATA, FLOWING, Packet
from linkspan.diagnose.trace.verdict import Frame, Verdict


class _Step(msgspec.Struct, frozen=True):
    """A chain at a hook, and its verdict. All translations run at one ``priority``, by their ``order``.

    ``translates``: it is a NAT chain. ``reroutes``: a changed mark affects the route of locally sent packets.
    """

    priority: int
    order: int
    translates: bool
    reroutes: bool
    decides: Callable[[Frame], Verdict]


def passed(
    asked: KernelView, hook: str, frame: Frame, undo: Callable[[Packet], Packet] | None = None
) -> Verdict:
    """Return the verdict of an IP hook: prerouting, input, forward, output or postrouting.

    ``undo`` is connection tracking's effect on an answer there, at the priority of translations.
    """
    steps = [*_of_nft(asked, hook, frame), *_of_iptables(asked, hook, frame)]
    if undo is not None:
        steps.append(
            _Step(
                iptables_verdict.NAT[hook], 0, False, False, lambda frame: Verdict(packet=undo(frame.packet))
            )
        )
    return _decided(asked, hook, steps, frame)


def passed_foreign_nft(asked: KernelView, hook: str, frame: Frame) -> Verdict:
    """Return the verdict of the nftables chains of other programs at an IP hook.

    A drop in linkspan's own table is wanted: a policy, or the isolation of networks.
    """
    return _decided(asked, hook, _of_nft(asked, hook, frame, foreign=True), frame)


def passed_iptables(asked: KernelView, hook: str, frame: Frame) -> Verdict:
    """Return the verdict of iptables' tables at an IP hook."""
    return _decided(asked, hook, _of_iptables(asked, hook, frame), frame)


def _of_nft(asked: KernelView, hook: str, frame: Frame, *, foreign: bool = False) -> list[_Step]:
    families = ("inet", "ip" if frame.packet.family == 4 else "ip6")
    try:
        chains = asked.chains(frame.netns)
    except KernelError as error:
        return [_unread(error)]
    return [
        _Step(
            iptables_verdict.NAT.get(hook, chain.priority) if chain.kind == "nat" else chain.priority,
            chain.priority,
            chain.kind == "nat",
            chain.kind == "route",
            functools.partial(nft_verdict.evaluate, asked, chains, chain),
        )
        for chain in chains
        if chain.family in families
        and chain.hook == hook
        and not (foreign and (chain.family, chain.table) == (INET, TABLE))
    ]


def _of_iptables(asked: KernelView, hook: str, frame: Frame) -> list[_Step]:
    name = hook.upper()
    steps: list[_Step] = []
    try:
        tables = asked.iptables(frame.netns, frame.packet.family)
    except KernelError as error:
        return [_unread(error)]
    for table in tables:
        if name in table.policies:
            nat = table.name == "nat"
            priority = iptables_verdict.NAT[hook] if nat else iptables_verdict.PRIORITIES.get(table.name, 0)
            decides = functools.partial(iptables_verdict.evaluate, asked, table, name)
            steps.append(_Step(priority, priority, nat, table.name == "mangle", decides))
    return steps


def passed_link(asked: KernelView, hook: str, frame: Frame) -> Verdict:
    """Return the verdict of a device's own hook, before the host processes a packet (ingress) or after (egress)."""
    device = frame.arriving if hook == "ingress" else frame.leaving
    return _of(asked, ("netdev", "inet"), hook, frame, device)


def passed_bridge(asked: KernelView, hook: str, frame: Frame) -> Verdict:
    """Return the verdict of a bridge hook, with ebtables' chains."""
    return _of(asked, ("bridge",), hook, frame)


def passed_arp(asked: KernelView, hook: str, frame: Frame) -> Verdict:
    """Return the verdict of an ARP hook (input, output), with arptables' chains."""
    return _of(asked, ("arp",), hook, frame)


def _of(asked: KernelView, families: Sequence[str], hook: str, frame: Frame, device: str = "") -> Verdict:
    try:
        chains = asked.chains(frame.netns)
    except KernelError as error:
        return _together(asked, [_unread(error)], frame)
    steps = [
        _Step(chain.priority, 0, False, False, functools.partial(nft_verdict.evaluate, asked, chains, chain))
        for chain in chains
        if chain.family in families and chain.hook == hook and (not device or device in chain.devices)
    ]
    return _decided(asked, hook, steps, frame)


def _unread(error: KernelError) -> _Step:
    """Return a step with unknown effect."""
    told = Verdict(unsure=(f"the namespace's rules cannot be read ({error.message})",))
    return _Step(0, 0, False, False, lambda _frame: told)


def _decided(asked: KernelView, hook: str, steps: Sequence[_Step], frame: Frame) -> Verdict:
    """Return the verdict of the steps, and their effect on the TCP segments that follow the first one."""
    found = _together(asked, steps, frame)
    packet = found.packet
    if frame.packet.protocol != "tcp" or not found.passes or packet is None:
        return found
    # Connection tracking translates these like the first one.
    same = {"source": packet.source, "target": packet.target, "port": packet.port, "source_port": packet.source_port}

    def translate(there: Frame) -> Verdict:
        return Verdict(packet=msgspec.structs.replace(there.packet, translated=packet.translated, **same))

    steps = [step for step in steps if not step.translates]
    steps += [_Step(iptables_verdict.NAT[hook], 0, False, False, translate)] if hook in iptables_verdict.NAT else []
    later = list(found.later)
    for segment in (ACK, DATA):
        following = msgspec.structs.replace(frame, packet=msgspec.structs.replace(frame.packet, later=segment))
        told = _together(asked, steps, following)
        if not told.passes:
            later.append(f"a later one is dropped ({told.where}: {told.rule})")
        doubts = (rule for rule in told.unsure if rule not in found.unsure)
        later += [f"of a later one it is not known whether a rule applies: {rule}" for rule in doubts]
    return msgspec.structs.replace(found, later=tuple(dict.fromkeys(later)))


def _together(asked: KernelView, steps: Sequence[_Step], frame: Frame) -> Verdict:
    """Return the verdict of the steps, unsure if it depends on the order of those of equal priority."""
    newest = list(steps[::-1])
    newest.sort(key=_place)  # stable: those of equal priority stay as they are
    oldest = sorted(steps, key=_place)
    found = _in_order(asked, newest, frame)
    if oldest == newest:
        return found
    other = _in_order(asked, oldest, frame)
    if _effect(found) == _effect(other):
        return found
    doubt = "chains of equal priority lead to different verdicts, and a trace does not know their order"
    passing, refused = (found, other) if found.passes else (other, found)
    unless = passing.unless if refused.passes else (refused.where, refused.rule)
    if not refused.passes:
        doubt = f"{refused.where}: {refused.rule}, if it is called before another chain of equal priority"
    return msgspec.structs.replace(passing, unsure=(*passing.unsure, doubt), unless=unless)


def _place(step: _Step) -> tuple[int, int]:
    return step.priority, step.order


def _effect(found: Verdict) -> tuple[object, ...]:
    """Return what a verdict does with the packet."""
    return (found.packet, found.forwarded, found.rerouted) if found.passes else ()


def _in_order(asked: KernelView, steps: Sequence[_Step], frame: Frame) -> Verdict:
    """Return the verdict of the steps, called one after the other."""
    unsure: list[str] = []
    later: list[str] = []
    unless: tuple[str, ...] = ()
    source, where, translated, rerouted = frame.packet.source, "", False, False
    for step in steps:
        known = frame.packet.ct not in ("", FLOWING)
        if step.translates and (translated or frame.packet.established or known):
            continue  # rules translate only a connection's first packet, once per hook
        found = step.decides(frame)
        unsure += found.unsure
        later += found.later
        unless = unless or found.unless
        if not found.passes or any(found.forwarded):
            return msgspec.structs.replace(found, packet=frame.packet, unsure=tuple(unsure))
        packet = found.packet or frame.packet
        rerouted = rerouted or bool(found.to) or (step.reroutes and packet.mark != frame.packet.mark)
        if found.to or found.masked:
            translated, where = True, found.where
            changed = _translated(asked, frame, packet, found)
            if isinstance(changed, str):
                return Verdict(False, found.where, changed, unsure=tuple(unsure))
            packet = changed
        frame = msgspec.structs.replace(frame, packet=packet)
    masked = frame.packet.source != source
    return Verdict(
        True, where, masked=masked, packet=frame.packet, unsure=tuple(unsure), unless=unless, rerouted=rerouted,
        later=tuple(later),
    )  # fmt: skip


def _translated(asked: KernelView, frame: Frame, packet: Packet, found: Verdict) -> Packet | str:
    """Return the packet with its new address, or why there is none."""
    if found.to:
        target = socket.inet_pton(SOCKET_FAMILY[packet.family], found.to[0])
        port = int(found.to[1]) if len(found.to) > 1 else packet.port
        return msgspec.structs.replace(packet, target=target, port=port, translated=True)
    if found.source:
        return msgspec.structs.replace(packet, source=socket.inet_pton(SOCKET_FAMILY[packet.family], found.source))
    own = asked.route(frame.netns, msgspec.structs.replace(packet, source=b"")).source
    if not own:
        return f"masquerade has no address to use: {frame.leaving} has none towards {show(packet.target)}"
    return msgspec.structs.replace(packet, source=own)
