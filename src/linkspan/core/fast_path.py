"""Fast path: packets inside a network are forwarded where they come in, before connection tracking and all rules.

An option of VXLAN networks (``fast=true``). The kernel can forward a packet at a link's ingress hook (``fwd`` of
nftables' family netdev): it finds the neighbour on the given link, lowers the TTL and sends.

    netdev linkspan   lsr...       at a container's link, if it takes part: ``goto out_DEVICE``
                      lsx...       at the network's tunnel device: ``goto in_DEVICE``
                      out_DEVICE   the container's own MAC and address; not to a gateway: each host has it, though one
                                   has its block; then to a container of this host (``ends``), or by the tunnel to the
                                   host that has the address (``hops_exact``, ``hops``)
                      in_DEVICE    a source in a block of the host with this VTEP; then to a container (``ends``)

Each network has its own chains and sets, so a sender reaches its own network only. What matches nothing here passes
all rules as it does without these chains: other networks, this host's own addresses, the outside, broadcasts,
fragments, packets with IP options or extension headers, packets whose TTL ends here, and what the kernel then drops:
frames with a VLAN's tag, or to another MAC than this host's. What is sent to another host's own address passes all
rules there.

A packet on this path is not tracked. So both directions of a flow must be on it on a host, or neither: otherwise a
program that drops ``ct state invalid`` drops the other direction, and nobody undoes a translation. Therefore one
transaction puts an endpoint's objects: those for what it sends (``senders``, the chain at its link) and for what it
gets (``ends``). Another one puts those of a peer (``hops`` and ``vteps``). A host takes an endpoint off the path if

- a policy is about it: policies need connection tracking, and count,
- its container publishes ports: the answer to a translated packet must be translated back,
- its MTU is not the network's: nothing compares a packet's length with an MTU here. With one MTU for all, a container's
  link accepts no packet that another one's would not (only segments of GSO are longer, and their size follows from it).

A host leaves the chains of a network empty while its underlay cannot carry packets of the network's MTU, while another
program translates what comes in (its service may lead to a container of the same network), and if the control plane has
an address in a pool. Other hosts are not concerned: one may forward early while another does not.

Limits of bandwidth hold, because ``fwd`` sends through a link's queueing discipline. ``direct=true`` is refused: a peer
would answer by the underlay's own link, past these chains. A network that migrates is not fast.

Rejected: a program in BPF at each link (1 us less of 20, but a compiler, maps by pin and nothing for ``plan`` and
``diff`` to show); one chain for all links of a network (the kernel of Debian 12 cannot add a link to a chain).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from linkspan.core.addresses import BITS, Prefix, prefix
from linkspan.core.host_view import HostView
from linkspan.core.model import Endpoint, Network
from linkspan.core.ruleset import TABLE
from linkspan.core.states.host import (
    NftElement,
    NftExit,
    NftLinkChain,
    NftSet,
    NftTable,
    State,
    ingress_hook,
)

OPTION = "fast"
NETDEV = "netdev"
_IP = {4: "ip", 6: "ip6"}
_TYPE = {4: "ipv4_addr", 6: "ipv6_addr"}
_OWN = "meta pkttype host ether type != { 8021q, 8021ad }"
"""To this host's MAC, and without a VLAN's tag: what asks for the protocol may look behind one."""
_PLAIN = {
    4: f"{_OWN} ip hdrlength 5 ip ttl > 1 ip frag-off & 0x3fff == 0x0",
    6: f"{_OWN} ip6 hoplimit > 1 ip6 nexthdr {{ tcp, udp, ipv6-icmp }}",
}
"""No options, no fragment (the flag MF and the offset), and a TTL that is left: ``fwd`` drops a packet without."""


def is_fast(network: Network) -> bool:
    """Return whether the network has the option."""
    return network.options.get(OPTION) == "true"


def has(state: State) -> bool:
    """Return whether a state is of the fast path."""
    return getattr(state, "family", "") == NETDEV


def obstacle(view: HostView, network: Network, overhead: int) -> str:
    """Return why this host forwards no packet of a fast network early, '' if it does; ``overhead`` in bytes."""
    if not view.facts.early:
        return "this kernel or its nftables cannot forward at a link's ingress (fwd in family netdev)"
    if network.migration is not None:
        return f"the network migrates to {network.migration.backend}"
    here = view.host.underlay if view.host is not None else None
    if here is not None and here.mtu < network.mtu + overhead:
        need = network.mtu + overhead
        return f"the underlay {here.ifname} has MTU {here.mtu}, and packets of the network need {need}"
    for address, port in view.control:
        if any(pool.holds(prefix(address)) for pool in network.prefixes):
            return f"the control plane has the address {address}, port {port}, in the network"
    families = {pool.family for pool in network.prefixes}
    if by := sorted(what for family, what in view.facts.translated if family in families):
        return f"another program translates the addresses of what comes in ({', '.join(by)})"
    return ""


def unfit(network: Network, endpoint: Endpoint) -> str:
    """Return why an endpoint cannot be on the fast path of its network, '' if it can, as far as its record says."""
    if endpoint.mtu != network.mtu or endpoint.path_mtu:
        return "its MTU is not the network's"
    if endpoint.ports:
        return "it publishes ports"
    return ""


def network_states(view: HostView, network: Network, device: str, overhead: int) -> Iterable[State]:
    """Return the sets and chains of a fast network; nothing if the kernel cannot have them."""
    if not view.facts.early:
        return
    yield NftTable(NETDEV, TABLE)
    families = sorted({pool.family for pool in network.prefixes})
    for family in families:
        type_ = _TYPE[family]
        yield _set("senders", family, device, f"ifname . ether_addr . {type_}")
        yield _set("ends", family, device, type_, "iface_index")
        for exact in ("", "_exact"):
            yield _set(f"vteps{exact}", family, device, f"ether_addr . {type_}")
            yield _set(f"hops{exact}", family, device, type_, type_)
    open_ = not obstacle(view, network, overhead)
    out, by_block, by_address = [], [], []
    for family in families if open_ else ():
        ip, plain = _IP[family], _PLAIN[family]
        gateways = (one.address for one in map(prefix, network.gateways) if one.family == family)
        sent = [*(f"{ip} daddr {gateway} accept" for gateway in gateways), _to_end(family, device)]
        sent.append(f'fwd {ip} to {ip} daddr map @hops_exact{family}_{device} device "{device}"')
        by_address.append(f"{plain} ether saddr . {ip} saddr @vteps_exact{family}_{device} {_to_end(family, device)}")
        if mask := _mask(network, family):
            sent.append(f'fwd {ip} to {ip} daddr & {mask} map @hops{family}_{device} device "{device}"')
            block = f"ether saddr . {ip} saddr & {mask}"
            by_block.append(f"{plain} {block} @vteps{family}_{device} {_to_end(family, device)}")
        yield NftLinkChain(NETDEV, TABLE, f"out{family}_{device}", "", tuple(sent))
        sender = f"iifname . ether saddr . {ip} saddr @senders{family}_{device}"
        out.append(f"{plain} {sender} goto out{family}_{device}")
    yield NftLinkChain(NETDEV, TABLE, f"out_{device}", "", tuple(out))
    yield NftLinkChain(NETDEV, TABLE, f"in_{device}", "", (*by_block, *by_address))
    yield _ingress(device, f"in_{device}")


def _to_end(family: int, device: str) -> str:
    ip = _IP[family]
    return f"fwd {ip} to {ip} daddr device {ip} daddr map @ends{family}_{device}"


def _mask(network: Network, family: int) -> str:
    """Return the mask of the network's blocks, '' if each address is a block of its own."""
    length = network.subnet_len[str(family)]
    if length == BITS[family]:
        return ""
    return Prefix(b"\xff" * (BITS[family] // 8), length).network().address


def _set(name: str, family: int, device: str, type_: str, data: str = "") -> NftSet:
    return NftSet(NETDEV, TABLE, f"{name}{family}_{device}", type_, data)


def _ingress(link: str, chain: str) -> NftLinkChain:
    return NftLinkChain(NETDEV, TABLE, link, ingress_hook(link), (f"goto {chain}",))


def peer_states(
    view: HostView, device: str, mac: str, targets: Iterable[Prefix], hops: Mapping[int, str]
) -> Iterable[State]:
    """Return the elements by which a peer's prefixes are sent to it, and accepted from it.

    ``mac`` is its VTEP's, ``hops`` has its own address in the network by families.
    """
    for target in targets if view.facts.early else ():
        family = target.family
        name = f"{'_exact' if target.length == BITS[family] else ''}{family}_{device}"
        yield NftElement(NETDEV, TABLE, f"vteps{name}", (mac, target.address))
        yield NftElement(NETDEV, TABLE, f"hops{name}", (target.address,), (hops[family],))


def endpoint_states(endpoint: Endpoint, device: str) -> Iterable[State]:
    """Return what takes an endpoint of this host into the fast path of its network."""
    link = endpoint.host_ifname
    for address in endpoint.prefixes:
        name = f"{address.family}_{device}"
        yield NftElement(NETDEV, TABLE, f"senders{name}", (link, endpoint.mac, address.address))
        yield NftExit(NETDEV, TABLE, f"ends{name}", (address.address,), (link,))
    yield _ingress(link, f"out_{device}")
