"""Egress addresses: a network's own source address, on the link of this host that has its subnet.

The kernel removes an address once its lifetime ends. The agent puts it again only for as long as the cluster has
confirmed that this host lives (``hold``). So an agent that is killed, frozen or cut off from the store loses the
address within that time, whatever happens to it, and no other host takes it before.

The address is /32 or /128 and deprecated: it makes no route to a subnet, and the kernel does not choose it as a source
for the host's own packets.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Collection, Iterable, Mapping, Sequence

from linkspan.core.addresses import SOCKET_FAMILY, Prefix
from linkspan.core.clock import now
from linkspan.core.driver_contract import Support
from linkspan.core.errors import KernelError, LinkspanError, NotFound, Unavailable
from linkspan.core.kinds import Event, Kind, Sort, on_device
from linkspan.core.shell import Shell
from linkspan.core.states.host import HOST, EgressAddress, Key, State
from linkspan.kernel.io.address_messages import (
    ADDRESS,
    CACHEINFO,
    EGRESS_METRIC,
    FLAGS,
    IFADDR,
    LOCAL,
    METRIC,
    held,
)
from linkspan.kernel.io.batch import each
from linkspan.kernel.io.link_messages import own_of
from linkspan.kernel.io.netlink import DELADDR, F_CREATE, F_REPLACE, NEWADDR, Message, attr, u32
from linkspan.kernel.io.sockets import Sockets
from linkspan.kernel.local_host import LocalHost

LIFETIME = 4
"""Seconds. The kernel counts whole ones, and is a second late at most (4.35 s measured)."""
SHORTEST = 1
"""Seconds of life with which it is worth the while to put an address."""
PAUSE = 0.1
"""Seconds by which an address may end late because this process was stopped before the kernel had the message."""
_NODAD, _NOPREFIXROUTE = 0x02, 0x200  # linux/if_addr.h
_UNPROVEN = 0x08 | 0x40
"""IFA_F_DADFAILED, IFA_F_TENTATIVE: the kernel has not found yet that the address is this host's alone."""
_GONE = (errno.EADDRNOTAVAIL, errno.ENODEV)


