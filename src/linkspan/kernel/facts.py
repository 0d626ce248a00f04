"""What a backend must know of the machine, looked at without changing it (about 1 ms where nothing is odd).

Facts must not follow from what linkspan itself did, or desired state would flap: settings are taken as they
were before ours, and a chain that holds our rules alone counts as empty.
"""

from __future__ import annotations

import socket
import struct

from linkspan.addresses import FAMILIES
from linkspan.errors import LinkspanError
from linkspan.kernel import chains, firewalld, forwarders
from linkspan.kernel.netlink import GETADDR, GETROUTE, Socket, attributes
from linkspan.kernel.sysctl import SysctlDriver
from linkspan.model import Facts

FORWARDING = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}
# linux/rtnetlink.h, linux/if_addr.h
_INET6, _RTPROT_RA, _RTA_OIF, _IFA_FLAGS, _IFA_F_PERMANENT, _SCOPE_GLOBAL = 10, 9, 4, 8, 0x80, 0


def observe_facts(sysctls: SysctlDriver) -> Facts:
    """Look at the calling thread's namespace, the host's."""
    found = chains.nft_chains()
    return Facts(
        forward_chains=frozenset((f, c) for f in FAMILIES for c in forwarders.deciding(found, f)),
        firewalld=any(c.table == "firewalld" for c in found) and firewalld.running(),
        forwarding=frozenset(f for f in FAMILIES if sysctls.before(FORWARDING[f]) not in ("", "0")),
        ra_links=frozenset(n for n in _ra_links() if sysctls.before(f"net/ipv6/conf/{n}/accept_ra") == "1"),
    )


def _ra_links() -> set[str]:
    """Return the links that have a route or an address from a router advertisement."""
    rtnetlink = Socket()
    try:
        indexes = set()
        for payload in rtnetlink.dump(GETROUTE, struct.pack("=12B", _INET6, *bytes(11)), "list IPv6 routes"):
            if payload[5] == _RTPROT_RA and (oif := attributes(payload, 12).get(_RTA_OIF)):
                indexes.add(struct.unpack("=I", oif)[0])
        for payload in rtnetlink.dump(GETADDR, struct.pack("=BxBBI", _INET6, 0, 0, 0), "list IPv6 addresses"):
            (flags,) = struct.unpack("=I", attributes(payload, 8).get(_IFA_FLAGS, b"\0\0\0\0"))
            if payload[3] == _SCOPE_GLOBAL and not flags & _IFA_F_PERMANENT:
                indexes.add(struct.unpack_from("=I", payload, 4)[0])
    except LinkspanError:
        return set()  # no IPv6 in this kernel
    finally:
        rtnetlink.close()
    return {name for index in indexes if (name := _name(index))}


def _name(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return ""
