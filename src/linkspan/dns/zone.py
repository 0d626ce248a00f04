"""DNS zone of a network: the names that its server answers, and the server's states. Pure.

Each network that has containers on this host has its own server at its gateway's address: one ``dnsmasq``. It reads two
files of addresses and names: this host's, and those of the other live hosts. When either changes, SIGHUP makes it read
both. It watches no files itself, because a user has only 128 inotify instances. It keeps running without the agent.

    NAME, NAME.NETWORK, NAME.NETWORK.internal    answered from the files, or not at all
    addresses of the pools                       likewise
    another network's NAME.NETWORK.internal      not at all
    everything else                              asked of the host's own resolvers, unless the network is internal

A container in several networks finds the names of all of them. A server gives all clients the same answers, so there is
one more server for each combination of networks that some container on this host is in: a view. It reads the files of
its networks, and listens at their gateways too, at a port of its own. A map redirects the questions of such a container
to the view by the container's address, whichever server it asks. Containers in one network need nothing of this.

Only the network's containers and the host itself may ask (`ruleset`). A container's questions to the host's own
resolvers are redirected to its network's server: so names work also for runtimes that take no server from a plugin
(Docker's 127.0.0.11 asks those resolvers, and so does a pod). If the host's resolver is a container, its own questions
are not redirected (`forwarders`, `ruleset`), because they would come back to it. The server finds other loops itself:
it sends itself a question by each resolver, and leaves out a resolver by which that question comes back.

Rejected: dnsmasq's ``--hostsdir`` (inotify, and names removed from a file stay known), one server for all networks (one
container's storm would hit all), ``--bind-dynamic`` (it lists all addresses of the host for each new container), views
at addresses of their own (the host must then not choose these as source addresses).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence

import msgspec

from linkspan.backends import backend
from linkspan.core.addresses import Prefix, prefix
from linkspan.core.dns_names import LONGEST, domains, speakable
from linkspan.core.model import Endpoint, Network
from linkspan.core.ruleset import VIEW_PORTS, element, pool_text
from linkspan.core.states.host import NftElement, State
from linkspan.core.states.programs import Dnsmasq, File, Process, Zones

AT_ONCE = 1000
"""Questions of a network that the server has forwarded at one time; one to a slow resolver lasts 10 s."""
PORT = 53
"""The port at which a network's server listens; views have others (`ports`)."""
LEADS: Zones = ()
"""The source of the elements that redirect containers to views: one for all views, because a container may change its
view."""
LONGEST_FILE = 128
"""Most characters of a server's name in file names: a whole file name has at most 255."""


class Named(msgspec.Struct, frozen=True):
    """Names and addresses of an endpoint for a server; reverse lookups answer the first name."""

    addresses: tuple[str, ...]
    names: tuple[str, ...]


class Server(msgspec.Struct, frozen=True):
    """Inputs of a network's server beside names: its program, and the host's resolvers.

    ``asked`` are the resolvers that runtimes give containers by themselves, ``forwarders`` the addresses of containers
    that may be the host's resolvers, and ``nowhere`` the lines of names that are never forwarded (`nowhere`).
    """

    dnsmasq: Dnsmasq
    resolvers: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    forwarders: tuple[str, ...] = ()
    nowhere: str = ""


def named(endpoint: Endpoint) -> Named:
    """Return an endpoint's names and addresses for servers."""
    return Named(tuple(p.address for p in endpoint.prefixes), speakable(endpoint))


def forwarders(endpoints: Iterable[Endpoint]) -> tuple[str, ...]:
    """Return the addresses of containers that publish port 53: they may be the host's resolvers."""
    found = {p.address for e in endpoints if any(port.host_port == 53 for port in e.ports) for p in e.prefixes}
    return tuple(sorted(found))


def nowhere(networks: Iterable[Network]) -> str:
    """Return the lines of dnsmasq's configuration that keep the server from forwarding any network's names."""
    return "".join(sorted(f"server=/{end}/\n" for network in networks for end in domains(network)[1:]))


