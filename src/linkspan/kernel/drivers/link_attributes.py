"""Link attributes that linkspan leaves at the kernel's defaults, and that decide which packets go where.

Another value stops packets, or sends them to ports that they are not for: a bridge that may learn nothing, or
forgets at once, floods each container's frames to all others. For each attribute of a link, of a bridge and
of a bridge port this was decided: it is a field of its state (name, MAC, MTU, master, hairpin, up), or it is
in a table here, or no value of it has such an effect. The last are: alias, group (except of devices that
encrypt), txqueuelen, GSO and GRO sizes, promiscuity, allmulti; of a bridge forward delay, priorities, the
group address, multicast snooping and its timers and versions, statistics; of a port priority, cost, fast
leave, multicast to unicast and multicast router. An XDP or tc program belongs to another program: ``trace``
names it. Whether a bridge's frames pass the rules of IPv4 and IPv6 is a kind of its own (``bridge_filters``).

An attribute that a kernel does not have is missing in its answer, and is not checked.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping

from linkspan.kernel.io.link_messages import (
    ADDRESS,
    IFF_NOARP,
    IFINFO,
    IFNAME,
    INFO_DATA,
    INFO_KIND,
    INFO_SLAVE_DATA,
    INFO_SLAVE_KIND,
    LINKINFO,
    MASTER,
    NESTED,
    Link,
)
from linkspan.kernel.io.netlink import NEWLINK, SETLINK, Message, attr, text, u32

# linux/if.h
_IFF_MULTICAST = 0x1000
# linux/if_link.h
_OPERSTATE, _LINKMODE, _PROTO_DOWN, _PROTO_DOWN_REASON = 16, 17, 39, 55
_REASON_MASK, _REASON_VALUE = 1, 2
_BRPORT_STATE = 1

_TESTING, _DORMANT, _OPER_UP = b"\4", b"\5", b"\6"  # IF_OPER_* in linux/if.h
_FORWARDING = b"\3"  # BR_STATE_FORWARDING in linux/if_bridge.h

_ON, _OFF, _NONE = b"\1", b"\0", bytes(4)
# The number of an attribute, its name for `ip` and `bridge`, and its only right value.
_PORT = (  # IFLA_BRPORT_*
    (5, "guard", _OFF),
    (6, "root_block", _OFF),
    (8, "learning", _ON),
    (9, "flood", _ON),
    (10, "proxy_arp", _OFF),
    (12, "proxy_arp_wifi", _OFF),
    (27, "mcast_flood", _ON),
    (29, "vlan_tunnel", _OFF),
    (30, "bcast_flood", _ON),
    (32, "neigh_suppress", _OFF),
    (33, "isolated", _OFF),
    (34, "backup_port", _NONE),
    (39, "locked", _OFF),
    (40, "mab", _OFF),
    (42, "mcast_max_groups", _NONE),
    (43, "neigh_vlan_suppress", _OFF),
)
_FORWARDED = struct.pack("=H", 1 << 14)
"""LLDP's address, one of the bridge's own (802.1D): otherwise a frame to it skips all netfilter hooks, and
the bridge learns from it (br_handle_frame in net/bridge/br_input.c). Forwarded, it passes our guard."""
_BRIDGE = (  # IFLA_BR_*
    (4, "ageing_time", struct.pack("=I", 30000)),  # in hundredths of a second: BR_DEFAULT_AGEING_TIME
    (5, "stp_state", _NONE),
    (7, "vlan_filtering", _OFF),
    (9, "group_fwd_mask", _FORWARDED),
    (25, "mcast_querier", _OFF),
    (38, "nf_call_arptables", _OFF),
    (49, "fdb_max_learned", _NONE),
)
BORN_BRIDGE = attr(9, _FORWARDED)
"""Attributes to set at a bridge's creation, because the kernel's default differs."""
_Table = tuple[tuple[int, str, bytes], ...]


def amiss(link: Link, *, arp: bool, master: bool = False) -> tuple[str, ...]:
    """Return in words the attributes of a link that differ from linkspan's.

    ``arp``: a link of this kind resolves neighbours. ``master``: its master is a field of its state.
    """
    return tuple(_amiss(link, arp=arp, master=master))


def _amiss(link: Link, *, arp: bool, master: bool) -> Iterator[str]:
    flags, found = link.flags, link.found
    if bool(flags & IFF_NOARP) == arp:
        yield f"arp {'off' if arp else 'on'}"
    if arp and not flags & _IFF_MULTICAST:
        yield "multicast off"
    if found.get(_LINKMODE, b"\0") != b"\0":
        yield "mode dormant"
    operstate = found.get(_OPERSTATE)
    if operstate in (_DORMANT, _TESTING):
        yield "state dormant" if operstate == _DORMANT else "state testing"
    if found.get(_PROTO_DOWN, b"\0") != b"\0":
        yield "protodown on"
    if MASTER in found and not master:
        yield "master"
    if link.kind == "bridge":
        yield from _wrong(_BRIDGE, link.data)
    if port := link.bridge_port:
        yield from _wrong(_PORT, port)
        # A port is rightly disabled while the container's end is down.
        if operstate == _OPER_UP and link.up and port.get(_BRPORT_STATE) != _FORWARDING:
            yield "not forwarding"


def _wrong(table: _Table, found: Mapping[int, bytes]) -> Iterator[str]:
    for number, name, right in table:
        if (value := found.get(number, right)) != right:
            yield f"{name} {'off' if right is _ON else 'on' if len(value) == 1 else 'set'}"


def _right(table: _Table, words: Iterable[str]) -> bytes:
    names = {word.split()[0] for word in words}
    return b"".join(attr(number, right) for number, name, right in table if name in names)


def repairs(name: str, wrong: Iterable[str], *, arp: bool) -> Iterator[Message]:
    """Yield the messages that correct what ``amiss`` found on the link ``name``."""
    words = set(wrong)
    link, what = text(IFNAME, name), f"correct {', '.join(sorted(words))} on link {name}"
    flags = (IFF_NOARP if words & {"arp off", "arp on"} else 0) | (_IFF_MULTICAST if "multicast off" in words else 0)
    if flags:
        right = (0 if arp else IFF_NOARP) | _IFF_MULTICAST
        yield Message(SETLINK, 0, IFINFO.pack(0, 0, 0, right & flags, flags) + link, what)
    head = IFINFO.pack(0, 0, 0, 0, 0) + link
    if "mode dormant" in words:
        yield Message(SETLINK, 0, head + attr(_LINKMODE, b"\0"), what)
    if words & {"state dormant", "state testing", "mode dormant"}:
        yield Message(SETLINK, 0, head + attr(_OPERSTATE, _OPER_UP), what)
    if "protodown on" in words:
        # A reason that another program set keeps it on.
        reasons = u32(_REASON_MASK, 0xFFFFFFFF) + u32(_REASON_VALUE, 0)
        yield Message(SETLINK, 0, head + attr(_PROTO_DOWN_REASON | NESTED, reasons), what)
        yield Message(SETLINK, 0, head + attr(_PROTO_DOWN, b"\0"), what)
    if "master" in words:
        yield Message(SETLINK, 0, head + u32(MASTER, 0), what)
    if data := _right(_BRIDGE, words):
        info = text(INFO_KIND, "bridge") + attr(INFO_DATA | NESTED, data)
        yield Message(NEWLINK, 0, head + attr(LINKINFO | NESTED, info), what)
    if data := _right(_PORT, words):
        yield _port(head, data, what)
    if "not forwarding" in words:
        yield _port(head, attr(_BRPORT_STATE, _FORWARDING), what)


def other_mac(name: str, mac: bytes, found: Mapping[int, bytes]) -> Iterator[Message]:
    """Yield the message that gives a link its MAC, unless it has that MAC already.

    The kernel drops all neighbour entries of a link whose MAC is set, permanent ones too, even if the MAC stays the
    same (dev_set_mac_address, neigh_changeaddr): each start of an agent would cost its containers packets.
    """
    if found.get(ADDRESS) != mac:
        body = IFINFO.pack(0, 0, 0, 0, 0) + text(IFNAME, name) + attr(ADDRESS, mac)
        yield Message(SETLINK, 0, body, f"set the MAC of link {name}")


def _port(head: bytes, data: bytes, what: str) -> Message:
    slave = text(INFO_SLAVE_KIND, "bridge") + attr(INFO_SLAVE_DATA | NESTED, data)
    return Message(NEWLINK, 0, head + attr(LINKINFO | NESTED, slave), what)
