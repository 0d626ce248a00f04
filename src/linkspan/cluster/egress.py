"""Egress: which host holds the egress addresses of networks, and this host's part of that.

One host holds an address: the one whose id is in the *standing* record ``alive/(egress)/NETWORK/FAMILY``. The record is
tied to the same etcd lease as the host's liveness record, so it ends with it (`cluster/presence.py`). Taking it is one
transaction, on condition that it does not exist. So there are never two holders by the records.

In the kernel there are never two either, whatever happens to a holder. Its address ends ``LIFETIME`` (4 s) after it
*sent* the last keepalive that the store accepted; the kernel removes it then, a second late at most (it looks for ended
addresses once a second if it has others). A record ends 3 s after that keepalive at the earliest, and others act half a
second after that (`store/absence.py`). A new holder waits LATER before it has the address for the first time: so at
least 5.5 s after the keepalive.

A death is known after 4 s at the latest, so the address is on another host after about 6 s. If etcd's leader dies with
the host, it takes up to 3 s more. While the store is away nobody has the address: nobody could know that no other host
has it. Without the agent the address is gone after 4 s, too; an agent that is back before takes it over.

Only a host whose kernel stands still as a whole (a virtual machine that is suspended) may have an address for a moment
that another one has: until it runs its timers again.

A host may hold an address if a link of its own has the subnet, if it takes part in the network, and is not drained.
The preferred host comes first while it lives; it does not take the address from a host that holds it, because that
would cut connections. An operator moves it: `network update --egress IP,host=H` is a new wish, also if H was preferred.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping

import msgspec

from linkspan.cluster.hosts import Hosts
from linkspan.cluster.networks import Networks
from linkspan.cluster.participation import Participation
from linkspan.core.clock import now
from linkspan.core.contracts import LIFE
from linkspan.core.errors import LinkspanError, Unavailable
from linkspan.core.event_log import EventLog
from linkspan.core.model import Egress, Network
from linkspan.core.states.host import HOST, EgressAddress
from linkspan.core.supervise import ended, lasting, woken
from linkspan.kernel.drivers.egress_addresses import LIFETIME, SHORTEST
from linkspan.kernel.machine import Machine
from linkspan.kernel.probe import gratuitous_arp
from linkspan.kernel.probe.conntrack import Flow
from linkspan.kernel.worker import Worker
from linkspan.store.records import EGRESS
from linkspan.store.replica import Replica

log = logging.getLogger("linkspan.cluster.egress")

EVERY = 1.0
"""Seconds between two looks without a reason; each keepalive is one."""
LATER = 2.0
"""Seconds from the taking of the record to the first time of the address."""
ANNOUNCED = 5.0
"""Seconds for which a new holder announces the address each time that it puts it: an announcement may be lost."""
Exit = tuple[str, int]
"""A network and a family."""


class _Held(msgspec.Struct):
    """An address whose record this host holds: from when on, and for which wish of an operator's it was taken."""

    since: float
    wish: Egress
    there: tuple[str, str] = ("", "")
    """The address that is on a link, and the link; empty until then."""


