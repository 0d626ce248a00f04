"""Exposed networks: runtimes that have a network of linkspan's as their own."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from linkspan.core.config import Config
from linkspan.core.errors import Invalid
from linkspan.core.model import Network
from linkspan.core.states.programs import File
from linkspan.runtimes import runtimes


def check(network: Network) -> None:
    """Raise Invalid if the network cannot be exposed to the runtimes that it names."""
    known = runtimes()
    for name in network.expose:
        if name not in known:
            raise Invalid(f"network {network.name}: runtime {name!r} is unknown", f"give one of {', '.join(known)}")
        known[name].check(network)


def problem(network: Network) -> str:
    """Return why a runtime of this host does not have a network that is exposed to it, "" if each has it."""
    unknown = [name for name in network.expose if name not in runtimes()]
    return f"not exposed on this host, whose linkspan knows no runtime {', '.join(unknown)}" if unknown else ""


def files(network: Network, config: Config) -> Iterable[File]:
    """Return the files that expose a network on this host."""
    for name, runtime in runtimes().items():
        if name in network.expose:
            yield from runtime.exposing(network, config)


def written(value: object) -> bytes:
    """Return JSON as people write it, for a file that a runtime reads."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
