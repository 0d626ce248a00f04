"""Exposed networks: the files by which CNI and Podman have a network (Docker stores its networks itself)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import msgspec

from linkspan.core.config import SOCKET, Config
from linkspan.core.model import Network
from linkspan.core.states.programs import File

CNI_VERSION = "1.0.0"
"""Version in a conflist: Debian's containerd 1.7 accepts no newer result."""

CAPABILITIES = (
    "portMappings",
    "ips",
    "mac",
    "bandwidth",
    "dns",
    "aliases",
    "io.kubernetes.cri.pod-annotations",
)

CREATED = "2026-01-01T00:00:00Z"
"""Podman wants a date; the same one on every host, so that the file does not change."""


def conflist(network: str, socket: str) -> bytes:
    """Return CNI's configuration of a network."""
    conf: dict[str, object] = {"type": "linkspan", "capabilities": dict.fromkeys(CAPABILITIES, True)}
    if socket != SOCKET:
        conf["socket"] = socket
    return _text({"cniVersion": CNI_VERSION, "name": network, "plugins": [conf]})


def podman_id(network: str) -> str:
    """Return the id of an exposed network, which distinguishes it from a user's own."""
    return hashlib.sha256(f"linkspan {network}".encode()).hexdigest()


def podman(network: Network) -> bytes:
    """Return Podman's record of a network; its id is 64 hex digits, as `podman network create` would give one."""
    return _text(
        {
            "name": network.name,
            "id": podman_id(network.name),
            "driver": "linkspan",
            "created": CREATED,
            "ipv6_enabled": any(pool.family == 6 for pool in network.prefixes),
            "internal": network.internal,
            "dns_enabled": False,
            "options": {"network": network.name},
            "ipam_options": {"driver": "none"},
        }
    )


def files(network: Network, config: Config) -> Iterable[File]:
    """Return the files that expose a network on this host."""
    if "cni" in network.expose and config.cni_networks:
        path = Path(config.cni_networks, f"10-linkspan-{network.name}.conflist")
        yield File(str(path), conflist(network.name, config.socket))
    if "podman" in network.expose and config.podman_networks:
        yield File(str(Path(config.podman_networks, f"{network.name}.json")), podman(network))


def _text(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
