"""What linkspan's own rules that drop are for, told from what a rule looks up (nft's JSON), never from its text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from linkspan.core.ruleset import TABLE
from linkspan.diagnose.trace.hops import show
from linkspan.diagnose.trace.nft_verdict import Rule
from linkspan.diagnose.trace.questions import Packet

_STRANGE = "the guard does not take {source} from there: no peer has it by this way"
_INTERNAL = "the network is internal, and of the host it may ask for DNS and ICMP only"
_ENDS = {"drop": _STRANGE, "reject": _INTERNAL}
"""Rules without a condition: the end of the chains for what comes from other hosts, and of an internal network's."""

UNKNOWN = "a firewall drops it"
MEANINGS = (
    ("@tunnel_peers", "a tunnel's packets are taken from peers only, and {source} is none"),
    ("@tunnel_ports", "a container's own packets for a tunnel would reach a peer as its host's, and do not leave"),
    ("@speaker_ports", "a container's own BGP session would reach a peer as its host's, and does not leave"),
    ("@control", "containers are kept from the store, the switches and the controller"),
    ("@control_here", "containers are kept from the store, the switches and the controller"),
    ("@ipip_peers", "IPIP is taken from peers only, and {source} is none"),
    ("lsx*", "the guard does not take {source} from this peer: it is not of its blocks"),
    ("@internal_links", "the network is internal: nothing passes between it and the outside"),
    ("@internal", "networks are isolated from each other, and an internal one reaches no published port"),
    ("@servers", "names of a network are told to its own containers and to the host only"),
    ("@views", "names of several networks are told to containers in all of them and to the host only"),
    ("lsp*", "the port is on no bridge"),
    ("@sealed", "the network is encrypted, and nothing with its addresses leaves in clear or is taken so"),
    ("@macs", "the guard does not know this MAC at this port"),
    ("@senders", "the guard does not let {source} be sent from this port, or not with this MAC"),
    ("127.0.0.0", "loopback addresses are not taken from the wire"),
    ("@old", "the host did not forward between these links before linkspan turned forwarding on"),
    ("@pools", "networks are isolated from each other (`linkspan network allow` opens the way)"),
    ("@sources", "{source} belongs to a container, and does not come from one"),
)
"""By a value that a rule compares with: the first that it has. Of sets for both families without the family."""


def is_ours(rule: Rule | None) -> bool:
    """Tell whether a rule is one of linkspan's."""
    return rule is not None and rule.table == TABLE


def meaning(rule: Rule | None, packet: Packet) -> str:
    """Return for people what the rule that drops a packet is for, if it is one of ours."""
    if rule is None or not is_ours(rule):
        return UNKNOWN
    values = {value for expression in rule.expressions for value in _values(expression)}
    alone = rule.expressions[0] if len(rule.expressions) == 1 else {}
    found = [text for value, text in MEANINGS if value in values]
    found += [text for verdict, text in _ENDS.items() if verdict in alone]
    return found[0].format(source=show(packet.source)) if found else UNKNOWN


def _values(expression: Any) -> Iterator[str]:
    """Yield what an expression compares with or looks up in: names of sets and links, addresses."""
    match expression:
        case {"match": {"right": right}}:
            yield from _values(right)
        case {"vmap": {"data": data}}:
            yield from _values(data)
        case {"prefix": {"addr": str(address)}}:
            yield address
        case str():
            yield expression[:-1] if expression.startswith("@") and expression[-1] in "46" else expression
