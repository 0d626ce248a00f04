"""Counts of what policies refuse: by rule, and for staged policies by both ends of each flow."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import msgspec

from linkspan.core.addresses import FAMILIES, prefix
from linkspan.core.errors import KernelError
from linkspan.kernel.io.netlink import NETFILTER, Socket, attributes, string, text
from linkspan.kernel.io.nftables import Nft
from linkspan.kernel.probe.conntrack import Flow

# linux/netfilter/nf_tables.h
_GET_RULE = (10 << 8) | 7  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETRULE
_INET = 1  # NFPROTO_INET
_TABLE, _CHAIN, _HANDLE, _EXPRESSIONS, _USERDATA = 1, 2, 3, 4, 7  # NFTA_RULE_*
_NAME, _DATA = 1, 2  # NFTA_EXPR_*
_PACKETS = 2  # NFTA_COUNTER_PACKETS
_COMMENT = 0  # NFTNL_UDATA_RULE_COMMENT in libnftnl/udata.h
_NAMES = {"ipv6-icmp": "icmp"}
"""Names of protocols in nftables, where policies have others."""


class Tally(msgspec.Struct, frozen=True):
    """Packets of one flow that staged policies would refuse."""

    flow: Flow
    packets: int


class Counted(msgspec.Struct, frozen=True):
    """A rule with a counter: its chain, comment, and handle, which no other rule of the table ever has."""

    chain: str
    comment: str
    handle: int


def of_rules(table: str) -> dict[Counted, int]:
    """Return the packets that each rule with a counter has met, in an inet table.

    It works in the calling thread's namespace. Raises KernelError.
    """
    netlink = Socket(NETFILTER)
    try:
        found: dict[Counted, int] = {}
        wanted = struct.pack("=BBH", _INET, 0, 0) + text(_TABLE, table)
        for payload in netlink.dump(_GET_RULE, wanted, "list rules"):
            if b"counter\0" not in payload:  # a thousand policies have ten thousand rules without
                continue
            rule = attributes(payload, 4)
            packets = _packets(rule.get(_EXPRESSIONS, b""))
            if packets is not None and string(rule.get(_TABLE, b"")) == table:
                chain, handle = string(rule.get(_CHAIN, b"")), int.from_bytes(rule.get(_HANDLE, b""), "big")
                found[Counted(chain, _comment(rule.get(_USERDATA, b"")), handle)] = packets
        return found
    finally:
        netlink.close()


def _packets(expressions: bytes) -> int | None:
    offset = 0
    while offset + 4 <= len(expressions):
        (length,) = struct.unpack_from("=H", expressions, offset)
        if length < 4:
            break
        one = attributes(expressions[offset + 4 : offset + length])
        if string(one.get(_NAME, b"")) == "counter":
            return int.from_bytes(attributes(one.get(_DATA, b"")).get(_PACKETS, b""), "big")
        offset += (length + 3) & ~3
    return None


def _comment(userdata: bytes) -> str:
    """Return a rule's comment: libnftnl's user data are types, lengths and values, of a byte each."""
    offset = 0
    while offset + 2 <= len(userdata):
        kind, length = userdata[offset : offset + 2]
        if kind == _COMMENT:
            return string(userdata[offset + 2 : offset + 2 + length])
        offset += 2 + length
    return ""


def tallies(table: str, sets: tuple[str, ...]) -> list[list[Tally]]:
    """Return what each set with counters has, whose name ends with the family; one that does not exist has nothing.

    Their elements are two addresses, a protocol, and a port or none. It works in the calling thread's namespace, and
    takes 10 ms for a thousand elements. Raises KernelError.
    """
    nft = Nft()
    try:
        return [[*_of_set(nft, table, f"{name}{family}")] for name in sets for family in FAMILIES]
    finally:
        nft.close()


def _of_set(nft: Nft, table: str, name: str) -> Iterator[Tally]:
    try:
        listed: list[dict[str, Any]] = nft.json(f"list set inet {table} {name}", counters=True)
    except KernelError as error:
        if "No such file" in error.message:
            return
        raise
    for item in listed:
        for element in item.get("set", {}).get("elem", ()):
            match element:
                case {"elem": {"val": {"concat": [str(source), str(target), protocol, *port]}, "counter": counter}}:
                    known = _NAMES.get(str(protocol), str(protocol))
                    flow = Flow(prefix(source), prefix(target), known, int(port[0]) if port else 0)
                    yield Tally(flow, int(counter["packets"]))