def hosts(network: Network, every: Iterable[Named]) -> bytes:
    """Return a file of addresses and names in the format of /etc/hosts, equal for equal endpoints."""
    ends = domains(network)
    lines = {line for one in every for line in _lines(ends, one)}
    return "".join(f"{line}\n" for line in sorted(lines)).encode()


def _lines(ends: tuple[str, ...], one: Named) -> Iterator[str]:
    words: list[str] = []
    for name in one.names:
        words += [f"{name}.{end}" for end in ends if len(name) + 1 + len(end) <= LONGEST]
        if "." not in name:  # a name with a dot could be an outside host's
            words.append(name)
    if words:
        yield from (f"{address} {' '.join(words)}" for address in one.addresses)


def crosses(network: Network) -> bool:
    """Return whether a network has endpoints on other hosts: by either backend while it migrates."""
    return any(backend(way.backend).crosses_hosts for way in network.ways)


def served(network: Network) -> tuple[tuple[Prefix, Prefix], ...]:
    """Return the pools that have a server, each with its gateway; without link-local gateways, which networks share."""
    return tuple((pool, gateway.single()) for pool, gateway in network.pairs if not _shared(gateway))


def own(pools: Iterable[tuple[Prefix, Prefix]], endpoint: Endpoint) -> list[tuple[Prefix, Prefix]]:
    """Return those of the (pool, gateway) pairs in whose pool the container has an address.

    A gateway's address is on a host only while a container there has an address of its pool.
    """
    addresses = endpoint.prefixes
    return [(pool, gateway) for pool, gateway in pools if any(pool.holds(one) for one in addresses)]


@functools.lru_cache(maxsize=4096)  # of each network's gateway, with each update of names
def _shared(gateway: Prefix) -> bool:
    return any(prefix(text).holds(gateway.single()) for text in ("169.254.0.0/16", "fe80::/10"))


def views(endpoints: Iterable[Endpoint], networks: Collection[str]) -> dict[Zones, list[Endpoint]]:
    """Return the combinations of these networks that containers are in, each with the endpoints of those containers.

    An endpoint whose namespace is not known yet is in no combination.
    """
    containers: dict[tuple[int, int], list[Endpoint]] = {}
    for endpoint in endpoints:
        if endpoint.netns and endpoint.network in networks:
            containers.setdefault(endpoint.namespace, []).append(endpoint)
    found: dict[Zones, list[Endpoint]] = {}
    for mates in containers.values():
        combination = tuple(sorted({endpoint.network for endpoint in mates}))
        if len(combination) > 1:
            found.setdefault(combination, []).extend(mates)
    return found


def ports(combinations: Iterable[Zones]) -> dict[Zones, int]:
    """Return a port for each view, always the same for the same networks.

    If two views have the same port, the alphabetically later one takes the next port. Views beyond the number of ports
    are left out.
    """
    found: dict[int, Zones] = {}
    for combination in sorted(combinations)[: len(VIEW_PORTS)]:
        digest = hashlib.sha256("/".join(combination).encode()).digest()
        number = int.from_bytes(digest[:2], "big")
        while (port := VIEW_PORTS[number % len(VIEW_PORTS)]) in found:
            number += 1
        found[port] = combination
    return {combination: port for port, combination in found.items()}


def _called(zones: Zones) -> str:
    """Return a server's name for processes and files; the plus sign is unambiguous, as no network's name has one."""
    name = "+".join(zones)
    return name if len(name) <= LONGEST_FILE else f"+{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def process(zones: Zones) -> str:
    """Return the name of a server's process."""
    return f"names-{_called(zones)}"


def here(folder: str, network: str) -> str:
    """Return the path of the file with this host's names."""
    return f"{folder}/{network}/here"


def elsewhere(folder: str, network: str) -> str:
    """Return the path of the file with the other hosts' names."""
    return f"{folder}/{network}/elsewhere"


