"""Kernel events: they carry no state, they only mark kinds to observe.

Our own changes are left out: rtnetlink notifications have the port of the socket that made the change, and nftables
transactions end with a message that names the thread (NFT_MSG_NEWGEN). Two sorts of notifications have no port. Those
of FDB entries are noted by kernel/drivers/neighbours_and_fdb.py, and of what the kernel takes away with a link that we
delete, the link is noted by kernel/drivers/links.py. A detach that looked like others' changes would cause an
observation of all rules, addresses and routes, those of all peers among them.

Of foreign links only a new MAC or MTU counts: it may be the underlay's, which other hosts must learn.

A busy host has many neighbour events each second that do not concern us: only those on our tunnel devices
count, whose indexes come from a dump and from the links' own events.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import time
from collections.abc import Collection, Mapping

from linkspan.core.errors import LinkspanError
from linkspan.core.kinds import Event, Kinds
from linkspan.core.states.host import ROUTE_PROTOCOL, State
from linkspan.kernel.drivers.links import LEAVING, Leaving
from linkspan.kernel.drivers.neighbours_and_fdb import Own
from linkspan.kernel.io.link_messages import ADDRESS, MTU, ifinfo, link
from linkspan.kernel.io.neighbour_messages import AF_BRIDGE, DST, LLADDR, NDMSG, NOARP, PERMANENT, PROTOCOL
from linkspan.kernel.io.netlink import (
    DELADDR,
    DELLINK,
    DELNEIGH,
    DELROUTE,
    DELRULE,
    GETLINK,
    NETFILTER,
    NEWADDR,
    NEWLINK,
    NEWNEIGH,
    NEWROUTE,
    NEWRULE,
    ROUTE,
    Socket,
    attributes,
    string,
)
from linkspan.kernel.io.route_messages import BIRD
from linkspan.kernel.io.rule_messages import HEADER as RULE_HEADER
from linkspan.kernel.io.rule_messages import PROTOCOL as RULE_PROTOCOL

# linux/rtnetlink.h: RTNLGRP_LINK, _NEIGH, _TC, _IPV4_IFADDR, _IPV4_ROUTE, _IPV4_RULE, _IPV6_IFADDR, _IPV6_ROUTE,
# _IPV6_RULE, _IPV4_NETCONF, _IPV6_NETCONF
_ROUTE_GROUPS = (1, 3, 4, 5, 7, 8, 9, 11, 19, 24, 25)
_NEWQDISC, _DELQDISC, _NEWNETCONF = 36, 37, 80
_NFT_GROUP = 7  # NFNLGRP_NFTABLES in linux/netfilter/nfnetlink.h
_NEWGEN = (10 << 8) | 15  # NFNL_SUBSYS_NFTABLES, NFT_MSG_NEWGEN
_GEN_PROCESS, _GEN_NAME = 2, 3  # NFTA_GEN_PROC_PID, NFTA_GEN_PROC_NAME
_IFNAME, _PROTINFO = 3, 12
_IFA_ADDRESS = 1  # linux/if_addr.h
_LINK_LOCAL = b"\xfe\x80"
_PASSING = (21, 22, 23, 38, 41)
"""Attributes of a bridge port that change by themselves: timers, and counts of multicast listeners
(IFLA_BRPORT_* in if_link.h)."""
# linux/rtnetlink.h: RT_TABLE_MAIN, RT_TABLE_LOCAL, RTA_DST, RTA_OIF
_MAIN, _LOCAL, _DST, _OIF = 254, 255, 1, 4
_KERNEL = 2  # RTPROT_KERNEL
_HOSTS_OWN = frozenset({2, 3, 4, 9, 16})  # RTPROT_KERNEL, _BOOT, _STATIC, _RA, _DHCP in linux/rtnetlink.h

_OF_LINKS = frozenset(
    {NEWLINK, DELLINK, NEWADDR, DELADDR, NEWROUTE, DELROUTE, NEWNEIGH, DELNEIGH, _NEWQDISC, _DELQDISC}
)
"""Messages with a link's index: at the same place in all, but for routes."""

_NO_LINK: Mapping[int, bytes] = {}
"""The attributes of a link in messages of another type."""

Found = tuple[Event, ...]
"""The content of one message."""


