"""XFRM policies and policy rules: they decide about packets besides routes and netfilter rules."""

from __future__ import annotations

import socket as sockets
import struct

import msgspec

from linkspan.core.addresses import SOCKET_FAMILY, Prefix
from linkspan.core.errors import KernelError
from linkspan.kernel.io.netlink import Socket, attributes, string

XFRM = 6  # NETLINK_XFRM, linux/netlink.h
_GETPOLICY = 0x15  # XFRM_MSG_GETPOLICY, linux/xfrm.h
_SELECTOR = struct.Struct("=16s16sHHHHHBBBxxxiI")
_INFO = struct.Struct("=96xIIBBBB")  # of struct xfrm_userpolicy_info after its selector
_TMPL, _MARK, _IF_ID = 5, 21, 31
_MAIN = 3  # XFRM_POLICY_MAX: larger ones belong to sockets, which the kernel lists too
_BLOCK = 1

_GETRULE = 34
_RULE = struct.Struct("=BBBBBBBBI")  # struct fib_rule_hdr
_DST, _SRC, _IIF, _PRIORITY, _FWMARK, _FWMASK, _OIF = 1, 2, 3, 6, 10, 16, 17
_UID, _PROTO, _SPORT, _DPORT = 20, 22, 23, 24
_INVERT = 0x2
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
    found = []
    for payload in socket.dump(_GETRULE, _RULE.pack(SOCKET_FAMILY[family], 0, 0, 0, 0, 0, 0, 0, 0), "list rules"):
        _, to_len, from_len, tos, _, _, _, action, flags = _RULE.unpack_from(payload)
        told = attributes(payload, _RULE.size)
        number = {kind: struct.unpack("=I", told[kind])[0] if kind in told else 0 for kind in (_PRIORITY, _FWMARK)}
        mask = struct.unpack("=I", told[_FWMASK])[0] if _FWMASK in told else 0
        sports, dports = (struct.unpack("=HH", told[kind]) if kind in told else _ANY for kind in (_SPORT, _DPORT))
        found.append(
            Rule(
                family, number[_PRIORITY], _REFUSING.get(action, ""),
                Prefix(bytes(told[_SRC]), from_len) if _SRC in told else None,
                Prefix(bytes(told[_DST]), to_len) if _DST in told else None,
                string(told.get(_IIF, b"")), string(told.get(_OIF, b"")), (number[_FWMARK], mask),
                bool(flags & _INVERT), bool(tos or _UID in told), told.get(_PROTO, b"\0")[0], sports, dports,
            )
        )  # fmt: skip
    return sorted(found, key=lambda rule: rule.priority)