class EgressAddressDriver:
    """EgressAddress."""

    def __init__(self, sockets: Sockets) -> None:
        self._sockets = sockets
        self._until: dict[Prefix, float] = {}

    def hold(self, address: Prefix, until: float) -> None:
        """Let an address be put until a moment (``core.clock.now``), at most LIFETIME from now."""
        self._until[address] = until

    def probe(self) -> Support:
        """Return support: every kernel ends the lifetime of addresses."""
        return Support("kernel")

    def place(self, address: Prefix) -> str:
        """Return the link of the host that is up and has an address's subnet.

        '' if there is none, or if the address is the host's own.
        """
        return self.places([address]).get(address, "")

    def places(self, addresses: Collection[Prefix]) -> dict[Prefix, str]:
        """Return the links of all addresses that have one, as ``place`` does: one look at the host serves them all."""
        if not addresses:
            return {}
        links = self._sockets.links(HOST)
        ours = own_of(links)
        outer = {one.number: one.name for one in links if one.up and one.number not in ours and one.name != "lo"}
        others = [one for one in held(self._sockets.at(HOST)) if not one.is_egress]
        own = {one.prefix.single() for one in others}
        found: dict[Prefix, str] = {}
        for address in addresses:
            inside = (outer[one.link] for one in others if one.link in outer and one.prefix.holds(address))
            if address not in own and (name := next(inside, "")):
                found[address] = name
        return found

    def left(self) -> set[Prefix]:
        """Return the addresses that are here, whichever agent of this host put them: their time has not ended."""
        return {one.prefix for one in held(self._sockets.at(HOST)) if one.is_egress}

    def asking(self, addresses: Collection[Prefix]) -> dict[str, dict[bytes, bytes]]:
        """Return what to ask on which link who has these addresses: by link, each with the source of the question."""
        found: dict[str, dict[bytes, bytes]] = {}
        sources: dict[str, bytes] = {}
        for address, device in self.places(addresses).items():
            if address.family == 6 and device not in sources:
                sources[device] = self._own(device)
            source = bytes(4) if address.family == 4 else sources[device]
            if source:
                found.setdefault(device, {})[address.packed] = source
        return found

    def _own(self, device: str) -> bytes:
        """Return an IPv6 address of the host's own on a link that it may send from, b'' without one."""
        own = held(self._sockets.at(HOST), self._sockets.index(HOST, device))
        six = (one for one in own if one.prefix.family == 6 and not one.is_egress and not one.flags & _UNPROVEN)
        return next((one.prefix.packed for one in six), b"")

    def observe(self, netns: int) -> Iterable[State]:
        """Return those addresses on the host's links that this process holds.

        The kernel removes the others, of an agent before, unless this one takes them over in time.
        """
        if netns != HOST or not self._until:
            return
        names = self._sockets.names(HOST)
        for one in held(self._sockets.at(HOST)):
            if one.is_egress and one.prefix in self._until:
                yield EgressAddress(names.get(one.link, "?"), one.prefix)

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Put addresses for the rest of their time, and remove others."""
        return each(put, self._put) | each(delete, self._delete)

    def _put(self, state: EgressAddress) -> None:
        until = self._until.get(state.prefix, 0.0)
        sent = False
        while (left := int(until - now())) >= SHORTEST:
            times = struct.pack("=IIII", 0, min(left, LIFETIME), 0, 0)  # struct ifa_cacheinfo: preferred, valid
            more = attr(CACHEINFO, times) + u32(METRIC, EGRESS_METRIC) + u32(FLAGS, _NODAD | _NOPREFIXROUTE)
            self._send(state, NEWADDR, F_CREATE | F_REPLACE, more)
            if now() + left < until + PAUSE:
                return
            sent = True  # this process was stopped, perhaps before the kernel began to count the seconds
        if sent:
            self._delete(state)
        raise Unavailable(
            f"egress address {state.prefix.address}: the store has not confirmed that this host lives",
            "it comes back by itself; `linkspan status` shows the store",
        )

    def _delete(self, state: EgressAddress) -> None:
        try:
            self._send(state, DELADDR, 0, b"")
        except NotFound:
            pass
        except KernelError as error:
            if error.errno not in _GONE:
                raise
        self._until.pop(state.prefix, None)

    def _send(self, state: EgressAddress, kind: int, flags: int, more: bytes) -> None:
        index, packed = self._sockets.index(HOST, state.device), state.prefix.packed
        body = IFADDR.pack(SOCKET_FAMILY[state.prefix.family], state.prefix.length, 0, 0, index)
        body += attr(LOCAL, packed) + attr(ADDRESS, packed) + more
        verb = "add" if kind == NEWADDR else "remove"
        what = f"{verb} egress address {state.prefix.address} on {state.device}"
        self._sockets.at(HOST).request(Message(kind, flags, body, what))


def driver(host: LocalHost) -> EgressAddressDriver:
    """Return the driver of egress addresses."""
    return EgressAddressDriver(host.sockets)


def _add(state: EgressAddress, _shell: Shell) -> tuple[str, ...]:
    more = f"metric {EGRESS_METRIC} valid_lft {LIFETIME} preferred_lft 0 noprefixroute"
    nodad = " nodad" if state.prefix.family == 6 else ""
    return (f"ip addr replace {state.prefix} dev {state.device} {more}{nodad}",)


KINDS = (
    Kind(
        state=EgressAddress,
        rank=51,
        driver=driver,
        known_by="its metric, 76000",
        purpose="the address by which a network's packets leave to the outside, while this host is known to live",
        sort=Sort.PLACE,
        commands=_add,
        on=on_device,
        falls=True,
        events=frozenset({Event.ADDRESS_GONE}),
        counted=False,
    ),
)
