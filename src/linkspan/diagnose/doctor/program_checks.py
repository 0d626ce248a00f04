"""Checks of the programs that backends run: those of the networks that there are."""

from __future__ import annotations

from collections.abc import Iterator

from linkspan.core.states.programs import located
from linkspan.diagnose.doctor.checks import Check, Surroundings

PROGRAMS = {
    "bgp": (("bird", "bird2"), ("birdc", "bird2")),
    "ipsec": (("charon-systemd", "charon-systemd"),),
    "wireguard": (("wg", "wireguard-tools"),),
}
"""By backend: program, and Debian's package of it."""


def installed(around: Surroundings) -> Iterator[Check]:
    """A network whose backend lacks its program crosses no hosts from here."""
    users: dict[str, list[str]] = {}
    for network in around.networks:
        for way in network.ways:
            users.setdefault(way.backend, []).append(network.name)
    for backend in sorted(users.keys() & PROGRAMS.keys()):
        missing = {name: package for name, package in PROGRAMS[backend] if not located(name)}
        names = ", ".join(missing or dict(PROGRAMS[backend]))
        if not missing:
            yield Check(backend, "ok", f"{names}: installed")
            continue
        networks = ", ".join(users[backend])
        detail = f"network {networks} needs {names}: not installed"
        yield Check(backend, "fail", detail, f"apt install {' '.join(dict.fromkeys(missing.values()))}")
