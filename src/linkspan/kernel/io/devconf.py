"""Settings of a link below net/ipv4/conf and net/ipv6/conf, from the link's own message: no file is read.

To ask for a link costs as much as to read five files (measured), and a link has a dozen settings.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping

from linkspan.kernel.io.netlink import attributes

_AF_SPEC = 26  # IFLA_AF_SPEC in linux/if_link.h
_AF_INET, _AF_INET6 = 2, 10
_INET_CONF, _INET6_CONF = 1, 2  # IFLA_INET_CONF, IFLA_INET6_CONF

# Positions in the two arrays: IPV4_DEVCONF_* minus one in linux/ip.h, DEVCONF_* in linux/ipv6.h.
_PLACES: Mapping[str, Mapping[str, int]] = {
    "ipv4": {
        "forwarding": 0,
        "proxy_arp": 2,
        "accept_redirects": 3,
        "send_redirects": 5,
        "rp_filter": 7,
        "arp_filter": 12,
        "arp_ignore": 18,
        "proxy_arp_pvlan": 24,
        "route_localnet": 25,
    },
    "ipv6": {"forwarding": 0, "accept_ra": 3, "accept_redirects": 4, "disable_ipv6": 26},
}


@functools.lru_cache(maxsize=1 << 14)  # the same ones are asked for each second
def link_of(path: str) -> str:
    """Return the link of a setting that ``value`` can find, '' if it cannot."""
    parts = path.split("/")
    if len(parts) != 5 or parts[0] != "net" or parts[2] != "conf":
        return ""
    return parts[3] if parts[4] in _PLACES.get(parts[1], {}) else ""


def arrays(found: Mapping[int, bytes]) -> dict[str, bytes]:
    """Return a link's settings by protocol, from its attributes; a link with too small an MTU has none for IPv6."""
    families = attributes(found.get(_AF_SPEC, b""))
    return {
        "ipv4": attributes(families.get(_AF_INET, b"")).get(_INET_CONF, b""),
        "ipv6": attributes(families.get(_AF_INET6, b"")).get(_INET6_CONF, b""),
    }


def value(path: str, found: Mapping[str, bytes]) -> str | None:
    """Return a setting's value from its link's ``arrays``, None if the link does not have it."""
    _, protocol, _, _, name = path.split("/")
    offset = 4 * _PLACES[protocol][name]
    array = found[protocol]
    return str(struct.unpack_from("=i", array, offset)[0]) if len(array) >= offset + 4 else None
