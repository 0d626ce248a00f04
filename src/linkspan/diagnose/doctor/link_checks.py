"""Checks of the host's links: what keeps linkspan's links from finding neighbours, and from receiving packets."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from linkspan.core.addresses import prefix
from linkspan.core.states.host import HOST
from linkspan.diagnose.doctor.checks import Check, Checks, Surroundings
from linkspan.diagnose.trace.kernel_view import KernelView
from linkspan.kernel.io import link_messages
from linkspan.kernel.io.link_messages import Link
from linkspan.kernel.io.netlink import Socket

RESOLVES = ("ls-", "lsr")
"""Prefixes of the names of our links on which the host looks for its containers' MACs."""


def neighbours(asked: KernelView, around: Surroundings) -> Iterator[Check]:
    """Yield whether the host asks for containers' and peers' MACs, and answers for its own."""
    name, found = "neighbour search", list(_refusals(asked, around))
    for link, family in _resolving(around):
        # If no multicast request may be sent, the kernel does not look for unknown neighbours
        # (__neigh_event_send).
        path = f"net/ipv{family}/neigh/{link}/mcast_solicit"
        if asked.setting(HOST, path) == "0":
            detail = f"{path}=0: the host asks nobody on {link} for a MAC, so it reaches only known neighbours"
            found.append(Check(name, "fail", detail, f"sysctl -w {path}=3"))
    yield from found or [Check(name, "ok", "the host asks for its neighbours' MACs, and answers for its own")]


def _refusals(asked: KernelView, around: Surroundings) -> Iterator[Check]:
    """Yield wrong ARP settings that apply to all links; each link of ours has its own right value."""
    if 4 not in around.families():
        return
    path = "net/ipv4/conf/all/arp_ignore"
    value = asked.setting(HOST, path)
    silent = {"8": "nobody", "2": "no container of a routed network"}.get(value)
    if silent and (value == "8" or any(network.routed for network in around.networks)):
        detail = f"{path}={value}: {silent} gets an answer to ARP requests for this host's MAC"
        yield Check("neighbour search", "fail", detail, f"sysctl -w {path}=0")
    for path in ("net/ipv4/conf/all/proxy_arp", "net/ipv4/conf/all/proxy_arp_pvlan"):
        if asked.setting(HOST, path) == "1":
            detail = f"{path}=1: this host answers on containers' links for addresses that others have"
            yield Check("neighbour search", "warn", detail, f"sysctl -w {path}=0, and set it on the links that need it")


def underlay(asked: KernelView, around: Surroundings) -> Iterator[Check]:
    """Yield why the link to the other hosts passes nothing."""
    if around.underlay is None:
        return
    name = around.underlay.ifname
    link = asked.device(HOST, name)
    if link is None:
        why, fix = "does not exist", "make it, or choose another link (`underlay` in docs/settings.md)"
    elif not link.up:
        why, fix = "is down", f"ip link set {name} up"
    elif not link.carrier:
        why, fix = "has no carrier", "look at its cable, and at what is at the other end"
    else:
        return
    yield Check("underlay link", "fail", f"link {name} to the other hosts {why}", fix)


def others_above(_asked: KernelView, around: Surroundings) -> Iterator[Check]:
    """Yield foreign links on top of ours that may take all packets that ours receive."""
    links = {link.number: link for link in _links()}
    found = []
    for link in links.values():
        below = links.get(link.lower)
        if below is None or not link.takes_all:
            continue
        underlay = around.underlay is not None and below.name == around.underlay.ifname
        if below.ours or underlay:
            detail = f"{link.name} is on {below.name} in mode passthru, and takes all its packets"
            found.append(Check("links above", "fail", detail, f"ip link del {link.name}, or create it on another link"))
    yield from found or [Check("links above", "ok", "no foreign link takes packets from linkspan's links")]


def _resolving(around: Surroundings) -> Iterator[tuple[str, int]]:
    """Yield the links on which the host looks for neighbours, with the address families concerned."""
    for link in _links():
        if link.ours and link.name.startswith(RESOLVES):
            yield from ((link.name, family) for family in around.families())
    if around.underlay is not None:
        families = {prefix(text).family for text in around.underlay.addresses}
        yield from ((around.underlay.ifname, family) for family in sorted(families))


def _links() -> list[Link]:
    """Return the links of the calling thread's namespace."""
    with contextlib.closing(Socket()) as socket:
        return link_messages.links(socket)


CHECKS: Checks = (
    ("neighbour search", neighbours),
    ("links above", others_above),
    ("underlay link", underlay),
)
