"""Checks of DNS names: a server that can start, and the port at each gateway."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from linkspan.core.errors import LinkspanError
from linkspan.diagnose.doctor.checks import Check, Checks, Surroundings
from linkspan.diagnose.trace.kernel_view import KernelView
from linkspan.kernel.probe.port_owners import holder

PORT = 53


def server(_asked: KernelView, around: Surroundings) -> Iterator[Check]:
    """Yield whether dnsmasq is installed: without it containers work, but have no names."""
    if shutil.which("dnsmasq"):
        yield Check("names", "ok", "dnsmasq is installed")
    else:
        detail = "dnsmasq is not installed: DNS does not answer containers' names"
        yield Check("names", "warn", detail, "apt install dnsmasq-base")
    for network in around.networks:
        for _, gateway in network.pairs:
            if held := _held(gateway.address):
                where = f"port {PORT} of its gateway {gateway.address}"
                detail = f"network {network.name} has no names: {where} is in use by {held}"
                fix = f"stop that program, or make it listen at other addresses: ss -lnup sport = :{PORT}"
                yield Check(f"names of {network.name}", "warn", detail, fix)


def _held(address: str) -> str:
    """Return who uses the port; dnsmasq may be the network's own server, or what status reports."""
    for protocol in ("udp", "tcp"):
        try:
            held = holder(protocol, address, PORT)
        except LinkspanError:  # the first container adds the address
            continue
        if held and "(dnsmasq)" not in held:
            return held
    return ""


CHECKS: Checks = (
    ("names", server),
)
