"""Facts of the machine for backends, read without changing it (about 1 ms on an ordinary host).

Facts must not follow from what linkspan itself did, or desired state would flap: settings are taken as they
were before ours, and a chain that holds our rules alone counts as empty.
"""

from __future__ import annotations

import fnmatch
import re
import socket
import struct
from collections.abc import Iterator

from linkspan.core.addresses import FAMILIES, SOCKET_FAMILY
from linkspan.core.errors import LinkspanError
from linkspan.core.host_view import Facts
from linkspan.core.states.host import OTHERS
from linkspan.kernel.drivers import firewalld
from linkspan.kernel.drivers.sysctl import SysctlDriver
from linkspan.kernel.io import address_messages, link_messages
from linkspan.kernel.io.address_messages import PERMANENT, UNIVERSE
from linkspan.kernel.io.link_messages import Link
from linkspan.kernel.io.netlink import GETROUTE, Socket, attributes
from linkspan.kernel.io.route_messages import OIF, RTMSG
from linkspan.kernel.probe import early_forwarding, foreign_chains, forwarders, translators

FORWARDING = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}
_NAME = re.compile(r"[A-Za-z0-9_.@-]+")
"""Names that nft takes as they are."""
_RTPROT_RA = 9  # linux/rtnetlink.h


def observe_facts(sysctls: SysctlDriver) -> Facts:
    """Look at the calling thread's namespace, the host's."""
    found = foreign_chains.nft_chains()
    open_ = frozenset(f for f in FAMILIES if sysctls.before(FORWARDING[f]) not in ("", "0"))
    links = list(_links())
    there = {f: sysctls.there(FORWARDING[f]) for f in FAMILIES if f not in open_}
    old = frozenset((f, link.name) for f in there for link in _old(links, there[f]))
    return Facts(
        forward_chains=frozenset((f, c) for f in FAMILIES for c in forwarders.deciding(found, f)),
        firewalld=any(c.table == "firewalld" for c in found) and firewalld.running(),
        forwarding=open_,
        closed_links=frozenset((f, n) for f in there for n in _closed(links, there[f])),
        old_links=old,
        bridges=frozenset(link.name for link in links if link.kind == "bridge") & {name for _, name in old},
        ra_links=frozenset(n for n in _ra_links() if sysctls.before(f"net/ipv6/conf/{n}/accept_ra") == "1"),
        early=early_forwarding.possible(),
        translated=frozenset(translators.found(found)),
    )


def _links() -> Iterator[Link]:
    """Yield the links that are neither linkspan's nor loopback's nor of another container system."""
    rtnetlink = Socket()
    try:
        for link in link_messages.links(rtnetlink):
            name = link.name
            if _NAME.fullmatch(name) and not any(fnmatch.fnmatchcase(name, p) for p in ("lo", "ls*", *OTHERS)):
                yield link
    finally:
        rtnetlink.close()


def _closed(links: list[Link], there: dict[int, bool]) -> Iterator[str]:
    """Yield the old links of which the host did not forward what came in."""
    return (link.name for link in _old(links, there) if not there.get(link.number))


def _old(links: list[Link], there: dict[int, bool]) -> Iterator[Link]:
    """Yield the links that were there before linkspan had the host forward, and hardware that came later.

    What another program makes later is its own.
    """
    return (link for link in links if link.number in there or not link.kind)


def _ra_links() -> set[str]:
    """Return the links that have a route or an address from a router advertisement."""
    rtnetlink = Socket()
    try:
        indexes = set()
        for payload in rtnetlink.dump(GETROUTE, RTMSG.pack(SOCKET_FAMILY[6], *bytes(8)), "list IPv6 routes"):
            if payload[5] == _RTPROT_RA and (oif := attributes(payload, 12).get(OIF)):
                indexes.add(struct.unpack("=I", oif)[0])
        for one in address_messages.held(rtnetlink):
            if one.prefix.family == 6 and one.scope == UNIVERSE and not one.flags & PERMANENT:
                indexes.add(one.link)
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
