"""Purposes of linkspan's own dropping rules, by what a rule looks up (nft's JSON), never by its text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from linkspan.core.kinds import Admission
from linkspan.core.ruleset import TABLE
from linkspan.diagnose.trace.hops import show
from linkspan.diagnose.trace.nft_rule import Rule
from linkspan.diagnose.trace.packet import Packet
from linkspan.kernel.kinds import kinds

_STRANGE = "the guard does not accept {source} from there: no peer has it on this path"
_INTERNAL = "the network is internal, and may use only DNS and ICMP of the host"
_ENDS = {"drop": _STRANGE, "reject": _INTERNAL}
"""Rules without a condition: the end of the chains for packets from other hosts, and for queries of internal networks
to the host."""

_NOT_ITS_OWN = "the guard does not accept {source} from this peer: it is not in the peer's blocks"
"""The end of the rules for a tunnel device from which nothing else is admitted."""

UNKNOWN = "a firewall drops it"
MEANINGS = (
    ("@tunnel_peers", "tunnel packets are accepted from peers only, and {source} is no peer"),
    ("@tunnel_ports", "a container may not send tunnel packets: they would reach a peer with its host's address"),
    ("@speaker_ports", "a container may not open BGP sessions: they would reach a peer with its host's address"),
    ("@control", "containers may not reach the store, the switches and the controller"),
    ("@control_here", "containers may not reach the store, the switches and the controller"),
    ("@permitted", "the port is published, but not for {source} (`--publish ...,from=`)"),
    ("@permitted_at", "the port is published, but not for {source} (`--publish ...,from=`)"),
    ("@ipip_peers", "IPIP is accepted from peers only, and {source} is no peer"),
    ("@internal_links", "the network is internal: nothing passes between it and the outside"),
    ("@internal", "networks are isolated from each other, and an internal one reaches no published port"),
    ("@servers", "names of a network are answered only to its own containers and to the host"),
    ("@views", "names of several networks are answered only to containers in all of them and to the host"),
    ("@policy_known", "policies do not know {source} or its peer yet: its host has not told who has it"),
    ("lsp*", "the port is in no bridge"),
    ("@sealed", "the network is encrypted, and its packets are neither sent nor accepted in clear"),
    ("@macs", "the guard does not know this MAC at this port"),
    ("@senders", "the guard does not allow {source} at this port, or not with this MAC"),
    ("127.0.0.0", "loopback addresses are not accepted from the wire"),
    ("@old", "the host did not forward between these links before linkspan enabled forwarding"),
    ("@egress_nets", "what leaves this network does so by its egress address, which this host does not hold"),
    ("@egress_here", "it comes to an egress address, at which nothing answers, and belongs to no connection"),
    ("@egress_at", "its source is an egress address that this host does not hold (any more)"),
    ("@egress_ways", "only answers come from the host that holds the network's egress address"),
    ("@egress_links", "only answers come from the host that holds the network's egress address"),
    ("@pools", "networks are isolated from each other (`linkspan network allow` allows it)"),
    ("@sources", "{source} belongs to a container, but the packet does not come from one"),
)
"""Purposes by a value that a rule compares with; the first that the rule has counts. Sets that exist for both families
are without the family."""


def is_ours(rule: Rule | None) -> bool:
    """Return whether a rule is one of linkspan's."""
    return rule is not None and rule.table == TABLE


def meaning(rule: Rule | None, packet: Packet) -> str:
    """Return for people the purpose of the rule that drops a packet, if it is one of ours."""
    if rule is None or not is_ours(rule):
        return UNKNOWN
    if rule.comment:
        return f"{rule.comment} refuses it"  # only rules of policies have comments (`policy/rules.py`)
    values = {value for expression in rule.expressions for value in _values(expression)}
    alone = rule.expressions[0] if len(rule.expressions) == 1 else {}
    found = [text for value, text in MEANINGS if value in values]
    found += [_NOT_ITS_OWN for link in kinds().admitting(Admission.VTEP) if link in values]
    found += [text for verdict, text in _ENDS.items() if verdict in alone]
    return found[0].format(source=show(packet.source)) if found else UNKNOWN


def _values(expression: Any) -> Iterator[str]:
    """Yield the values that an expression compares with: names of sets and links, addresses."""
    match expression:
        case {"match": {"right": right}}:
            yield from _values(right)
        case {"vmap": {"data": data}}:
            yield from _values(data)
        case {"prefix": {"addr": str(address)}}:
            yield address
        case str():
            yield expression[:-1] if expression.startswith("@") and expression[-1] in "46" else expression
