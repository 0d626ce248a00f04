"""Topology of a lab, from a user's options to its record: names, segments and addresses. Nothing is made here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import msgspec

from linkspan.backends import BACKENDS, CROSSING
from linkspan.core.addresses import prefix
from linkspan.core.errors import Invalid
from linkspan.lab.record import Container, Controller, Host, Lab, Router, Switch, checked

UNDERLAYS = {"v4": (4,), "v6": (6,), "dual": (4, 6)}
STORES = ("sqlite", "etcd")
ALONE = "bridge"
"""The backend of a lab whose hosts share nothing."""
DOCUMENTATION = ("192.0.2", "198.51.100", "203.0.113")
"""RFC 5737; segments past the third are in the range for benchmarks (RFC 2544)."""
ROUTERS, SWITCH = {4: ("254", "252"), 6: ("fe", "fc")}, {4: "253", 6: "fd"}
MAX_HOSTS, MAX_SEGMENTS, MAX_ROUTERS = 250, 250, 2
KERNEL, BGP_ROUTERS = "kernel", ("bird", "frr")
CORE = 256
"""Segment number of the link between routers."""
_BEHIND = "192.168"
"""Range for private use (RFC 1918), in which each NAT has a network of its own."""
RACK_AS, HOST_AS, CLUSTER_AS = 65000, 4200000000, 64512
"""AS numbers for private use (RFC 6996): routers and hosts with BGP have one each, behind a reflector all share one."""
POOLS = {4: "10.244.0.0/16", 6: "fd00:244::/48"}
ETCD_PORT, ETCD_STEP = 2379, 10
"""The first member's port for clients, and how far the next member's is from it."""
STORE_MEMBERS = (1, 3, 5)
"""Members of a lab's etcd: an even number survives no more failures than one member less."""
PREFIX, USER = "/lab", "linkspan"
"""Prefix of the lab's records in etcd, and the agents' user."""
SDN = "sdn"
SWITCHES, MAX_CONTROLLERS = (1, 3), 3

CONTAINERS = {4: "10.240.0.0/12", 6: "fd00::/8"}
"""Ranges from which routers with BGP accept container networks."""
LIMIT = 1000
"""Prefixes that a router accepts from one host: its blocks, and exact addresses."""
HOLD = 9
"""Seconds after which a router drops a silent neighbour: short, for a lab."""


class Wishes(msgspec.Struct, kw_only=True):
    """The options of `lab up`."""

    lab: str = "lab"
    hosts: int = 3
    backend: str = "vxlan"
    segments: int = 1
    options: dict[str, str] = {}
    store: str = "sqlite"
    store_members: int = 1
    containers_per_host: int = 1
    underlay: str = "v4"
    mtu: int = 1500
    routers: str = KERNEL
    routers_per_segment: int = 1
    reflector: bool = False
    switches: int = 1
    controllers: int = 1
    nat: tuple[str, ...] = ()
    bare: bool = False


def address(segment: int, family: int, last: str) -> str:
    """Return an address with its length on a segment."""
    if family == 6:
        return f"2001:db8:{segment:x}::{last}/64"
    if segment == CORE:
        return f"198.19.0.{last}/24"
    net = DOCUMENTATION[segment - 1] if segment <= len(DOCUMENTATION) else f"198.18.{segment}"
    return f"{net}.{last}/24"


def bare(text: str) -> str:
    """Return an address without its length."""
    return text.partition("/")[0]


def families(lab: Lab) -> tuple[int, ...]:
    """Return the families of a lab's underlay."""
    return tuple(6 if ":" in text else 4 for text in lab.hosts[0].addresses)


def gateways(lab: Lab, segment: int) -> list[list[str]]:
    """Return, for each family, the addresses of a segment's routers, with their lengths."""
    count = sum(not one.reflector for one in lab.routers_of(segment)) or bool(lab.router)
    return [_routers(segment, family, count) for family in families(lab)] if count else []


def _routers(segment: int, family: int, count: int) -> list[str]:
    return [address(segment, family, last) for last in ROUTERS[family][:count]]


def behind(host: Host) -> str:
    """Return the address of a host's NAT on the host's side, with its length."""
    return host.addresses[0].replace(".2/", ".1/")


def rack(router: Router, family: int) -> str:
    """Return the prefix of a router's segment."""
    return next(str(prefix(text).network()) for text in router.addresses if prefix(text).family == family)


def router_id(router: Router) -> str:
    """Return a router's BGP identifier."""
    return bare(address(CORE, 4, str(router.number)))