def states(
    network: Network, server: Server, own: bytes, others: bytes, used: Collection[Prefix]
) -> Iterator[State]:
    """Yield the states of a network's server; ``own`` and ``others`` are its files, ``used`` the pools in use here."""
    folder = server.dnsmasq.folder
    yield File(here(folder, network.name), own, volatile=True)
    yield File(elsewhere(folder, network.name), others, volatile=True)
    yield from _running([network], server, used, PORT)
    for pool, gateway in _at([network], used):
        family, text = pool.family, pool_text(pool)
        yield element(f"servers{family}", gateway.address)
        yield element(f"asking{family}", text, gateway.address)
        yield element(f"server_of{family}", text, data=(gateway.address,))
    for name, addresses in (("resolvers", server.asked), ("forwarders", server.forwarders)):
        yield from (element(f"{name}{found.family}", found.address) for found in map(prefix, addresses))


def view(networks: Sequence[Network], server: Server, used: Collection[Prefix], port: int) -> Iterator[State]:
    """Yield the states of a view; the files of names that it reads are states of its networks' own servers.

    It forwards other names unless all of its networks are internal: a container's default route uses one that is not.
    """
    yield from _running(networks, server, used, port)
    for _, gateway in _at(networks, used):
        yield element(f"views{gateway.family}", gateway.address, str(port))


def leads(
    networks: Iterable[Network], used: Collection[Prefix], port: int, askers: Iterable[Endpoint]
) -> Iterator[NftElement]:
    """Yield the elements that redirect these endpoints' questions to their networks' view, and accept them there."""
    at = _at(networks, used)
    for endpoint in askers:
        for address in endpoint.prefixes:
            for gateway in (gateway for pool, gateway in at if pool.holds(address)):
                to = (gateway.address, str(port))
                yield element(f"view_of{address.family}", address.address, data=to)
                yield element(f"viewing{address.family}", address.address, *to)


def _at(networks: Iterable[Network], used: Collection[Prefix]) -> list[tuple[Prefix, Prefix]]:
    """Return the pools in use of these networks, each with the gateway at which the server listens."""
    return [(pool, gateway) for network in networks for pool, gateway in served(network) if pool in used]


def _running(networks: Sequence[Network], server: Server, used: Collection[Prefix], port: int) -> Iterator[State]:
    """Yield a server's process, which reads the networks' files, and the file of the resolvers that it asks."""
    folder, zones = server.dnsmasq.folder, tuple(network.name for network in networks)
    asked = "".join(f"server={one}\n" for one in server.resolvers) + server.nowhere
    resolvers = f"{folder}/{_called(zones)}/resolvers"
    inside = all(network.internal for network in networks)
    yield File(resolvers, b"" if inside else asked.encode(), volatile=True)
    hosts = [path for name in zones for path in (here(folder, name), elsewhere(folder, name))]
    at = [gateway.address for _, gateway in _at(networks, used)]
    argv = tuple(_argv(networks, server.dnsmasq, hosts, resolvers, at, port))
    yield Process(process(zones), argv, files=(*hosts, resolvers), hup=True)


def _argv(
    networks: Iterable[Network], dnsmasq: Dnsmasq, hosts: Iterable[str], resolvers: str, at: Iterable[str], port: int
) -> Iterator[str]:
    # nohup: a SIGHUP before the server has installed its handler would end it. setpriv: dnsmasq gives its log to its
    # user, and the log is the machine's /dev/null.
    yield from ("nohup", "setpriv", "--inh-caps=-chown", "--bounding-set=-chown")
    yield from (dnsmasq.program, "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=")
    yield from (f"--user={dnsmasq.user}", "--log-facility=/dev/null")  # its last messages still go to stderr
    yield "--bind-interfaces"
    yield from (f"--listen-address={address}" for address in at)
    yield from () if port == PORT else (f"--port={port}",)
    yield "--no-hosts"
    yield from (f"--addn-hosts={path}" for path in hosts)
    yield from ("--no-resolv", f"--servers-file={resolvers}", "--cache-size=1000")
    yield from ("--dns-loop-detect", f"--dns-forward-max={AT_ONCE}")
    # Bare names: the first option answers "does not exist" instead of a refusal if there is no resolver, the second one
    # does so for all record types.
    yield from ("--domain-needed", "--local=//")
    for network in networks:
        yield from (f"--local=/{end}/" for end in domains(network))
        yield from (f"--rev-server={pool}" for pool, _ in served(network))
