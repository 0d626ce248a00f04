"""nftables' own trace of one packet: which rule of which chain dropped it.

A table of ours, at a priority before every other program's, sets ``meta nftrace`` on the matching packets;
the kernel then reports each rule that such a packet meets. The table belongs to the netlink socket that made
it (flag ``owner``), so the kernel removes it when that socket closes, also after a SIGKILL. iptables-nft's
rules show up; those of iptables-legacy do not. The flag ends when a packet crosses a veth pair or enters a
tunnel: each namespace needs a trace of its own, and a tunnel's packets need a match of their own.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from linkspan.core.errors import KernelError
from linkspan.kernel.io.netlink import NETFILTER, Socket, attributes, string
from linkspan.kernel.io.nftables import Nft

TABLE = "linkspan-trace-"
"""Prefix of the name of each such table. Other traces skip these tables."""
_PRIORITY = -500
_GROUP = 9  # NFNLGRP_NFTRACE, linux/netfilter/nfnetlink.h
_TRACE = (10 << 8) | 17  # NFNL_SUBSYS_NFTABLES, NFT_MSG_TRACE
_NAME, _CHAIN, _HANDLE, _TYPE, _VERDICT, _ID, _IIF, _OIF, _POLICY = 1, 2, 3, 4, 5, 6, 10, 12, 16  # NFTA_TRACE_*
_BY_POLICY, _BY_RULE = 1, 3  # NFT_TRACETYPE_*
_CODE, _TO = 1, 2  # NFTA_VERDICT_CODE, NFTA_VERDICT_CHAIN
_DROP = 0  # NF_DROP; a reject ends with it, too
_GOTO = -4  # NFT_GOTO
_FAMILIES = {1: "inet", 2: "ip", 5: "netdev", 7: "bridge", 10: "ip6"}  # NFPROTO_*, linux/netfilter.h


class Drop(msgspec.Struct, frozen=True):
    """A packet's end in nftables; ``name`` is its match, ``rule`` '' if the chain's policy drops it."""

    name: str
    family: str
    table: str
    chain: str
    rule: str = ""

    def described(self) -> str:
        """Return the rule as a user finds it in ``nft list ruleset``."""
        where = f"chain {self.chain} of table {self.family} {self.table}"
        return f"rule `{self.rule}` in {where}" if self.rule else f"the policy of {where}"


class RuleTrace:
    """Follows packets through nftables in the namespace of the thread that makes it; only for that thread.

    ``matches`` has, by a name (letters only), nft expressions that match a packet of that name. ``devices``
    are those at whose ingress the trace begins. A family that the kernel does not have is left out. Raises
    Unavailable without libnftables and KernelError without the right to use it.
    """

    def __init__(self, tag: str, matches: Mapping[str, Sequence[str]], devices: Sequence[str] = ()) -> None:
        self._own = TABLE + tag
        self._names: dict[int, str] = {}
        self._drops: list[tuple[str, int, str, str, int]] = []
        self._led: dict[int, tuple[str, tuple[str, int]]] = {}
        """By packet: the chain to which a rule sent it for good, and that rule's chain and handle."""
        self._nft = Nft()
        try:
            self._socket = Socket(NETFILTER, (_GROUP,))
        except OSError:
            self._nft.close()
            raise
        refused = []
        for family, chains in _base_chains(devices).items():
            try:
                self._nft.run(_table(family, self._own, matches, chains))
            except KernelError as error:
                refused.append(error)
        if len(refused) == len(_base_chains(devices)):
            self.close()
            raise refused[0]

    def fileno(self) -> int:
        """Return the descriptor, to wait for reports with select()."""
        return self._socket.fileno()

    def close(self) -> None:
        """End the trace: the kernel removes the tables with the socket."""
        self._socket.close()
        self._nft.close()

    def read(self) -> None:
        """Read what the kernel has reported."""
        while True:
            try:
                reports = list(self._socket.receive())
            except BlockingIOError:
                return
            except OSError:  # ENOBUFS: reports were lost; what is known stays true
                continue
            for kind, _, body in reports:
                if kind == _TRACE:
                    self._report(body)

    def drops(self) -> tuple[Drop, ...]:
        """Return where packets were dropped, in order, each rule once."""
        found = (
            Drop(name, _FAMILIES.get(family, str(family)), table, chain, self._rule(family, table, chain, handle))
            for name, family, table, chain, handle in dict.fromkeys(self._drops)
        )
        return tuple(found)

    def _report(self, body: bytes) -> None:
        found = attributes(body, 4)  # after struct nfgenmsg
        packet = int.from_bytes(found.get(_ID, b""), "big")
        table, chain = string(found.get(_NAME, b"")), string(found.get(_CHAIN, b""))
        kind = int.from_bytes(found.get(_TYPE, b""), "big")
        if table == self._own:
            if kind == _BY_RULE:
                self._names[packet] = chain
            return
        if kind == _BY_POLICY:
            verdict = int.from_bytes(found.get(_POLICY, b"\xff"), "big")
        elif kind == _BY_RULE and _VERDICT in found:
            what = attributes(found[_VERDICT])
            verdict = struct.unpack(">i", what.get(_CODE, b"\xff\xff\xff\xff"))[0]
            if verdict == _GOTO:
                at = chain, int.from_bytes(found.get(_HANDLE, b""), "big")
                self._led[packet] = string(what.get(_TO, b"")), at
        else:
            return
        if verdict == _DROP:
            handle = int.from_bytes(found.get(_HANDLE, b""), "big") if kind == _BY_RULE else 0
            to, rule = self._led.get(packet, ("", (chain, handle)))
            # A chain in which every packet ends says less than the rule that led there.
            name, handle = rule if to == chain else (chain, handle)
            self._drops.append((self._names.get(packet, ""), body[0], table, name, handle))

    def _rule(self, family: int, table: str, chain: str, handle: int) -> str:
        """Return a rule as nft writes it, or its handle if it is gone already."""
        if not handle:
            return ""
        try:
            listed = self._nft.text(f"list chain {_FAMILIES.get(family, 'ip')} {table} {chain}", handles=True)
        except KernelError:
            listed = ""
        found = re.search(rf"^\s*(.+?) # handle {handle}$", listed, re.MULTILINE)
        return found[1] if found else f"handle {handle}"


def _base_chains(devices: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the hooks at which a packet can enter a namespace, by family."""
    hooks: dict[str, tuple[str, ...]] = dict.fromkeys(("inet", "bridge"), ("hook prerouting", "hook output"))
    if devices:
        listed = ", ".join(f'"{device}"' for device in devices)
        hooks["netdev"] = (f"hook ingress devices = {{ {listed} }}",)
    return hooks


def _table(family: str, name: str, matches: Mapping[str, Sequence[str]], hooks: Sequence[str]) -> str:
    """Return the commands that make the table: one chain for each name, whose rule sets the flag."""
    return "\n".join(_lines(family, name, matches, hooks))


def _lines(family: str, name: str, matches: Mapping[str, Sequence[str]], hooks: Sequence[str]) -> Iterator[str]:
    yield f"table {family} {name} {{ flags owner"
    for chain in matches:
        yield f"chain {chain} {{ meta nftrace set 1"
        yield "}"
    for number, hook in enumerate(hooks):
        yield f"chain base{number} {{ type filter {hook} priority {_PRIORITY}"
        for chain, expressions in matches.items():
            for expression in expressions:
                yield f"{expression} goto {chain}"
        yield "}"
    yield "}"
