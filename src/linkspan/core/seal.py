"""Nothing in clear, ever: what keeps packets of encrypted networks off every link that does not encrypt them.

A network is sealed where every way that its record names encrypts: so a migration to such a way seals at its end, and
one from it unseals at its start, which is what the operator asked for. Two things stand for each pool of a sealed
network, without any daemon, and neither needs the other:

- the pool's ``unreachable`` route, which every network has: no default route carries what no peer's route does;
- a chain behind all translation, which the host's own packets and forwarded ones pass last. What bears a sealed
  pool's address there, as source or target, may leave to containers, by lo, and by devices that encrypt (the set
  ``sealing``), and is dropped for every other. A neighbour is asked for only afterwards: not even ARP tells an address.

Nor is anything taken in clear: a second chain, before all translation, lets what bears such an address come by the same
devices only. So somebody on the underlay reaches no container with a packet of their own, plain or wrapped.

What was masqueraded bears the host's address behind translation, and so do its answers before; a published port is
the host's as well: all these pass. A network that is not masqueraded has no way out at all, for its packets would
leave with their own addresses.

A backend that encrypts says so (``encrypts``), and its device stands in ``sealing`` (``encrypting``). Another's device
with such a name gets nothing, and nothing is taken from it: ours are in a device group (``GROUP``).
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

    With ``xfrm`` the host may encrypt by the kernel's XFRM: there a packet passes once more, about to be encrypted, and
    has the underlay's device as its way out already.
    """
    yield NftSet(INET, TABLE, "sealing", "ifname")
    for family in FAMILIES:
        yield NftSet(INET, TABLE, f"sealed{family}", _TYPE[family], interval=True)
    yield NftChain(INET, TABLE, OUT, _HOOKS[OUT], tuple(_rules("o", xfrm=xfrm)))
    yield NftChain(INET, TABLE, IN, _HOOKS[IN], tuple(_rules("i", xfrm=False)))
    for pool in pools:
        yield element(f"sealed{pool.family}", pool_text(pool))


def encrypting(device: str) -> Iterable[State]:
    """Return what lets sealed packets leave by a device that encrypts them."""
    yield NftSet(INET, TABLE, "sealing", "ifname")
    yield element("sealing", device)


def _rules(way: str, *, xfrm: bool) -> Iterable[str]:
    # Containers, encrypted, and the host itself (ls-* and lsp* are bridges); all else leads out of the host, with
    # ``way`` "o", or into it, "i".
    yield f'{way}ifname "lsr*" accept'
    yield f"{way}ifgroup {GROUP} {way}ifname @sealing accept"
    # Half of what passes here is encrypted already and bears no sealed address: it goes on after two lookups.
    yield from (f"{_IP[f]} saddr != @sealed{f} {_IP[f]} daddr != @sealed{f} accept" for f in FAMILIES)
    if xfrm:
        yield "rt ipsec exists accept"
    for links in ("lo", "lsp*", "ls-*"):
        yield f'{way}ifname "{links}" accept'
    for family in FAMILIES:
        for end in ("saddr", "daddr"):
            yield f"{_IP[family]} {end} @sealed{family} drop"
