"""What a backend must know of the machine, looked at without changing it (about 1 ms where nothing is odd).

Facts must not follow from what linkspan itself did, or desired state would flap: settings are taken as they
were before ours, and a chain that holds our rules alone counts as empty.
"""

from __future__ import annotations

import socket
import struct

from linkspan.addresses import FAMILIES
from linkspan.errors import LinkspanError
from linkspan.kernel import chains, firewalld, iptables
from linkspan.kernel.netlink import GETADDR, GETROUTE, Socket, attributes
from linkspan.kernel.sysctl import SysctlDriver
from linkspan.model import Facts

FORWARDING = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}
# linux/rtnetlink.h, linux/if_addr.h
_INET6, _RTPROT_RA, _RTA_OIF, _IFA_FLAGS, _IFA_F_PERMANENT, _SCOPE_GLOBAL = 10, 9, 4, 8, 0x80, 0
_USER, _FORWARD = iptables.CHAINS


def observe_facts(sysctls: SysctlDriver) -> Facts:
    """Look at the calling thread's namespace, the host's."""
    found = chains.nft_chains()
    return Facts(
        forward_chains=frozenset((f, c) for f in FAMILIES for c in (_nft(found, f), _legacy(f)) if c),
        firewalld=any(c.table == "firewalld" for c in found) and firewalld.running(),
        forwarding=frozenset(f for f in FAMILIES if sysctls.before(FORWARDING[f]) not in ("", "0")),
        ra_links=frozenset(n for n in _ra_links() if sysctls.before(f"net/ipv6/conf/{n}/accept_ra") == "1"),
    )


def _nft(found: list[chains.Chain], family: int) -> str:
    """Return the chain that decides on forwarding in iptables' filter table (nft variant), or ''."""
    there = chains.of_iptables(found, family)
    forward = there.get(_FORWARD)
    if forward is None or not forward.hooked:
        return ""
    try:
        # A chain that is jumped to has more uses than rules; one that Docker left behind has not.
        if (user := there.get(_USER)) and user.uses > len(chains.nft_rules(family, _USER)):
            return _USER
        if not forward.accepts:
            return _FORWARD
        rules = chains.nft_rules(family, _FORWARD) if forward.uses else []
    except LinkspanError:
        return ""  # gone between the two looks: the next one tells
    mark = iptables.COMMENT.encode()
    return _FORWARD if any(mark not in rule for rule in rules) else ""


def _legacy(family: int) -> str:
    """Return the same for the legacy variant."""
    try:
        rules = iptables.legacy_rules(family)
    except LinkspanError:
        return ""
    others = [r for r in rules if r[1:2] == [_FORWARD] and iptables.pool_of(r) is None]
    if any(r[0] == "-A" and r[-2:] == ["-j", _USER] for r in others):
        return _USER
    return _FORWARD if [r for r in others if r != ["-P", _FORWARD, "ACCEPT"]] else ""


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
