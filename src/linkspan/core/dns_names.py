"""The names of endpoints and networks as DNS has them (pure); `zone` is what a server is told of them."""

from __future__ import annotations

import re

from linkspan.core.model import ALIASES, Endpoint, Network

LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
"""RFC 1035 section 2.3.4 gives the length; underscores are in container names (Compose's), and servers take them."""
LONGEST = 253
DIGEST = re.compile(r"[0-9a-f]{64}")
"""An id that an engine made, which people write by its first digits."""
SHORT = 12
"""Digits of a container's id that Docker and Podman show, and give as its host name."""
NAMESPACE = "default-"
"""``ctr run --cni`` calls its container ID default-ID, by containerd's namespace."""
WHOLE = "internal"
"""The top of whole names: a domain for private use, which the outside has not got and never will."""
LOCALHOST = "localhost"
"""RFC 6761 section 6.3: what it means is known without asking, and must not be another."""


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


def speakable(endpoint: Endpoint) -> tuple[str, ...]:
    """Return an endpoint's names that can be looked up, as DNS has them."""
    return tuple(dict.fromkeys(filter(None, map(normal, given(endpoint)))))


def unspeakable(endpoint: Endpoint) -> tuple[str, ...]:
    """Return the names of an endpoint that cannot be looked up."""
    return tuple(name for name in given(endpoint) if not normal(name))


def answers(endpoint: Endpoint, word: str) -> bool:
    """Tell whether a server answers a name with an endpoint: NAME, NAME.NETWORK or NAME.NETWORK.internal."""
    wanted, own, network = normal(word), speakable(endpoint), normal(endpoint.network)
    ends = ("", f".{network}", f".{network}.{WHOLE}") if network else ("",)
    return bool(wanted) and any(f"{name}{end}" == wanted for name in own for end in ends)


def domains(network: Network) -> tuple[str, ...]:
    """Return the domains of a network's names, the whole one last; none where its name is no domain's."""
    name = normal(network.name)
    return (name, f"{name}.{WHOLE}") if name else ()
