"""Kernel features that linkspan needs, tried in an unused network namespace.

The namespace belongs to a thread, and is removed with it and everything in it: the host's own is not touched.
"""

from __future__ import annotations

import ctypes
import os
import struct
import threading
from collections.abc import Callable

from linkspan.core.errors import KernelError, LinkspanError, Unavailable, of_errno
from linkspan.kernel.io.namespaces import CLONE_NEWNET
from linkspan.kernel.io.netlink import F_CREATE, F_EXCL, NEWLINK, Message, Socket, attr, text, u32
from linkspan.kernel.io.nftables import Nft

_IFINFO = struct.Struct("=BxHiII")
_IFNAME, _LINKINFO, _INFO_KIND = 3, 18, 1
_NESTED = 0x8000
_NEWQDISC, _ROOT = 36, 0xFFFFFFFF
_TBF = struct.Struct("=BBHhHI BBHhHI III")

_libc = ctypes.CDLL(None, use_errno=True)

RULES = {
    "nft inet": "add table inet t; add set inet t s { type ifname . ether_addr; }; add chain inet t c "
    "{ type nat hook postrouting priority 100; }; add rule inet t c ip saddr 10.0.0.0/8 masquerade fully-random; "
    "add chain inet t f { type filter hook forward priority 0; }; "
    "add rule inet t f iifname . ether saddr @s ct state established accept; "
    "add rule inet t f fib daddr type local reject with icmpx admin-prohibited",
    "nft bridge": "add table bridge t; add chain bridge t c { type filter hook prerouting priority -300; }; "
    'add rule bridge t c iifname "x*" arp saddr ip 10.0.0.1 drop',
    "nft taddr": "add table bridge t; add chain bridge t c; add rule bridge t c icmpv6 taddr 2001:db8::1 drop",
}
"""For each family, one rule of every sort that linkspan's own tables have."""


def probe() -> dict[str, str]:
    """Try each feature; return '' for those that work, else why it does not work."""
    found: dict[str, str] = {}
    thread = threading.Thread(target=_try_all, args=(found,), name="features")
    thread.start()
    thread.join()
    return found


def _try_all(found: dict[str, str]) -> None:
    names = ("namespaces", "veth", "bridge", *RULES, "tbf")
    if _libc.unshare(CLONE_NEWNET):
        why = f"{of_errno(ctypes.get_errno(), 'make a network namespace')}"
        found.update(dict.fromkeys(names, why))
        return
    found["namespaces"] = ""
    try:
        rtnetlink = Socket()
    except OSError as error:
        found.update(dict.fromkeys(names, f"netlink: {os.strerror(error.errno or 0)}"))
        return
    try:
        found["veth"] = _why(lambda: rtnetlink.request(_new("veth")))
        found["bridge"] = _why(lambda: rtnetlink.request(_new("bridge")))
        found["tbf"] = _why(lambda: rtnetlink.request(_bucket()))
    finally:
        rtnetlink.close()
    for name, rules in RULES.items():
        found[name] = _why(lambda rules=rules: _nft(rules))  # type: ignore[misc]


def _why(attempt: Callable[[], None]) -> str:
    try:
        attempt()
    except (KernelError, Unavailable) as error:
        return error.message
    except LinkspanError as error:
        return str(error)
    return ""


def _new(kind: str) -> Message:
    info = attr(_LINKINFO | _NESTED, text(_INFO_KIND, kind))
    body = _IFINFO.pack(0, 0, 0, 0, 0) + text(_IFNAME, f"try-{kind}") + info
    return Message(NEWLINK, F_CREATE | F_EXCL, body, f"add a {kind}")


def _bucket() -> Message:
    """Return a tbf of 1 Mbyte/s on lo, whose index is 1 in every namespace."""
    parameters = _TBF.pack(0, 1, 0, 0, 0, 1_000_000, 0, 0, 0, 0, 0, 0, 65536, 100_000, 0)
    body = struct.pack("=BxxxiIII", 0, 1, 1 << 16, _ROOT, 0) + text(1, "tbf")
    body += attr(2, attr(1, parameters) + u32(6, 65536))
    return Message(_NEWQDISC, F_CREATE | F_EXCL, body, "add a token bucket")


def _nft(rules: str) -> None:
    nft = Nft()
    try:
        nft.run(rules)
    finally:
        nft.close()