def settings(lab: Lab, host: Host) -> dict[str, str]:
    """Return a host's settings (`host set`).

    With ipsec, the path of the shared key; with bgp, its own AS, and the speakers on its segment as its
    peers.
    """
    if lab.backend == "ipsec":
        return {"ipsec.psk-file": str(shared_key(lab))}
    speakers = lab.routers_of(host.segment)
    if lab.backend != "bgp" or not speakers:
        return {}
    number = lab.hosts.index(host) + 1
    asn = CLUSTER_AS if speakers[0].reflector else HOST_AS + number
    found = {"bgp.mesh": "false", "bgp.as": str(asn)}
    for router in speakers:
        found[f"bgp.peer.{router.name}.address"] = bare(router.addresses[0])
        found[f"bgp.peer.{router.name}.as"] = str(router.asn)
    return found


def shared_key(lab: Lab) -> Path:
    """Return the path of the IPsec key of a lab's hosts."""
    return lab.folder / "ipsec.psk"


def etcd_address(lab: Lab, segment: int) -> str:
    """Return etcd's address on a segment, with its length."""
    family = families(lab)[0]
    return address(segment, family, SWITCH[family])


def etcd_ports(lab: Lab) -> list[int]:
    """Return the ports for clients of the lab's etcd, one for each member."""
    return [ETCD_PORT + ETCD_STEP * number for number in range(lab.store_members)]


def store_url(lab: Lab, host: Host) -> str:
    """Return the store's URL for a host's agent; empty if each host has its own store."""
    if lab.alone:
        return ""
    if lab.store == "sqlite":
        return f"sqlite://{lab.folder / 'store'}"
    return etcd_url(lab, bare(etcd_address(lab, host.segment)))


def etcd_url(lab: Lab, text: str) -> str:
    """Return the store's URL by one of the switch's addresses, with the credentials of the lab's hosts."""
    files = {"ca": "ca.pem", "cert": "client.pem", "key": "client.key", "password-file": USER}
    options = urlencode({"user": USER} | {word: str(credential(lab, name)) for word, name in files.items()}, safe="/")
    members = ",".join(f"{f'[{text}]' if ':' in text else text}:{port}" for port in etcd_ports(lab))
    return f"etcd://{members}{PREFIX}?{options}"


def credential(lab: Lab, name: str) -> Path:
    """Return the path of a certificate, of its key or of a user's password for the lab's etcd; '' is their folder."""
    return lab.folder / "credentials" / name


def planned(wishes: Wishes) -> Lab:
    """Return the record of the requested lab. Raises Invalid with the option."""
    _check(wishes)
    name, outer = wishes.lab, UNDERLAYS[wishes.underlay]
    hosts = []
    for number in range(1, wishes.hosts + 1):
        segment = (number - 1) % wishes.segments + 1
        addresses = [address(segment, family, str(number)) for family in outer]
        host = Host(f"h{number}", f"{name}-h{number}", segment, addresses)
        if host.name in wishes.nat:
            host.addresses, host.outside = [f"{_BEHIND}.{number}.2/24"], addresses
        hosts.append(host)
    containers = [
        Container(f"c{number + 1}", hosts[number % wishes.hosts].name, f"{name}-c{number + 1}")
        for number in range(0 if wishes.bare else wishes.hosts * wishes.containers_per_host)
    ]
    routers = [*_speakers(wishes)]
    sdn = wishes.backend == SDN
    return Lab(
        name=name,
        backend=wishes.backend,
        options=wishes.options,
        store=wishes.store,
        store_members=wishes.store_members,
        segments=wishes.segments,
        mtu=wishes.mtu,
        pools=_pools(wishes.backend, outer, bool(routers)),
        hosts=hosts,
        routers=routers,
        switches=[Switch(name=f"sw{n + 1}") for n in range(wishes.switches if sdn else 0)],
        controllers=[Controller(name=f"ctl{n + 1}") for n in range(wishes.controllers if sdn else 0)],
        containers=containers,
        bare=wishes.bare,
    )


def _speakers(wishes: Wishes) -> Iterator[Router]:
    """Yield the BGP speakers of the underlay: routers of each segment, or one reflector."""
    outer = UNDERLAYS[wishes.underlay]
    if wishes.reflector:
        name, software = "rr", wishes.routers if wishes.routers in BGP_ROUTERS else BGP_ROUTERS[0]
        yield Router(
            name=name,
            number=1,
            namespace=f"{wishes.lab}-{name}",
            software=software,
            segment=1,
            asn=CLUSTER_AS,
            addresses=[address(1, family, ROUTERS[family][0]) for family in outer],
        )
    elif wishes.routers != KERNEL:
        for number in range(1, wishes.segments * wishes.routers_per_segment + 1):
            segment, place = (
                (number - 1) // wishes.routers_per_segment + 1,
                (number - 1) % wishes.routers_per_segment,
            )
            yield Router(
                name=f"r{number}",
                number=number,
                namespace=f"{wishes.lab}-r{number}",
                software=wishes.routers,
                segment=segment,
                asn=RACK_AS + number,
                addresses=[address(segment, family, ROUTERS[family][place]) for family in outer],
                core=[address(CORE, family, str(number)) for family in outer],
            )


