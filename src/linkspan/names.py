"""Names of containers: what a network's DNS server is told, and the states that it is made of. Pure.

Each network that has containers on this host has a server of its own, at its gateway's address: one ``dnsmasq``,
which reads two files of addresses and names: this host's, and the other hosts' that live. Where either changes it is
told by SIGHUP and reads both: it watches nothing itself, for a user has 128 inotify instances in all. It goes on
without the agent.

    NAME, NAME.NETWORK, NAME.NETWORK.internal    answered from the files, or not at all
    addresses of the pools                       likewise
    another network's NAME.NETWORK.internal      not at all
    everything else                              asked of the host's own resolvers, unless the network is internal

Whoever is no container of the network and not the host itself is refused (`firewall`). What a container asks of the
host's own resolvers comes to its network's server instead: so names are there also for runtimes that take no server
from a plugin (Docker's 127.0.0.11 asks those, and so does a pod). What the host's resolver itself asks does not, where
it is a container (`forwarders`, `firewall`): its question would come back to it. Another way round is found by the
server: it asks itself by each resolver, and leaves out one by which that question comes back.

Rejected: dnsmasq's ``--hostsdir`` (inotify, and what is gone from a file stays known), one server for all networks
(one container's storm would be everybody's), ``--bind-dynamic`` (a look at every address of the host for each
container that comes).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator

import msgspec

from linkspan import migration
from linkspan.addresses import Prefix, prefix
from linkspan.backends import backend
from linkspan.firewall import element, pool_text
from linkspan.model import ALIASES, Endpoint, Network
from linkspan.programs import Dnsmasq, File, Process
from linkspan.state import State

LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
"""RFC 1035 section 2.3.4 gives the length; underscores are in container names (Compose's), and servers take them."""
LONGEST = 253
DIGEST = re.compile(r"[0-9a-f]{64}")
SHORT = 12
"""Digits of a container's id that Docker and Podman show, and give as its host name."""
NAMESPACE = "default-"
"""``ctr run --cni`` calls its container ID default-ID, by containerd's namespace."""
WHOLE = "internal"
"""The top of whole names: a domain for private use, which the outside has not got and never will."""
AT_ONCE = 1000
"""Questions of the outside under way, for all of a network; one whose own server is slow lasts 10 s."""
LOCALHOST = "localhost"
"""RFC 6761 section 6.3: what it means is known without asking, and must not be another."""


class Named(msgspec.Struct, frozen=True):
    """What a server must know of an endpoint; the first name is the one that its addresses lead back to."""

    addresses: tuple[str, ...]
    names: tuple[str, ...]


class Server(msgspec.Struct, frozen=True):
    """What a network's server needs beside names: its program, and the host's resolvers.

    ``asked`` are those that runtimes give containers by themselves, ``forwarders`` the addresses of containers that may
    be asked by one, and ``nowhere`` the lines of what is asked of nobody (`nowhere`).
    """

    dnsmasq: Dnsmasq
    resolvers: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    forwarders: tuple[str, ...] = ()
    nowhere: str = ""


def given(endpoint: Endpoint) -> tuple[str, ...]:
    """Return the names that an endpoint was given, as they were: its container's, the aliases, and a short id."""
    id_ = endpoint.id
    short = id_[:SHORT] if DIGEST.fullmatch(id_) else id_
    bare = short.removeprefix(NAMESPACE)
    aliases = (alias.strip() for alias in endpoint.labels.get(ALIASES, "").split(","))
    return tuple(dict.fromkeys(name for name in (endpoint.name, *aliases, bare, short) if name))


def normal(name: str) -> str:
    """Return a name as DNS has it, '' where it is none: in small letters, without a dot at the end."""
    name = name.lower().removesuffix(".")
    labels = name.split(".")
    if len(name) > LONGEST or not all(LABEL.fullmatch(label) for label in labels) or labels[-1] == LOCALHOST:
        return ""
    return name


def named(endpoint: Endpoint) -> Named:
    """Return what servers are told of an endpoint."""
    names = tuple(dict.fromkeys(filter(None, map(normal, given(endpoint)))))
    return Named(tuple(p.address for p in endpoint.prefixes), names)


def unspeakable(endpoint: Endpoint) -> tuple[str, ...]:
    """Return the names of an endpoint that cannot be looked up."""
    return tuple(name for name in given(endpoint) if not normal(name))


def forwarders(endpoints: Iterable[Endpoint]) -> tuple[str, ...]:
    """Return the addresses of containers that are servers of names for the outside, and so perhaps for the host."""
    found = {p.address for e in endpoints if any(port.host_port == 53 for port in e.ports) for p in e.prefixes}
    return tuple(sorted(found))


def domains(network: Network) -> tuple[str, ...]:
    """Return the domains of a network's names, the whole one last; none where its name is no domain's."""
    name = normal(network.name)
    return (name, f"{name}.{WHOLE}") if name else ()


def nowhere(networks: Iterable[Network]) -> str:
    """Return the lines by which no network's names are asked outside, where another network's server may be known."""
    return "".join(sorted(f"server=/{end}/\n" for network in networks for end in domains(network)[1:]))


def hosts(network: Network, every: Iterable[Named]) -> bytes:
    """Return a file of addresses and names as /etc/hosts is, the same for the same endpoints."""
    ends = domains(network)
    lines = {line for one in every for line in _lines(ends, one)}
    return "".join(f"{line}\n" for line in sorted(lines)).encode()


def _lines(ends: tuple[str, ...], one: Named) -> Iterator[str]:
    words: list[str] = []
    for name in one.names:
        words += [f"{name}.{end}" for end in ends if len(name) + 1 + len(end) <= LONGEST]
        if "." not in name:  # a name with a dot could be one of the outside's
            words.append(name)
    if words:
        yield from (f"{address} {' '.join(words)}" for address in one.addresses)


def crosses(network: Network) -> bool:
    """Tell whether other hosts' endpoints are in the same network: by either way, while it migrates."""
    return any(backend(way.backend).crosses_hosts for way in migration.ways(network))


def served(network: Network) -> tuple[tuple[Prefix, Prefix], ...]:
    """Return the pools that have a server, each with its gateway: not where the gateway is every network's."""
    return tuple((pool, gateway.single()) for pool, gateway in network.pairs if not _shared(gateway))


def own(pools: Iterable[tuple[Prefix, Prefix]], endpoint: Endpoint) -> list[tuple[Prefix, Prefix]]:
    """Return a container's own ones of these pools and gateways.

    A gateway's address is on a host while a container there has an address of its pool.
    """
    addresses = endpoint.prefixes
    return [(pool, gateway) for pool, gateway in pools if any(pool.holds(one) for one in addresses)]


def _shared(gateway: Prefix) -> bool:
    return any(prefix(text).holds(gateway.single()) for text in ("169.254.0.0/16", "fe80::/10"))


def process(network: str) -> str:
    """Return the name of a network's server among the processes."""
    return f"names-{network}"


def here(folder: str, network: str) -> str:
    """Return where this host's names stand."""
    return f"{folder}/{network}/here"


def elsewhere(folder: str, network: str) -> str:
    """Return where the other hosts' names stand."""
    return f"{folder}/{network}/elsewhere"


def states(
    network: Network, server: Server, own: bytes, others: bytes, used: Collection[Prefix]
) -> Iterator[State]:
    """Return what the network's server is made of, for these files of names; ``used`` are its pools on this host."""
    folder = server.dnsmasq.folder
    asked = "".join(f"server={one}\n" for one in server.resolvers) + server.nowhere
    files = {
        here(folder, network.name): own,
        elsewhere(folder, network.name): others,
        f"{folder}/{network.name}/resolvers": b"" if network.internal else asked.encode(),
    }
    yield from (File(path, content, volatile=True) for path, content in files.items())
    at = [(pool, gateway) for pool, gateway in served(network) if pool in used]
    argv = tuple(_argv(network, server.dnsmasq, *files, at=[gateway.address for _, gateway in at]))
    yield Process(process(network.name), argv, files=tuple(files), hup=True)
    for pool, gateway in at:
        family, text = pool.family, pool_text(pool)
        yield element(f"servers{family}", gateway.address)
        yield element(f"asking{family}", text, gateway.address)
        yield element(f"server_of{family}", text, data=(gateway.address,))
    for name, addresses in (("resolvers", server.asked), ("forwarders", server.forwarders)):
        yield from (element(f"{name}{found.family}", found.address) for found in map(prefix, addresses))


def _argv(
    network: Network, dnsmasq: Dnsmasq, own: str, others: str, resolvers: str, *, at: Iterable[str]
) -> Iterator[str]:
    # nohup: SIGHUP that comes before the server knows what it means would end it.
    yield from ("nohup", dnsmasq.program, "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=")
    yield from (f"--user={dnsmasq.user}", "--log-facility=/dev/null")  # its last words go to stderr all the same
    yield "--bind-interfaces"
    yield from (f"--listen-address={address}" for address in at)
    yield from ("--no-hosts", f"--addn-hosts={own}", f"--addn-hosts={others}")
    yield from ("--no-resolv", f"--servers-file={resolvers}", "--cache-size=1000")
    yield from ("--dns-loop-detect", f"--dns-forward-max={AT_ONCE}")
    # Bare names: the first says so where nobody is asked (else it is a refusal), the second of whatever type.
    yield from ("--domain-needed", "--local=//")
    yield from (f"--local=/{end}/" for end in domains(network))
    yield from (f"--rev-server={pool}" for pool, _ in served(network))