class Ports:
    """The last reported attributes of each bridge port, by the link's index.

    A port causes an event without a change when its bridge's forward delay ends, 15 s after it was added,
    though the bridge needs none (br_forward_delay_timer_expired in net/bridge/br_stp_timer.c): one for each
    container.
    """

    def __init__(self) -> None:
        self._told: dict[int, int] = {}
        """Their hashes: an attach makes six such messages, and only whether the last one differs is asked."""

    def as_told(self, kind: int, body: bytes, found: Mapping[int, bytes]) -> bool:
        """Record an event, and return whether it is a port's and reports nothing new; ``found`` are its attributes."""
        if kind == DELLINK:
            self._told.pop(_index(body), None)
        if kind != NEWLINK or body[0] != AF_BRIDGE:
            return False
        port = attributes(found.get(_PROTINFO, b""))
        lasting = frozenset((number, value) for number, value in port.items() if number not in _PASSING)
        others = frozenset((number, value) for number, value in found.items() if number != _PROTINFO)
        now = hash((body[8:12], others, lasting))
        before, self._told[_index(body)] = self._told.get(_index(body)), now
        return before == now

    def clear(self) -> None:
        """Forget all: events were lost."""
        self._told.clear()


class RouteEvents:
    """Links, queueing disciplines, addresses, routes, policy rules, neighbours and settings that others changed."""

    def __init__(
        self,
        kinds: Kinds,
        own_ports: Collection[int] = (),
        own_entries: Own | None = None,
        leaving: Leaving | None = None,
    ) -> None:
        """Leave out changes from linkspan's ``own_ports``, and those in ``own_entries``, which they consume.

        ``leaving`` are the links that linkspan deletes: they leave out what comes of each, up to its end, for LEAVING
        seconds at most.
        """
        self._kinds, self._ours = kinds, kinds.prefixes
        self._leaving: Leaving = {} if leaving is None else leaving
        self.socket = Socket(ROUTE, _ROUTE_GROUPS)
        self._own_ports = own_ports
        self._own_entries: Own = {} if own_entries is None else own_entries
        self._ports = Ports()
        self._lost: set[int] = set()
        """Indexes of the links whose addresses have lost a kernel route, in the events being read."""
        self.actor = ""
        """Who caused the last event, "NAME, process PID"; '' if the kernel does not say."""
        self._list_links()

    def _list_links(self) -> None:
        """Learn which links there are: at the start, and after events were lost, those of new links among them."""
        links = Socket()
        try:
            found = list(links.dump(GETLINK, ifinfo(), "list links"))
            self._tunnels = {_index(body) for body in found if _name(body).startswith(self._kinds.tunnels)}
            foreign = ((body, attributes(body, 16)) for body in found if not _name(body).startswith(self._ours))
            self._foreign = {_index(body): _traits(told) for body, told in foreign}
            """MAC and MTU of each foreign link, by index."""
            self._own_macs = {_index(body): _mac(body) for body in found if _name(body).startswith(self._ours)}
        finally:
            links.close()

    def dirty(self) -> frozenset[type[State]]:
        """Read pending events and return the kinds to observe; all kinds if events were lost."""
        events: set[Event] = set()
        self.actor, self._lost = "", set()
        try:
            while True:
                for kind, port, body in self.socket.receive():
                    found = attributes(body, 16) if kind in (NEWLINK, DELLINK) else _NO_LINK
                    if self._ports.as_told(kind, body, found):
                        continue
                    if kind == NEWLINK and body[0] != AF_BRIDGE:
                        self._learn(body, found)
                    elif kind == DELLINK and body[0] != AF_BRIDGE:
                        self._own_macs.pop(_index(body), None)
                    own = self._is_leaving(kind, body) or port in self._own_ports
                    if not own and (caused := self._events(kind, body, found)):
                        events.update(caused)
                        self.actor = _process(port) or self.actor
        except BlockingIOError:
            # A link's removal takes its addresses along, and its own message reports it.
            if self._lost & self._own_macs.keys():
                events.add(Event.ADDRESS_GONE)
            return self._kinds.after(*events)
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                self._ports.clear()
                with contextlib.suppress(OSError, LinkspanError):  # the kinds are observed all the same
                    self._list_links()
                return self._kinds.after(*(set(Event) - {Event.HELPER}))
            raise

    def _learn(self, body: bytes, found: Mapping[int, bytes]) -> None:
        """Take in a link's name and MAC, if it is ours."""
        if (name := _named(found)).startswith(self._ours):
            self._own_macs[_index(body)] = found.get(ADDRESS, b"")
            if name.startswith(self._kinds.tunnels):
                self._tunnels.add(_index(body))

    def _is_leaving(self, kind: int, body: bytes) -> bool:
        """Return whether a message is about a link that linkspan deletes; the last one ends that."""
        if not self._leaving or kind not in _OF_LINKS:
            return False
        index = _way_out(body) if kind in (NEWROUTE, DELROUTE) else _index(body)
        since = self._leaving.get(index)
        if kind == DELLINK and body[0] != AF_BRIDGE:
            self._leaving.pop(index, None)
        return since is not None and time.monotonic() - since <= LEAVING

    def _events(self, kind: int, body: bytes, found: Mapping[int, bytes]) -> Found:
        if kind in (NEWLINK, DELLINK):
            return self._links(kind, body, found)
        if kind in (NEWADDR, DELADDR):
            if _index(body) in self._own_macs and _is_made_of_mac(body):
                return ()
            # A new address matters only on a link of ours, which the label does not show.
            return (Event.ADDRESS, Event.ADDRESS_GONE) if kind == DELADDR else (Event.ADDRESS,)
        if kind in (NEWROUTE, DELROUTE):
            return self._routes(kind, body)
        if kind in (NEWNEIGH, DELNEIGH):
            return self._neighbours(kind, body)
        if kind in (NEWRULE, DELRULE):
            ours = attributes(body, RULE_HEADER.size).get(RULE_PROTOCOL) == bytes([ROUTE_PROTOCOL])
            return (Event.RULE,) if ours else ()
        if kind in (_NEWQDISC, _DELQDISC):
            return (Event.QDISC,)
        if kind == _NEWNETCONF and len(attributes(body, 4)) == 2:  # a link and one setting; a new link implies all
            return (Event.SETTING,)
        return ()

    def _links(self, kind: int, body: bytes, found: Mapping[int, bytes]) -> Found:
        name = _named(found)
        if name.startswith(self._kinds.tunnels):
            # A link that is set down loses its routes and entries, and IPv4 sends no event for that
            # (fib_disable_ip).
            return Event.TUNNEL, Event.ADDRESS_GONE
        if not name.startswith(self._ours):
            if link(body).ours:  # somebody has renamed it
                return Event.LINK, Event.LINK_GONE, Event.TUNNEL, Event.ADDRESS_GONE
            return (Event.ADDRESS,) if self._is_changed(kind, body, found) else ()
        return (Event.LINK, Event.LINK_GONE, Event.ADDRESS_GONE) if kind == DELLINK else (Event.LINK,)

    def _routes(self, kind: int, body: bytes) -> Found:
        if body[5] == BIRD:
            return ()  # thousands when a peer comes or goes, and the speaker repairs its own
        if (body[0], body[5]) == (socket.AF_INET6, _KERNEL) and _is_link_local(body):
            return ()  # it comes and goes with a link's address, and is nobody's
        # routes by which the host receives packets to an address
        if kind == DELROUTE and (body[4], body[5]) == (_LOCAL, _KERNEL):
            self._lost.add(_way_out(body))
            return ()
        if _is_hosts(body):
            # The route to a peer may have changed: a link that is up again has its prefix's route.
            return Event.ROUTE, Event.ADDRESS_GONE
        return (Event.ROUTE,) if kind == DELROUTE or body[5] == ROUTE_PROTOCOL else ()

    def _is_changed(self, kind: int, body: bytes, found: Mapping[int, bytes]) -> bool:
        """Return whether a known foreign link has another MAC or MTU now."""
        if body[0] == AF_BRIDGE:  # a bridge port's message, without its MAC
            return False
        before, now = self._foreign.pop(_index(body), None), _traits(found)
        if kind == NEWLINK:
            self._foreign[_index(body)] = now
        return kind == NEWLINK and before not in (None, now)

    def _neighbours(self, kind: int, body: bytes) -> Found:
        family, index, state, _, _ = NDMSG.unpack_from(body)
        if index not in self._tunnels:  # there our entry has our number: a gateway's on the underlay
            found = attributes(body, 12)
            lasts = state & (PERMANENT | NOARP) and found.get(LLADDR) != self._own_macs.get(index, found.get(LLADDR))
            if family == AF_BRIDGE:
                return (Event.ENTRY,) if lasts else ()
            # The kernel makes entries for multicast groups, but no permanent ones.
            made = not state & PERMANENT and (found.get(LLADDR) or b"\1")[0] & 1
            numbered = found.get(PROTOCOL) == bytes([ROUTE_PROTOCOL])
            return (Event.NEIGHBOUR,) if numbered or (lasts and not made) else ()
        if family == AF_BRIDGE:
            found = attributes(body, 12)
            ours = self._own_entries.pop((kind, index, found.get(LLADDR, b""), found.get(DST, b"")), None)
            return () if ours is not None else (Event.ENTRY,)
        # The kernel itself resolves nobody there, so an entry in such a state was one of ours.
        return (Event.NEIGHBOUR,)


