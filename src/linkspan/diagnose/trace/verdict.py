"""Verdict of a firewall on a packet, and the doubts on which it depends: for nftables and for iptables."""

from __future__ import annotations

import msgspec

from linkspan.diagnose.trace.nft_rule import Rule
from linkspan.diagnose.trace.packet import Packet

PASS, DROP, CHANGE, AFTER = "pass", "drop", "change", "after"
"""Possible effects of a rule that may apply; AFTER: effects on the segments after a handshake."""


class Verdict(msgspec.Struct, frozen=True):
    """The verdict of a chain or hook.

    ``later`` says what a later segment of the same connection meets that does not let it pass for certain.
    ``where`` and ``rule`` say who did. ``by`` is the rule of nftables that did (None for a policy, and for iptables),
    ``policy`` the chain of iptables whose policy did. ``to`` is a DNAT's target (address, port), ``masked`` says that
    the source is to change, to ``source`` or else to the host's own. ``packet`` is the packet afterwards. ``unsure``
    are the rules on which it depends whether this is so; ``unless`` is the drop (where, rule) that one of them could
    prevent. ``rerouted`` tells that the packet is to be routed once more. ``forwarded`` has the link by which a rule
    sends the packet itself, and the next hop there, past everything else on the host. ``removal`` is the command that
    takes away what drops in iptables, in words.
    """

    passes: bool = True
    where: str = ""
    rule: str = ""
    by: Rule | None = None
    policy: str = ""
    to: tuple[str, ...] = ()
    masked: bool = False
    later: tuple[str, ...] = ()
    source: str = ""
    packet: Packet | None = None
    unsure: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()
    rerouted: bool = False
    forwarded: tuple[str, str] = ("", "")
    removal: tuple[str, ...] = ()


class Frame(msgspec.Struct, frozen=True):
    """A packet at a hook of the namespace ``netns``: its devices, and the MACs of its frame.

    ``tracked`` is false before connection tracking has seen it, ``started`` says that this namespace sends
    it.
    """

    packet: Packet
    arriving: str = ""
    leaving: str = ""
    mac: bytes = b""
    to_mac: bytes = b""
    netns: int = 0
    tracked: bool = True
    started: bool = False


class Doubts:
    """Possible effects of rules that may apply."""

    def __init__(self) -> None:
        self._found: list[tuple[str, str]] = []

    def add(self, rule: str, *could: str) -> None:
        """Remember a rule and its possible effect."""
        self._found += [(kind, rule) for kind in could]

    def adopt(self, rule: str, other: Doubts) -> None:
        """Remember the possible effects of a chain to which a rule jumps that may apply."""
        self.add(rule, *dict.fromkeys(kind for kind, _ in other._found))

    def about(self, *could: str) -> tuple[str, ...]:
        """Return the rules with one of these possible effects."""
        return tuple(dict.fromkeys(rule for kind, rule in self._found if kind in could))

    def settle(self, found: Verdict) -> Verdict:
        """Return a chain's verdict with what it depends on; a drop that an earlier rule could prevent is no drop."""
        if found.passes:
            later = tuple(f"something else answers for the destination: {rule}" for rule in self.about(AFTER))
            return msgspec.structs.replace(found, unsure=self.about(DROP, CHANGE), later=later)
        doubts = self.about(PASS, CHANGE)
        if not doubts:
            return found
        unsure = tuple(f"{found.where}: {found.rule}, unless this applies: {rule}" for rule in doubts)
        return Verdict(unsure=unsure, unless=(found.where, found.rule))
