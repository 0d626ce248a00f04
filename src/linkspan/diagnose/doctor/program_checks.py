"""Checks of the programs that the existing networks' backends run."""

from __future__ import annotations

from collections.abc import Iterator

from linkspan.diagnose.doctor.checks import Check, Checks, Surroundings
from linkspan.diagnose.trace.kernel_view import KernelView
from linkspan.kernel.probe.program_path import located


def installed(_asked: KernelView, around: Surroundings) -> Iterator[Check]:
    """Yield missing programs: a network whose backend lacks its program does not cross hosts from here."""
    users: dict[str, list[str]] = {}
    for network in around.networks:
        for way in network.ways:
            users.setdefault(way.backend, []).append(network.name)
    for backend in sorted(name for name in users.keys() & around.backends.keys() if around.backends[name].programs):
        programs = around.backends[backend].programs
        missing = {name: package for name, package in programs if not located(name)}
        names = ", ".join(missing or dict(programs))
        if not missing:
            yield Check(backend, "ok", f"{names}: installed")
            continue
        networks = ", ".join(users[backend])
        detail = f"network {networks} needs {names}: not installed"
        yield Check(backend, "fail", detail, f"apt install {' '.join(dict.fromkeys(missing.values()))}")


CHECKS: Checks = (
    ("programs", installed),
)
