"""Programs, filters and queueing disciplines of devices: they decide about packets besides routes and rules."""

from __future__ import annotations

import ctypes
import platform
import struct
from collections.abc import Iterable

from linkspan.kernel.io.link_messages import Link
from linkspan.kernel.io.netlink import Socket, attributes, string

# linux/bpf.h: BPF_PROG_QUERY, and the attach types of tcx; the system call's number by architecture.
_PROG_QUERY, _TCX = 16, {"ingress": 46, "egress": 47}
_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "loongarch64": 280, "ppc64le": 361, "s390x": 351}
_MOST = 64  # programs at one hook: BPF_MPROG_MAX, linux/bpf_mprog.h
_QUERY = struct.Struct("=IIIIQIIQQQQ")

_XDP, _XDP_ATTACHED, _XDP_ID = 43, 2, 4  # linux/if_link.h: IFLA_XDP, its parts

# linux/rtnetlink.h, pkt_sched.h
_GETQDISC, _GETTFILTER = 38, 46
_CLSACT = 0xFFFFFFF1  # TC_H_INGRESS, which clsact has too
_PARENTS = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}
_KIND, _INGRESS_BLOCK, _EGRESS_BLOCK = 1, 13, 14
_TCMSG = struct.Struct("=BxxxiIII")

_libc = ctypes.CDLL(None, use_errno=True)


def xdp(link: Link) -> list[str]:
    """Return the XDP program of a device, in words."""
    found = attributes(link.found.get(_XDP, b""))
    if not found.get(_XDP_ATTACHED, b"\0")[0]:
        return []
    number = struct.unpack("=I", found[_XDP_ID])[0] if _XDP_ID in found else 0
    return [f"an XDP program (id {number})"]


def programs(index: int, way: str) -> list[str]:
    """Return the tcx programs of a device in the calling thread's namespace, in words; none if they cannot be read."""
    number = _BPF.get(platform.machine())
    if number is None:
        return []
    ids = (ctypes.c_uint32 * _MOST)()
    request = _QUERY.pack(index, _TCX[way], 0, 0, ctypes.addressof(ids), _MOST, 0, 0, 0, 0, 0)
    buffer = ctypes.create_string_buffer(request, len(request))
    if _libc.syscall(number, _PROG_QUERY, buffer, len(request)):
        return []  # the kernel has no tcx, or the caller may not ask
    count = _QUERY.unpack(buffer.raw)[5]
    return [f"a tcx program (id {ids[at]})" for at in range(min(count, _MOST))]


def queues(socket: Socket, index: int) -> tuple[list[tuple[str, int]], list[str], list[str]]:
    """Return a device's queueing disciplines (kind, handle), and its filters in words: inbound and outbound.

    Raises KernelError.
    """
    found: list[tuple[str, int]] = []
    filters: dict[str, list[str]] = {"ingress": [], "egress": []}
    for payload in socket.dump(_GETQDISC, _TCMSG.pack(0, 0, 0, 0, 0), "list qdiscs"):
        _, device, handle, parent, _ = _TCMSG.unpack_from(payload)
        if device != index:
            continue
        told = attributes(payload, _TCMSG.size)
        if parent != _CLSACT:
            found.append((string(told.get(_KIND, b"")), handle))
            continue
        for way, block in (("ingress", _INGRESS_BLOCK), ("egress", _EGRESS_BLOCK)):
            filters[way] += ["a shared block of tc filters"] if block in told else _filters(socket, index, way)
    return found, filters["ingress"], filters["egress"]


def _filters(socket: Socket, index: int, way: str) -> list[str]:
    kinds: Iterable[str] = (
        string(attributes(payload, _TCMSG.size).get(_KIND, b""))
        for payload in socket.dump(_GETTFILTER, _TCMSG.pack(0, index, 0, _PARENTS[way], 0), "list filters")
    )
    return [f"a tc filter ({kind})" for kind in dict.fromkeys(kinds)]
