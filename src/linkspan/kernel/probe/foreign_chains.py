"""Other programs' packet filters, read without side effects: reading makes no table and loads no module.

``iptables -S`` alone would not do: the legacy variant makes the table that it lists. So nftables' chains are
read by one dump (which has each chain's policy and its number of rules), and the legacy tables' names from
/proc/net/ip_tables_names, which lists those that exist in this namespace.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

import msgspec

from linkspan.core.errors import KernelError
from linkspan.kernel.io.netlink import NETFILTER, Socket, attributes, string, text

# linux/netfilter/nfnetlink.h, nf_tables.h
_SUBSYSTEM = 10 << 8
_GETCHAIN, _GETRULE = 4, 7
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_USE, _CHAIN_TYPE = 1, 3, 4, 5, 6, 7
_HOOK_NUMBER, _PREROUTING = 1, 0  # NFTA_HOOK_HOOKNUM, NF_INET_PRE_ROUTING
_RULE_TABLE, _RULE_CHAIN = 1, 2
_NFPROTO = {4: 2, 6: 10}
_ACCEPT = 1  # NF_ACCEPT, linux/netfilter.h
_NAMES = {4: "ip_tables_names", 6: "ip6_tables_names"}


class Chain(msgspec.Struct, frozen=True):
    """An nftables chain; ``uses`` counts its rules and, for a chain with no hook, the jumps to it.

    ``translates``: it may translate what comes in (type nat at hook prerouting).
    """

    family: int
    table: str
    name: str
    hooked: bool
    accepts: bool
    uses: int
    translates: bool = False


def nft_chains() -> list[Chain]:
    """Return all nftables chains of this namespace; none if the kernel has no nftables."""
    try:
        socket = Socket(NETFILTER)
    except OSError:
        return []
    try:
        found = socket.dump(_SUBSYSTEM | _GETCHAIN, struct.pack("=BBH", 0, 0, 0), "list nftables chains")
    except KernelError:
        return []  # no such subsystem in this kernel
    finally:
        socket.close()
    return [_chain(payload) for payload in found]


def _chain(payload: bytes) -> Chain:
    found = attributes(payload, 4)
    policy = found.get(_CHAIN_POLICY)
    hook = attributes(found.get(_CHAIN_HOOK, b"")).get(_HOOK_NUMBER, b"")
    nat = string(found.get(_CHAIN_TYPE, b"\0")) == "nat"
    return Chain(
        family=payload[0],
        table=string(found[_CHAIN_TABLE]),
        name=string(found[_CHAIN_NAME]),
        hooked=_CHAIN_HOOK in found,
        accepts=policy is None or int.from_bytes(policy, "big") == _ACCEPT,
        uses=int.from_bytes(found.get(_CHAIN_USE, b""), "big"),
        translates=nat and hook == struct.pack(">I", _PREROUTING),
    )


def of_iptables(chains: Iterable[Chain], family: int) -> dict[str, Chain]:
    """Return the chains of iptables' filter table (nft variant) of an address family, by name."""
    return {c.name: c for c in chains if (c.family, c.table) == (_NFPROTO[family], "filter")}


def nft_rules(family: int, chain: str, table: str = "filter") -> list[bytes]:
    """Return the rules of a chain of a table of iptables (nft variant), undecoded."""
    body = struct.pack("=BBH", _NFPROTO[family], 0, 0)
    body += text(_RULE_TABLE, table) + text(_RULE_CHAIN, chain)
    socket = Socket(NETFILTER)
    try:
        return socket.dump(_SUBSYSTEM | _GETRULE, body, f"list rules of chain {chain}")
    finally:
        socket.close()


def legacy(family: int) -> bool:
    """Return whether the legacy filter table exists in this namespace."""
    return "filter" in legacy_tables(family)


def legacy_tables(family: int) -> list[str]:
    """Return the names of the legacy tables that exist in this namespace."""
    try:
        return Path("/proc/thread-self/net", _NAMES[family]).read_text(encoding="ascii").split()
    except OSError:
        return []  # the kernel has no legacy iptables
