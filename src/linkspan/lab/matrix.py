"""`lab test`: every container and host to every container, by ping, TCP, and the largest packet with DF."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import msgspec

from linkspan.backends import BACKENDS
from linkspan.core.errors import LinkspanError
from linkspan.lab import commands, containers, sockets
from linkspan.lab.record import Container, Host, Lab
from linkspan.lab.topology import bare

WORKERS = 16


class Failure(msgspec.Struct, frozen=True, rename={"source": "from", "target": "to"}):
    """A test that failed."""

    source: str
    target: str
    what: str


class Outcome(msgspec.Struct, frozen=True):
    """The number of pairs, the number that pass all tests, and the failures."""

    pairs: int
    ok: int
    failed: list[Failure]


def pairs(lab: Lab) -> list[tuple[Host | Container, Container]]:
    """Return who should reach whom; if each host is alone, only its own containers."""
    places: Iterable[Host | Container] = chain(lab.containers, lab.hosts)
    return [
        (source, target)
        for source in places
        for target in lab.containers
        if source is not target and _reachable(lab, source, target)
    ]


def _reachable(lab: Lab, source: Host | Container, target: Container) -> bool:
    host = source.name if isinstance(source, Host) else source.host
    if lab.alone and host != target.host:
        return False
    return isinstance(source, Host) or bool(_shared(source, target))


def _shared(source: Container, target: Container) -> list[str]:
    """Return the target's addresses in networks that both share: networks are isolated from each other."""
    mine = {one.network for one in source.attachments}
    return [address for one in target.attachments if one.network in mine for address in one.addresses]


def test(lab: Lab) -> Outcome:
    """Test all pairs, several at a time."""
    found = pairs(lab)
    mtus = containers.mtus(lab)
    greeters = {c.name: sockets.Greeter(c.namespace, c.name.encode()) for c in lab.containers}
    try:
        with ThreadPoolExecutor(WORKERS) as pool:
            results = list(pool.map(lambda pair: _tried(pair[0], pair[1], mtus, greeters), found))
    finally:
        for greeter in greeters.values():
            greeter.close()
    failed = [failure for failures in results for failure in failures]
    return Outcome(len(found), sum(not failures for failures in results), failed)


def _tried(
    source: Host | Container, target: Container, mtus: dict[str, int], greeters: dict[str, sockets.Greeter]
) -> list[Failure]:
    failed = []
    greeter = greeters[target.name]
    addresses = target.addresses if isinstance(source, Host) else _shared(source, target)
    for text in addresses:
        address, mtu = bare(text), mtus[text]
        for what, why in (
            (f"ping {address}", sockets.ping(source.namespace, address)),
            (f"TCP to {address}", sockets.tcp(source.namespace, address, greeter.port, greeter.greeting)),
            (f"{mtu} bytes with DF to {address}", sockets.ping(source.namespace, address, mtu)),
        ):
            if why:
                failed.append(Failure(source.name, target.name, f"{what}: {why}"))
    return failed


def awaited(lab: Lab, seconds: float = commands.PATIENCE) -> list[Failure]:
    """Wait until every container reaches its gateways and one container of each host; return what stays silent.

    It does not wait for the impossible.
    """
    waiting = _first_pings(lab)
    with ThreadPoolExecutor(WORKERS) as pool:
        answers = pool.map(
            lambda one: sockets.ping(one[2], one[3], seconds=seconds if one[4] else sockets.ANSWER), waiting
        )
        return [
            Failure(source, target, f"ping {address}: {why}")
            for (source, target, _, address, _), why in zip(waiting, answers, strict=True)
            if why
        ]


def _first_pings(lab: Lab) -> list[tuple[str, str, str, str, bool]]:
    """Return (from, to, namespace, address, hope) of the pings that show whether a lab has come up."""
    found = [
        (c.name, "its gateway", c.namespace, bare(gateway), True)
        for c in lab.containers
        for one in c.attachments
        for gateway in one.gateways
    ]
    firsts = {c.host: c for c in reversed(lab.containers)}
    for source, target in pairs(lab):
        if firsts.get(target.host) is target and isinstance(source, Container):
            # Plain routes cannot lead through a router: from one segment to another nothing ever comes.
            across = lab.host(source.host).segment != lab.host(target.host).segment
            hope = not (across and BACKENDS[lab.backend].neighbours)
            found += [(source.name, target.name, source.namespace, bare(a), hope) for a in _shared(source, target)]
    return found


def sentence(failures: Sequence[Failure]) -> LinkspanError:
    """Return the error that names what does not answer."""
    words = [f"{f.source} to {f.target}: {f.what}" for f in failures[:5]]
    more = f" (and {len(failures) - 5} more)" if len(failures) > 5 else ""
    hint = "`linkspan lab exec h1 -- linkspan status` shows what h1 does not reach, and why"
    return LinkspanError("; ".join(words) + more, hint)
