"""FRR as a router or route reflector of the lab: its configuration, and the start of its daemons."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from linkspan.lab.record import Lab, Router
from linkspan.lab.topology import CONTAINERS, HOLD, LIMIT, bare, families, rack, router_id

PACKAGE, CONFIG = "frr", "etc/frr.conf"
FOLDERS = ("/usr/lib/frr", "/usr/libexec/frr")
"""Folders of the daemons in Debian and Ubuntu, and in Fedora."""
USER = "frr"
NAMES = {4: "ip", 6: "ipv6"}
CALLERS = 1000
"""Hosts that may connect to a router: FRR's default is 100, and a segment has up to 250."""

_ENTER = """\
mkdir -p /run/frr && mount --bind "$0/run" /run/frr && mount --bind "$0/etc" /etc/frr &&
mount -t tmpfs tmpfs /var/lib && mount -t tmpfs tmpfs /var/tmp && exec "$@" >&2"""
"""Its folders are compiled in, so it gets a mount namespace in which they are the lab's. It does not see the
files of the machine's own FRR (zebra would join its mgmtd), and leaves nothing in them."""


def config(lab: Lab, router: Router) -> str:
    """Return frr.conf."""
    return "\n".join([*_head(lab, router), *_speaker(lab, router)]) + "\n"


def _head(lab: Lab, router: Router) -> Iterator[str]:
    yield "frr defaults datacenter"
    yield f"hostname {router.name}"
    yield "!"
    yield "! Container networks are made in these, and other prefixes from hosts are not accepted."
    for family in families(lab):
        longest = 32 if family == 4 else 128
        yield f"{NAMES[family]} prefix-list CONTAINERS permit {CONTAINERS[family]} le {longest}"
    yield "!"


def _speaker(lab: Lab, router: Router) -> Iterator[str]:
    outer = families(lab)
    others = [] if router.reflector else [other for other in lab.routers if other is not router]
    yield f"router bgp {router.asn}"
    yield f" bgp router-id {router_id(router)}"
    yield " no bgp default ipv4-unicast"
    if not router.reflector:
        yield " bgp bestpath as-path multipath-relax"
    yield f" timers bgp {HOLD // 3} {HOLD}"
    yield " neighbor HOSTS peer-group"
    yield f" neighbor HOSTS remote-as {'internal' if router.reflector else 'external'}"
    yield f" bgp listen limit {CALLERS}"
    yield f" bgp listen range {rack(router, outer[0])} peer-group HOSTS"
    if others:
        yield " neighbor RACKS peer-group"
        yield " neighbor RACKS remote-as external"
        for other in others:
            yield f" neighbor {bare(other.core[0])} peer-group RACKS"
    for family in outer:
        yield " !"
        yield f" address-family ipv{family} unicast"
        if not router.reflector and family in outer:
            yield f"  network {rack(router, family)}"
        yield "  neighbor HOSTS activate"
        yield "  neighbor HOSTS prefix-list CONTAINERS in"
        yield "  neighbor HOSTS prefix-list CONTAINERS out"
        yield f"  neighbor HOSTS maximum-prefix {LIMIT}"
        if router.reflector:
            yield "  neighbor HOSTS route-reflector-client"
        if others:
            yield "  neighbor RACKS activate"
        if not router.reflector:
            yield "  maximum-paths 8"
        yield " exit-address-family"


def start(folder: Path) -> list[tuple[str, list[str], str]]:
    """Return the daemons in the order of their start: name, command, and the socket that shows that it serves."""
    return [
        _daemon(folder, *one)
        for one in (("mgmtd", "mgmtd_be.sock"), ("zebra", "zserv.api"), ("bgpd", "bgpd.vty"))
    ]


def _daemon(folder: Path, name: str, socket: str) -> tuple[str, list[str], str]:
    own = next((path for path in FOLDERS if Path(path, name).exists()), FOLDERS[0])
    words = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        _ENTER,
        str(folder),
        f"{own}/{name}",
        "-P",
        "0",
        "--log",
        "stdout",
    ]
    if name == "bgpd":
        words += ["-f", "/etc/frr/frr.conf"]
    return name, words, f"run/{socket}"


def tools(folder: Path) -> dict[str, list[str]]:
    """Return the programs to control it."""
    return {"vtysh": ["vtysh", "--vty_socket", str(folder / "run")]}
