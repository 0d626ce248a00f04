"""Seal: keeps packets of encrypted networks off every link that does not encrypt them.

A network is sealed if every way in its record encrypts: so a migration to such a way seals at its end, and
one from it unseals at its start, as the operator asked. Two independent protections, which need no daemon,
exist for each pool of a sealed network:

- the pool's ``unreachable`` route, which every network has: the default route carries no packet of the pool;
- a chain after all translation, which the host's own packets and forwarded ones pass last. A packet with a sealed
  pool's address as source or destination may leave to containers, by lo, and by devices that encrypt (the set
  ``sealing``), and is dropped for every other device. The kernel asks for a neighbour only afterwards, so not even
  ARP shows an address.

No packet is accepted in clear either: a second chain, before all translation, admits packets with such an
address only from the same devices. So nobody on the underlay can reach a container with a packet of their
own, plain or wrapped.

Masqueraded packets have the host's address after translation, and so do their answers before it. A published
port also belongs to the host. All these pass. A network without masquerade cannot reach the outside at all,
because its packets would leave with their own addresses.

A backend declares that it encrypts (``encrypts``), and its device is in ``sealing`` (``encrypting``). Another
program's device with such a name neither gets nor delivers packets: ours are in a device group (``GROUP``).
"""

from __future__ import annotations

from collections.abc import Iterable

from linkspan.core.addresses import FAMILIES, Prefix
from linkspan.core.ruleset import INET, TABLE, element, pool_text
from linkspan.core.states.host import GROUP, NftChain, NftSet, State

OUT, IN = "sealed", "sealed_in"
_HOOKS = {
    OUT: "type filter hook postrouting priority srcnat + 10; policy accept;",
    IN: "type filter hook prerouting priority raw + 10; policy accept;",
}
_IP, _TYPE = {4: "ip", 6: "ip6"}, {4: "ipv4_addr", 6: "ipv6_addr"}


def sealed(pools: Iterable[Prefix], *, xfrm: bool) -> Iterable[State]:
    """Return what seals the pools; the chain and its sets are the same for all networks.

    With ``xfrm`` the host may encrypt by the kernel's XFRM. Then a packet passes once more before it is
    encrypted, already with the underlay's device as its output.
    """
    yield NftSet(INET, TABLE, "sealing", "ifname")
    for family in FAMILIES:
        yield NftSet(INET, TABLE, f"sealed{family}", _TYPE[family], interval=True)
    yield NftChain(INET, TABLE, OUT, _HOOKS[OUT], tuple(_rules("o", xfrm=xfrm)))
    yield NftChain(INET, TABLE, IN, _HOOKS[IN], tuple(_rules("i", xfrm=False)))
    for pool in pools:
        yield element(f"sealed{pool.family}", pool_text(pool))


def encrypting(device: str) -> Iterable[State]:
    """Return the element that lets sealed packets leave by a device that encrypts them."""
    yield NftSet(INET, TABLE, "sealing", "ifname")
    yield element("sealing", device)


def _rules(way: str, *, xfrm: bool) -> Iterable[str]:
    # Containers, encrypted devices, and the host itself (ls-* and lsp* are bridges). All other links lead out
    # of the host, with ``way`` "o", or into it, "i".
    yield f'{way}ifname "lsr*" accept'
    yield f"{way}ifgroup {GROUP} {way}ifname @sealing accept"
    # Half of the packets here are encrypted already and have no sealed address: two lookups let them pass.
    yield from (f"{_IP[f]} saddr != @sealed{f} {_IP[f]} daddr != @sealed{f} accept" for f in FAMILIES)
    if xfrm:
        yield "rt ipsec exists accept"
    for links in ("lo", "lsp*", "ls-*"):
        yield f'{way}ifname "{links}" accept'
    for family in FAMILIES:
        for end in ("saddr", "daddr"):
            yield f"{_IP[family]} {end} @sealed{family} drop"
