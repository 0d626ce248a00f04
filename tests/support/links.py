"""Links as the kernel reports them, without a kernel."""

from __future__ import annotations

from linkspan.kernel.io.link_messages import (
    ADDRESS,
    IFINFO,
    IFNAME,
    INFO_KIND,
    LINKINFO,
    LOWER,
    MASTER,
    NESTED,
    Link,
    link,
)
from linkspan.kernel.io.netlink import attr, text, u32


def message(number: int, name: str, kind: str = "", mac: bytes = b"", master: int = 0, lower: int = 0) -> bytes:
    """Return a link message's body."""
    body = IFINFO.pack(0, 0, number, 0, 0) + text(IFNAME, name)
    body += attr(ADDRESS, mac) if mac else b""
    body += u32(MASTER, master) if master else b""
    body += u32(LOWER, lower) if lower else b""
    return body + (attr(LINKINFO | NESTED, text(INFO_KIND, kind)) if kind else b"")


def made(number: int, name: str, kind: str = "", mac: bytes = b"", master: int = 0, lower: int = 0) -> Link:
    """Return a link of this kind ('': hardware)."""
    return link(message(number, name, kind, mac, master, lower))