def _is_hosts(body: bytes) -> bool:
    """Return whether a route is the host's own, to somewhere or nowhere: not a daemon's, ours, or every link's.

    Every link has routes to its addresses (table local), and for IPv6 to link-local ones.
    """
    table, protocol = body[4:6]
    if protocol not in _HOSTS_OWN or table not in (_MAIN, _LOCAL) or (table, protocol) == (_LOCAL, _KERNEL):
        return False
    return not _is_link_local(body)


def _is_link_local(body: bytes) -> bool:
    """Return whether a route leads to link-local addresses of IPv6."""
    return attributes(body, 12).get(_DST, b"").startswith(_LINK_LOCAL)


def _is_made_of_mac(body: bytes) -> bool:
    """Return whether an address is the link-local one that the kernel makes from a link's MAC (RFC 4291 appendix A).

    A link that is up for a moment before its setting disable_ipv6 is made has one. No address of ours looks so.
    """
    address = attributes(body, 8).get(_IFA_ADDRESS, b"")
    return address.startswith(_LINK_LOCAL) and address[11:13] == b"\xff\xfe"


def _process(port: int) -> str:
    """Return who has a netlink port: usually the process with that number, if it still lives in our namespace."""
    process = f"/proc/{port}"
    try:
        if port and os.stat(f"{process}/ns/net").st_ino == os.stat("/proc/self/ns/net").st_ino:  # noqa: PTH116
            with open(f"{process}/comm") as name:  # noqa: PTH123
                return f"{name.read().strip()}, process {port}"
    except OSError:
        pass
    return ""


