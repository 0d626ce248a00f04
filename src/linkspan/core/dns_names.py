"""DNS names of endpoints and networks (pure); `zone` builds what a server gets."""

from __future__ import annotations

import re

from linkspan.core.model import ALIASES, Endpoint, Network

LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
"""RFC 1035 section 2.3.4 gives the length; underscores are in container names (Compose's), and servers take them."""
LONGEST = 253
DIGEST = re.compile(r"[0-9a-f]{64}")
"""An id made by an engine, of which people write the first digits."""
SHORT = 12
"""Digits of a container's id that Docker and Podman show, and give as its host name."""
NAMESPACE = "default-"
"""``ctr run --cni`` calls its container ID default-ID, by containerd's namespace."""
WHOLE = "internal"
"""Top-level domain of full names: reserved for private use, so the Internet never has it."""
LOCALHOST = "localhost"
"""RFC 6761 section 6.3: its meaning is fixed, and no server may change it."""


def given(endpoint: Endpoint) -> tuple[str, ...]:
    """Return the names given to an endpoint, unchanged: its container's, the aliases, and a short id."""
    id_ = endpoint.id
    short = id_[:SHORT] if DIGEST.fullmatch(id_) else id_
    bare = short.removeprefix(NAMESPACE)
    aliases = (alias.strip() for alias in endpoint.labels.get(ALIASES, "").split(","))
    return tuple(dict.fromkeys(name for name in (endpoint.name, *aliases, bare, short) if name))


def normal(name: str) -> str:
    """Return a name as DNS has it: in small letters, without a final dot; '' if it is no valid name."""
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
    """Return whether a server answers a name with an endpoint: NAME, NAME.NETWORK or NAME.NETWORK.internal."""
    wanted, own, network = normal(word), speakable(endpoint), normal(endpoint.network)
    ends = ("", f".{network}", f".{network}.{WHOLE}") if network else ("",)
    return bool(wanted) and any(f"{name}{end}" == wanted for name in own for end in ends)


def domains(network: Network) -> tuple[str, ...]:
    """Return the domains of a network's names, the full one last; none if its name is no valid domain."""
    name = normal(network.name)
    return (name, f"{name}.{WHOLE}") if name else ()