class Exits:
    """The holders of egress addresses.

    If the holder of a network's changes, ``follow`` is called with the network and whether this host is, or was, that
    holder.
    """

    def __init__(
        self,
        worker: Worker,
        replica: Replica,
        hosts: Hosts,
        networks: Networks,
        participation: Participation,
        event_log: EventLog,
        follow: Callable[[str, bool], Awaitable[None]],
    ) -> None:
        self._worker = worker
        self._replica = replica
        self._hosts = hosts
        self._networks = networks
        self._participation = participation
        self._event_log = event_log
        self._follow = follow
        self._held: dict[Exit, _Held] = {}
        self._unwanted: set[Exit] = set()
        """The addresses whose records must go if they name this host while it does not hold them.

        It gave them up, or it got no answer when it took them.
        """
        self._put_here: set[Exit] = set()
        """The addresses that are states of this host."""
        self._followed: Mapping[Exit, str] = {}
        self._sent = float("-inf")
        """When the last keepalive was sent that the store accepted (``core.clock.now``)."""
        self._until = 0.0
        """Until when this host may have addresses."""
        self._wake = asyncio.Event()
        self._moved = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start to take, keep and give up addresses, and to follow those of other hosts."""
        self._tasks = [
            lasting("holding egress addresses", self._hold),
            lasting("following egress addresses", self._follow_holders),
        ]

    async def stop(self) -> None:
        """Stop; the kernel ends the lifetime of the addresses, unless an agent is back before."""
        for task in self._tasks:
            await ended(task)

    def confirmed(self, sent: float) -> None:
        """Take note that the store accepted this host's keepalive, sent at ``sent``.

        If that is too long after the one before, the records may have ended in between, and another write may have
        begun new ones.
        """
        if now() >= self._sent + LIFE:
            self.lost()
        self._sent, self._until = sent, sent + LIFETIME
        self._wake.set()

    def lost(self) -> None:
        """Take note that this host's standing records have ended: others may hold its addresses."""
        self._until = 0.0
        for key in self._held:
            log.warning("egress address of network %s: this host was silent for too long, and gives it up", key[0])
        self._held.clear()
        self._wake.set()

    def changed(self, keys: frozenset[str]) -> None:
        """Look soon if a holder or a network has changed."""
        if any(key.startswith(("networks/", "hosts/")) for key in keys):
            self._wake.set()
        elif some := [key for key in keys if key.startswith(EGRESS)]:
            # Any host may write records of networks that do not exist, again and again.
            known = {_key(network.name, family) for network in self._networks.all() for family in network.exits}
            if not known.isdisjoint(some):
                self._wake.set()

    def holders(self) -> dict[Exit, str]:
        """Return the ids of the hosts that hold an address, by network and family."""
        found: dict[Exit, str] = {}
        for network in self._networks.all():
            for family in network.exits:
                if (host := self._named((network.name, family))) not in self._hosts.ids():
                    continue
                # Another host may have named this one in the record: it would count as the holder of any address.
                if host != self._hosts.here.id or (network.name, family) in self._held:
                    found[network.name, family] = host
        return found

    def told(self, network: Network) -> list[dict[str, str]]:
        """Return a network's egress addresses with the names of their holders, '' for none, as docs/json.md has it."""
        holders = self.holders()
        each = ((exit_, holders.get((network.name, family), "")) for family, exit_ in network.exits.items())
        return [{"address": exit_.address, "host": self._hosts.name(id_) if id_ else ""} for exit_, id_ in each]

    def problems(self) -> Iterable[str]:
        """Yield the addresses that no host holds, of networks in which this host takes part."""
        holders, taking = self.holders(), self._participation.all()
        for network in self._networks.all():
            for family, exit_ in network.exits.items():
                if network.name in taking and (network.name, family) not in holders:
                    yield (
                        f"no host holds the egress address {exit_.address} of network {network.name}: its containers "
                        "do not reach the outside (a link of the host must have its subnet)"
                    )

    async def _hold(self) -> None:
        while True:
            coming = [held.since - now() for held in self._held.values() if held.since > now()]
            await woken(self._wake, min([EVERY, *coming]))
            self._wake.clear()
            try:
                await self._look()
            except LinkspanError as error:
                log.warning("%s", error.message)

    async def _look(self) -> None:
        wanted = {(n.name, family): exit_ for n in self._networks.all() for family, exit_ in n.exits.items()}
        for key, held in list(self._held.items()):
            if key not in wanted or self._gives_up(held, wanted[key]):
                del self._held[key]
                self._unwanted.add(key)
        await self._put(wanted)  # first: to ask the store may take a while
        await self._free()
        for key, exit_ in wanted.items():
            with contextlib.suppress(Unavailable):
                await self._claim(key, exit_)
        await self._put(wanted)
        if self.holders() != self._followed:
            self._moved.set()

    async def _follow_holders(self) -> None:
        """Apply the states of networks with another holder; beside ``_hold``, which must not wait for that."""
        while True:
            await self._moved.wait()
            self._moved.clear()
            holders, here = self.holders(), self._hosts.here.id
            changed = holders.items() ^ self._followed.items()
            for network in {key[0] for key, _ in changed}:
                mine = any(key[0] == network and holder == here for key, holder in changed)
                await self._follow(network, mine)
            self._followed = holders

    async def _claim(self, key: Exit, exit_: Egress) -> None:
        """Take the record of an address if nobody has it, or this host's agent before."""
        name, here = _key(*key), self._hosts.here.id
        if name in self._replica.absences:
            return
        holder = self._named(key)
        if holder not in ("", here):
            self._held.pop(key, None)
            if self._hosts.lives(holder) is not False:
                return
            holder = ""  # somebody put the record by hand, so it never ends
        if holder and (key in self._held or key in self._unwanted):
            return
        if not self._is_known() or not await self._may_hold(key, exit_, again=bool(holder)):
            return
        if not holder:
            self._unwanted.add(key)  # without an answer nobody knows when this record begins
        same = {name: self._replica.known_revision(name)}
        if await self._replica.write({name: here.encode()}, unchanged=same, standing=True):
            self._unwanted.discard(key)
            # An earlier agent of this host may have held it until now; nobody else has had it since.
            self._held[key] = _Held(now() if holder else now() + LATER, exit_)
            self._event_log.add("network", f"this host holds egress address {exit_.address}", network=key[0])

    def _is_known(self) -> bool:
        """Return whether the cluster certainly knows that this host lives."""
        return self._until - now() >= SHORTEST

    async def _may_hold(self, key: Exit, exit_: Egress, *, again: bool) -> bool:
        """Return whether this host may take an address that nobody holds, or (``again``) that it held before."""
        host = self._hosts.here
        if key[0] not in self._participation.all() or host.settings.get("drained") or self._hosts.removed():
            return False
        if not again and exit_.host not in ("", host.id) and self._hosts.lives(exit_.host) is not False:
            return False
        place = self._worker.machine.egress.place
        return bool(await self._worker.run_brief(place, exit_.prefix))

    def _gives_up(self, held: _Held, exit_: Egress) -> bool:
        """Return whether this host leaves an address to others: it is drained, or an operator moves the address."""
        here = self._hosts.here
        moves = exit_ != held.wish and exit_.host not in (here.id, "") and self._hosts.lives(exit_.host)
        return bool(moves or here.settings.get("drained"))

    async def _free(self) -> None:
        """Delete the unwanted records once their addresses are removed, so that other hosts may take them.

        This host's keepalive keeps them, so each look tries it again until they are gone.
        """
        for key in self._unwanted - self._held.keys() - self._put_here:
            name = _key(*key)
            if self._named(key) == self._hosts.here.id and name not in self._replica.absences:
                with contextlib.suppress(Unavailable):
                    same = {name: self._replica.known_revision(name)}
                    await self._replica.write({}, deletes=[name], unchanged=same)

    def _named(self, key: Exit) -> str:
        """Return the id in an address's record, '' without a record."""
        record = self._replica.records.get(_key(*key))
        return record.value.decode(errors="replace") if record is not None else ""

    async def _put(self, wanted: Mapping[Exit, Egress]) -> None:
        """Put the held addresses again, announcing new ones, and remove the others."""
        for key in self._put_here - self._held.keys():
            await self._remove(key)
        for key, held in list(self._held.items()):
            until, exit_ = self._until, wanted[key]
            if held.since > now() or not self._is_known():
                continue
            address, link = held.there
            known = link if address == exit_.address else ""  # else an operator changed it
            self._put_here.add(key)
            tell = not known or now() - held.since < ANNOUNCED
            link = await self._worker.run_brief(_renew, self._worker.machine, key, exit_, known, until, tell)
            if link != known:
                what = f"egress address {exit_.address} is on {link or 'no link'}"
                self._event_log.add("network", what, network=key[0])
            held.there = exit_.address, link

    async def _remove(self, key: Exit) -> None:
        await self._worker.run_brief(self._worker.machine.reconciler.change, _source(key), ())
        self._put_here.discard(key)


