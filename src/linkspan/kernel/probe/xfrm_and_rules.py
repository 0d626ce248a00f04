"""XFRM policies and policy rules: they decide about packets besides routes and netfilter rules."""

from __future__ import annotations

import socket as sockets
import struct

import msgspec

from linkspan.core.addresses import Prefix
from linkspan.core.errors import KernelError
from linkspan.kernel.io.netlink import Socket, attributes, string
from linkspan.kernel.io.rule_messages import (
    DPORTS,
    DST,
    FWMARK,
    FWMASK,
    IIF,
    INVERT,
    IP_PROTO,
    OIF,
    PRIORITY,
    SPORTS,
    SRC,
    UID,
    ReportedRule,
    reported,
)

XFRM = 6  # NETLINK_XFRM, linux/netlink.h
_GETPOLICY = 0x15  # XFRM_MSG_GETPOLICY, linux/xfrm.h
_SELECTOR = struct.Struct("=16s16sHHHHHBBBxxxiI")
_INFO = struct.Struct("=96xIIBBBB")  # of struct xfrm_userpolicy_info after its selector
_TMPL, _MARK, _IF_ID = 5, 21, 31
_MAIN = 3  # XFRM_POLICY_MAX: larger ones belong to sockets, which the kernel lists too
_BLOCK = 1

_REFUSING = {6: "blackhole", 7: "unreachable", 8: "prohibit"}  # FR_ACT_*, linux/fib_rules.h


class XfrmPolicy(msgspec.Struct, frozen=True):
    """A policy of no XFRM interface; ``ports``: it selects by ports; ``device`` is an index."""

    direction: int
    priority: int
    blocks: bool
    transforms: bool
    source: Prefix
    target: Prefix
    protocol: int
    device: int
    ports: bool
    mark: tuple[int, int]


_ANY = 0, 65535
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "ipv6-icmp"}  # as ip-rule(8) writes them


class Rule(msgspec.Struct, frozen=True):
    """A policy rule; prefixes are None, numbers 0 and ports all if it does not check them.

    ``action`` is a word if it refuses, else ''. ``more``: it has conditions that are not read here.
    """

    family: int
    priority: int
    action: str
    source: Prefix | None
    target: Prefix | None
    arriving: str
    leaving: str
    mark: tuple[int, int]
    inverted: bool
    more: bool
    protocol: int = 0
    sports: tuple[int, int] = _ANY
    dports: tuple[int, int] = _ANY

    def __str__(self) -> str:
        mark, mask = self.mark
        words = [f"from {self.source or 'all'}", *([f"to {self.target}"] if self.target else [])]
        words += [f"fwmark {mark:#x}" + ("" if mask == 0xFFFFFFFF else f"/{mask:#x}")] if mask else []
        words += [f"{word} {name}" for word, name in (("iif", self.arriving), ("oif", self.leaving)) if name]
        words += [f"ipproto {_PROTOCOLS.get(self.protocol, self.protocol)}"] if self.protocol else []
        ports = (("sport", self.sports), ("dport", self.dports))
        words += [f"{word} {first}" + (f"-{last}" if last != first else "")
                  for word, (first, last) in ports if (first, last) != _ANY]  # fmt: skip
        command = "ip rule" if self.family == 4 else "ip -6 rule"
        words = [*(["not"] if self.inverted else []), *words, self.action or "lookup"]
        return f"{command} {self.priority}: {' '.join(words)}"


def xfrm() -> list[XfrmPolicy]:
    """Return the policies of the calling thread's namespace, by priority; none if the kernel has no XFRM."""
    try:
        socket = Socket(XFRM)
    except OSError:
        return []
    try:
        found = [_policy(payload) for payload in socket.dump(_GETPOLICY, b"", "list XFRM policies")]
    except KernelError:
        return []
    finally:
        socket.close()
    return sorted((policy for policy in found if policy is not None), key=lambda policy: policy.priority)


def _policy(payload: bytes) -> XfrmPolicy | None:
    target, source, _, dport_mask, _, sport_mask, family, to_len, from_len, protocol, device, _ = (
        _SELECTOR.unpack_from(payload)
    )
    priority, _, direction, action, _, _ = _INFO.unpack_from(payload, _SELECTOR.size)
    told = attributes(payload, _SELECTOR.size + _INFO.size + 4)  # 4: padded to eight bytes
    if direction >= _MAIN or _IF_ID in told:
        return None
    size = 16 if family == sockets.AF_INET6 else 4
    mark = struct.unpack_from("=II", told[_MARK]) if _MARK in told else (0, 0)
    return XfrmPolicy(
        direction, priority, action == _BLOCK, _TMPL in told, Prefix(source[:size], from_len),
        Prefix(target[:size], to_len), protocol, device, bool(dport_mask or sport_mask), (mark[0], mark[1]),
    )  # fmt: skip


def rules(socket: Socket, family: int) -> list[Rule]:
    """Return the policy rules, by priority. Raises KernelError."""
    return sorted((_rule(one) for one in reported(socket, family)), key=lambda rule: rule.priority)


def _rule(one: ReportedRule) -> Rule:
    told = one.found
    sports, dports = (struct.unpack("=HH", told[kind]) if kind in told else _ANY for kind in (SPORTS, DPORTS))
    return Rule(
        one.family,
        one.number(PRIORITY),
        _REFUSING.get(one.action, ""),
        one.source if SRC in told else None,
        one.target if DST in told else None,
        string(told.get(IIF, b"")),
        string(told.get(OIF, b"")),
        (one.number(FWMARK), one.number(FWMASK)),
        bool(one.flags & INVERT),
        bool(one.tos or UID in told),
        told.get(IP_PROTO, b"\0")[0],
        sports,
        dports,
    )