def _way_out(body: bytes) -> int:
    """Return the index of the link of a route, 0 if it has none."""
    return int(struct.unpack("=I", attributes(body, 12).get(_OIF, bytes(4)))[0])


def _index(body: bytes) -> int:
    return int(struct.unpack_from("=i", body, 4)[0])


def _mac(body: bytes) -> bytes:
    return attributes(body, 16).get(ADDRESS, b"")


def _traits(found: Mapping[int, bytes]) -> tuple[bytes, bytes]:
    """Return the MAC and the MTU in a link's attributes."""
    return found.get(ADDRESS, b""), found.get(MTU, b"")


def _name(body: bytes) -> str:
    return _named(attributes(body, 16))


def _named(found: Mapping[int, bytes]) -> str:
    """Return the name in a link's attributes."""
    return string(found.get(_IFNAME, b""))


def _is_own_thread(number: int) -> bool:
    """Return whether a thread is one of this process: the loop's, or the worker's."""
    return os.path.exists(f"/proc/self/task/{number}")  # noqa: PTH110 - half of the time of Path.exists


class NftEvents:
    """nftables transactions of other processes: our tables or others' may differ now."""

    def __init__(self, kinds: Kinds) -> None:
        self._kinds = kinds.after(Event.NFT)
        self.socket = Socket(NETFILTER)
        self.socket.only(_NEWGEN)  # which is a datagram of its own, and 10,000 elements are as many messages
        self.socket.join(_NFT_GROUP)
        self.actor = ""

    def dirty(self) -> frozenset[type[State]]:
        """Read pending events and return the kinds to observe if another process changed anything."""
        found = False
        try:
            while True:
                for _, _, body in self.socket.receive():
                    told = attributes(body, 4)
                    pid = struct.unpack(">I", told.get(_GEN_PROCESS, bytes(4)))[0]
                    if not _is_own_thread(pid):
                        found = True
                        self.actor = f"{string(told.get(_GEN_NAME, b''))}, process {pid}" if pid else ""
        except BlockingIOError:
            return self._kinds if found else frozenset()
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                return self._kinds
            raise