def _pools(backend: str, outer: tuple[int, ...], routers: bool) -> list[str]:
    """Return the network's pools: IPv4, and IPv6 too if underlay and backend support it.

    A mesh carries IPv4 over IPv6 next hops (RFC 8950); the routers' configurations of this lab do not.
    """
    if outer == (6,) and (BACKENDS[backend].neighbours or routers):
        return [POOLS[6]]
    return [POOLS[4], *([POOLS[6]] if 6 in outer and 6 in BACKENDS[backend].families else [])]


def _check(wishes: Wishes) -> None:
    checked(wishes.lab)
    for option, value, low, high in (
        ("--hosts", wishes.hosts, 1, MAX_HOSTS),
        ("--segments", wishes.segments, 1, min(wishes.hosts, MAX_SEGMENTS)),
        ("--routers-per-segment", wishes.routers_per_segment, 1, MAX_ROUTERS),
        ("--containers-per-host", wishes.containers_per_host, 0, 200),
        ("--mtu", wishes.mtu, 1280 if 6 in UNDERLAYS.get(wishes.underlay, ()) else 576, 65535),
    ):
        if not low <= value <= high:
            raise Invalid(f"{option} {value} is out of range", f"give {low} to {high}")
    for option, word, known in (
        ("--backend", wishes.backend, (ALONE, *CROSSING)),
        ("--underlay", wishes.underlay, tuple(UNDERLAYS)),
        ("--store", wishes.store, STORES),
        ("--routers", wishes.routers, (KERNEL, *BGP_ROUTERS)),
    ):
        if word not in known:
            raise Invalid(f"{option} {word!r} is unknown", f"give {', '.join(known[:-1])} or {known[-1]}")
    if wishes.store_members not in STORE_MEMBERS:
        raise Invalid(f"--store-members {wishes.store_members} is out of range", "give 1, 3 or 5")
    if wishes.store_members > 1 and (wishes.store != "etcd" or wishes.backend == ALONE):
        raise Invalid("--store-members are etcd's", "give --store etcd, and a backend that crosses hosts")
    if 6 not in BACKENDS[wishes.backend].families and wishes.underlay == "v6":
        raise Invalid(f"backend {wishes.backend} needs an IPv4 underlay", "give --underlay v4 or dual")
    given = (wishes.backend, wishes.store, wishes.options, wishes.containers_per_host)
    if wishes.bare and given != ("vxlan", "sqlite", {}, 1):
        raise Invalid("--bare hosts have no network, no store and no container", "leave the other options out")
    _check_nat(wishes)
    _check_routers(wishes)
    _check_switches(wishes)


def _check_switches(wishes: Wishes) -> None:
    if wishes.switches not in SWITCHES:
        raise Invalid(f"--switches {wishes.switches} is out of range", "give 1, or 3: a spine and two leaves")
    if not 1 <= wishes.controllers <= MAX_CONTROLLERS:
        raise Invalid(f"--controllers {wishes.controllers} is out of range", f"give 1 to {MAX_CONTROLLERS}")
    if wishes.backend != SDN and (wishes.switches, wishes.controllers) != (1, 1):
        raise Invalid("--switches and --controllers are for SDN", "give --backend sdn too")
    if wishes.backend == SDN and (wishes.segments > 1 or wishes.routers != KERNEL or wishes.reflector):
        raise Invalid("--backend sdn has switches, and neither segments nor routers", "give --switches 3 instead")


def _check_nat(wishes: Wishes) -> None:
    known = [f"h{number}" for number in range(1, wishes.hosts + 1)]
    for name in wishes.nat:
        if name not in known:
            raise Invalid(f"--nat {name}: the host does not exist", f"the hosts are {', '.join(known)}")
    if wishes.nat and wishes.underlay != "v4":
        raise Invalid("--nat is for IPv4: nobody translates IPv6 like that", "give --underlay v4")
    if wishes.nat and wishes.backend == SDN:
        raise Invalid("--backend sdn has each host at a port of a switch, and no NAT between", "leave out --nat")


def _check_routers(wishes: Wishes) -> None:
    if wishes.reflector and wishes.segments > 1:
        raise Invalid("--reflector is for one segment: it forwards nothing", "give --segments 1")
    if wishes.reflector and wishes.routers_per_segment > 1:
        raise Invalid("--reflector makes one speaker, and no routers", "leave out --routers-per-segment")
    if wishes.routers == KERNEL and wishes.routers_per_segment > 1:
        raise Invalid("two routers on a segment have to speak BGP", "give --routers bird or frr")
    if wishes.backend == "bgp" and wishes.segments > 1 and wishes.routers == KERNEL:
        raise Invalid(
            "--backend bgp on several segments needs routers that speak BGP: others have no route to containers",
            "give --routers bird or frr",
        )
    if wishes.segments * wishes.routers_per_segment > MAX_SEGMENTS:
        raise Invalid(f"this needs more than {MAX_SEGMENTS} routers", "give fewer --segments")
