"""Checks of what names need: a server that can be started, and the port at each gateway."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from linkspan.core.errors import LinkspanError
from linkspan.diagnose.doctor.checks import Check, Checks, Surroundings
from linkspan.diagnose.trace.questions import Questions
from linkspan.kernel.probe.port_owners import holder

PORT = 53


def server(_asked: Questions, around: Surroundings) -> Iterator[Check]:
    """Without dnsmasq containers work, and have no names."""
    if shutil.which("dnsmasq"):
        yield Check("names", "ok", "dnsmasq is installed")
    else:
        detail = "dnsmasq is not installed: containers are not found by their names"
        yield Check("names", "warn", detail, "apt install dnsmasq-base")
    for network in around.networks:
        for _, gateway in network.pairs:
            if held := _held(gateway.address):
                where = f"port {PORT} of its gateway {gateway.address}"
                detail = f"network {network.name} has no names: {where} is held by {held}"
                fix = f"end it, or let it listen at other addresses: ss -lnup sport = :{PORT}"
                yield Check(f"names of {network.name}", "warn", detail, fix)


def _held(address: str) -> str:
    """Return who has the port; dnsmasq is the network's own server, or what status tells of."""
    for protocol in ("udp", "tcp"):
        try:
            held = holder(protocol, address, PORT)
        except LinkspanError:  # no container has brought the address yet
            continue
        if held and "(dnsmasq)" not in held:
            return held
    return ""


CHECKS: Checks = (
    ("names", server),
)