def leaves(network: Network, networks: Iterable[Network], flow: Flow) -> bool:
    """Return whether a flow goes from a network to the outside.

    On a host that becomes the holder, or was it, connection tracking would treat such flows as before, and they would
    end. Without their entries they are translated, or sent to the new holder, as new ones are.
    """
    inside = (pool.holds(flow.target) for one in networks for pool in one.prefixes)
    return any(pool.holds(flow.source) for pool in network.prefixes) and not any(inside)


def _renew(machine: Machine, key: Exit, exit_: Egress, link: str, until: float, tell: bool) -> str:
    """Put an address until a moment, and announce it to ``tell`` it; return its link, '' for none (worker thread)."""
    driver, address = machine.egress, exit_.prefix
    device = link or driver.place(address)
    if not device:
        return ""
    driver.hold(address, until)
    state = EgressAddress(device, address)
    failed = machine.reconciler.change(_source(key), (state,)) or driver.apply([state], ())
    for error in failed.values():
        raise error
    if tell:
        mac = machine.sockets.link(HOST, device).mac
        gratuitous_arp.announce(device, mac, [address])
    return device


def _key(network: str, family: int) -> str:
    return f"{EGRESS}{network}/{family}"


def _source(key: Exit) -> tuple[str, ...]:
    return ("egress", key[0], str(key[1]))
