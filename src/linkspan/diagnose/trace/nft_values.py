"""Values in nftables' rules, as its JSON has them, compared with a packet's."""

from __future__ import annotations

import fnmatch
import ipaddress
import re
import socket
from collections.abc import Mapping
from typing import Any

from linkspan.core.addresses import Prefix, prefix
from linkspan.core.errors import Invalid
from linkspan.diagnose.trace.packet import NUMBERS, Span, within

_MAC_TEXT = re.compile("[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_ICMP_TYPES = {"echo-reply": 0, "echo-request": 8}
_ETHER_TYPES = {"ip": 0x0800, "arp": 0x0806, "ip6": 0x86DD}


def of_tcp_flags(left: Any) -> bool:
    """Return whether an expression reads a TCP segment's flags."""
    field = left["&"][0] if isinstance(left, dict) and "&" in left else left
    return bool(field == {"payload": {"protocol": "tcp", "field": "flags"}})


def of_status(left: Any) -> Mapping[str, Any]:
    """Return an expression that reads a connection's status, {} for any other."""
    field = left["&"][0] if isinstance(left, dict) and "&" in left else left
    found: Mapping[str, Any] = left if field == {"ct": {"key": "status"}} else {}
    return found


class Ports(str):
    """Ports of which one is meant, as a packet's field."""

    @property
    def span(self) -> Span:
        """Return the first and the last port."""
        first, _, last = self.partition("-")
        return int(first), int(last)


def spans(key: tuple[str, ...]) -> bool:
    """Return whether a key has ports of which one is meant."""
    return any(isinstance(part, Ports) for part in key)


def in_span(ports: Span, right: Any, op: str = "==") -> bool | None:
    """Compare ports of which one is meant; None if the result depends on the port."""
    match right:
        case int():
            least = {"<": 0, "<=": 0, ">": right + 1}.get(op, right)
            most = {"<": right - 1, ">": 65535, ">=": 65535}.get(op, right)
            return within(ports, least, most)
        case {"range": [int(first), int(last)]}:
            return within(ports, first, last)
    return None


def flag_names(value: Any) -> frozenset[str] | None:
    """Return flags by name, however nft lists them."""
    match value:
        case str():
            return frozenset({value})
        case {"|": list(items)} | {"set": list(items)} | list(items):
            parts = [flag_names(item) for item in items]
            return None if None in parts else frozenset(name for part in parts if part for name in part)
        case 0:
            return frozenset()
    return None


def masked(value: str, mask: Any) -> tuple[str, ...] | None:
    """Return an address or a number cut by a mask."""
    if isinstance(mask, int):
        return (str(int(value, 0) & mask),) if value.isdigit() else None
    if not isinstance(mask, str):
        return None
    try:
        whole, kept = prefix(value).packed, prefix(mask).packed
    except Invalid:
        return None
    return (Prefix(bytes(a & b for a, b in zip(whole, kept, strict=True)), 0).address,)


def equal(value: str, pattern: str) -> bool:
    """Compare as nft does: a trailing ``*`` matches any ending, and a number matches its name."""
    if pattern.endswith("*") and not pattern.endswith("\\*"):
        return fnmatch.fnmatchcase(value, pattern)
    if value == pattern:
        return True
    first, second = as_number(value), as_number(pattern)
    return first is not None and first == second


def as_number(text: str) -> int | None:
    """Return the number of a protocol, an ICMP type or an ethertype; None for anything else."""
    if text.isdigit():
        return int(text)
    for names in (NUMBERS, _ETHER_TYPES, _ICMP_TYPES):
        if text in names:
            return names[text]
    try:
        return socket.getprotobyname(text)
    except OSError:
        return None


def ordered(value: str, bound: Any, op: str) -> bool | None:
    """Compare numbers, MACs or addresses by their order."""
    left: Any
    right: Any
    if value.isdigit() and isinstance(bound, int):
        left, right = int(value), bound
    elif _MAC_TEXT.fullmatch(value) and _MAC_TEXT.fullmatch(str(bound)):
        left, right = value, str(bound)  # as text they have the same order
    else:
        try:
            left, right = ipaddress.ip_address(value), ipaddress.ip_address(str(bound))
        except ValueError:
            return None
        if left.version != right.version:
            return False
    below, same = bool(left < right), bool(left == right)
    found: dict[str, bool] = {"<": below, "<=": below or same, ">": not (below or same), ">=": not below}
    return found[op]


def inside(address: str, pool: str) -> bool:
    """Return whether an address is in a prefix."""
    try:
        return prefix(pool).holds(prefix(address))
    except Invalid:
        return False
