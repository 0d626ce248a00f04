"""Egress: which host holds the egress addresses of networks, and this host's part of that.

One host holds an address: the one whose id is in the *standing* record ``alive/(egress)/FAMILY/ADDRESS``. The record is
tied to the same etcd lease as the host's liveness record, so it ends with it (`cluster/presence.py`). Taking it is one
transaction, on condition that it does not exist. So there are never two holders by the records, even if two networks
have one address because two operators gave it to them at one moment: the first one by name leaves by it then. All
addresses of a dead holder are taken by one transaction, and all of their networks follow in one go.

In the kernel there are never two either, whatever happens to a holder. Its address ends ``LIFETIME`` (4 s) after it
*sent* the last keepalive that the store accepted; the kernel removes it then, a second late at most (it looks for ended
addresses once a second if it has others). A record ends 3 s after that keepalive at the earliest, and others act half a
second after that (`store/absence.py`). A new holder waits LATER before it has the address for the first time: so at
least 5.5 s after the keepalive.

A death is known after 4 s at the latest, so the address is on another host after about 6 s. If etcd's leader dies with
the host, it takes up to 3 s more. While the store is away nobody has the address: nobody could know that no other host
has it. Without the agent the address is gone after 4 s, too; an agent that is back before takes it over.

Two hosts may have an address for a moment if a kernel stands still as a whole (a virtual machine that is suspended),
until it runs its timers again. The same holds for up to 2.5 s if a holder is cut off, or its agent stops, just as its
record ends too early, because somebody deleted it or etcd's leader was frozen. Otherwise it removes the address as soon
as it sees another one's record.

A new holder asks the segment before the first time (`cluster/held_addresses.py`). If another machine answers, which can
be no holder any more, it gives the record back, and asks again before it takes it once more.

A host may hold an address if a link of its own that is up has the subnet, if it takes part in the network, and is not
drained. One that cannot put it for STUCK gives it up. The preferred host comes first for PATIENCE, while it lives and
is not drained; it does not take the address from a host that holds it, because that would cut connections. An operator
moves it: `network update --egress IP,host=H` is a new wish, also if H was preferred.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import zlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence, Set
from typing import NamedTuple

from linkspan.cluster import address_probe
from linkspan.cluster.egress_flows import Exit, Holding, Turn, turned
from linkspan.cluster.held_addresses import Held, HeldAddresses, Wanted
from linkspan.cluster.hosts import Hosts
from linkspan.cluster.networks import Networks
from linkspan.cluster.participation import Participation
from linkspan.core.addresses import Prefix, prefix
from linkspan.core.clock import now
from linkspan.core.errors import LinkspanError, Unavailable
from linkspan.core.event_log import EventLog
from linkspan.core.model import Network
from linkspan.core.store_contract import LIFE
from linkspan.core.supervise import ended, lasting, until_whole, woken
from linkspan.kernel.drivers.egress_addresses import LIFETIME
from linkspan.kernel.worker import Worker
from linkspan.store.records import EGRESS
from linkspan.store.replica import Replica

log = logging.getLogger("linkspan.cluster.egress")

EVERY = 1.0
"""Seconds between two looks without a reason; each keepalive is one."""
LATER = 2.0
"""Seconds from the taking of the record to the first time of the address."""
PATIENCE = 3.0
"""Seconds for which others leave an address that nobody holds to the preferred host; it needs one if it can take it."""
STUCK = 3.0
"""Seconds without a success after which a holder that cannot put its address gives it up."""
OTHERS = 10.0
"""Seconds for which it leaves the address to other hosts then."""
SUSPECTED = 3 * OTHERS
"""Seconds for which a host asks before it takes the record of an address that another machine had."""
AT_ONCE = 50
"""Records that one transaction takes: etcd allows 128 changes, and as many conditions (``--max-txn-ops``)."""

class _Rival(NamedTuple):
    """Another machine that has an address, and until when that is remembered."""

    words: str
    until: float


class Exits:
    """The holders of egress addresses.

    If addresses or their holders change, ``follow`` is called with all networks concerned, each with the changes that
    open flows on this host may not follow by themselves, by family.
    """

    def __init__(
        self,
        worker: Worker,
        replica: Replica,
        hosts: Hosts,
        networks: Networks,
        participation: Participation,
        event_log: EventLog,
        follow: Callable[[Mapping[str, Mapping[int, Turn]]], Awaitable[None]],
    ) -> None:
        self._worker = worker
        self._replica = replica
        self._hosts = hosts
        self._networks = networks
        self._participation = participation
        self._event_log = event_log
        self._follow = follow
        self._addresses = HeldAddresses(worker, event_log, self._decided)
        """The addresses whose records this host holds."""
        self._vacant: dict[str, float] = {}
        """Since when nobody holds an address that somebody should."""
        self._at_once = AT_ONCE
        """How many records the next transaction takes."""
        self._others: dict[str, float] = {}
        """Until when this host leaves an address that it could not put to others."""
        self._rivals: dict[str, _Rival] = {}
        self._unwanted: set[str] = set()
        """The addresses whose records must go if they name this host while it does not hold them.

        It gave them up, or it got no answer when it took them.
        """
        self._followed: Mapping[Exit, Holding] = {}
        """The addresses that somebody holds, and their holders."""
        self._flowing: Mapping[Exit, Holding] = {}
        """All addresses with their last holders, as this host's open flows follow them: none after a start."""
        self._sent = float("-inf")
        """When the last keepalive was sent that the store accepted (``core.clock.now``)."""
        self._wake = asyncio.Event()
        self._moved = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start to take, keep and give up addresses, and to follow those of other hosts."""
        self._tasks = [
            lasting("holding egress addresses", self._hold),
            lasting("following egress addresses", self._follow_holders),
        ]
        self._addresses.start()

    async def stop(self) -> None:
        """Stop; the kernel ends the lifetime of the addresses, unless an agent is back before."""
        for task in self._tasks:
            await ended(task)
        await self._addresses.stop()

    def confirmed(self, sent: float) -> None:
        """Take note that the store accepted this host's keepalive, sent at ``sent``.

        If that is too long after the one before, the records may have ended in between, and another write may have
        begun new ones.
        """
        if now() >= self._sent + LIFE:
            self.lost()
        self._sent, self._addresses.until = sent, sent + LIFETIME
        if self._addresses.held or self._vacant or self._unwanted:
            self._wake.set()

    def lost(self) -> None:
        """Take note that this host's standing records have ended: others may hold its addresses."""
        self._addresses.until = 0.0
        for address in self._addresses.held:
            log.warning("egress address %s: this host was silent for too long, and gives it up", address)
        self._addresses.held.clear()
        self._wake.set()

    def changed(self, keys: frozenset[str]) -> None:
        """Look soon if a holder or a network has changed."""
        if any(key.startswith(("networks/", "hosts/")) for key in keys) or self._are_wanted(keys):
            self._wake.set()

    def _are_wanted(self, keys: frozenset[str]) -> bool:
        """Return whether one is an address of a network: any host may write records of others, again and again."""
        some = [key for key in keys if key.startswith(EGRESS)]
        return bool(some) and not {_key(address) for address in self._wanted()}.isdisjoint(some)

    def holders(self) -> dict[Exit, str]:
        """Return the ids of the hosts that hold an address, by network and family."""
        found: dict[Exit, str] = {}
        for address, wanted in self._wanted().items():
            if (host := self._named(address)) not in self._hosts.ids():
                continue
            # Another host may have named this one in the record: it would count as the holder of any address.
            if host != self._hosts.here.id or address in self._addresses.held:
                found[wanted.network, wanted.family] = host
        return found

    def told(self, network: Network) -> list[dict[str, str]]:
        """Return a network's egress addresses with the names of their holders, '' for none, as docs/json.md has it."""
        holders = self.holders()
        each = ((exit_, holders.get((network.name, family), "")) for family, exit_ in network.exits.items())
        return [{"address": exit_.address, "host": self._hosts.name(id_) if id_ else ""} for exit_, id_ in each]

    def problems(self) -> Iterable[str]:
        """Yield the addresses that no host holds, of networks in which this host takes part."""
        holders, taking, wanted = self.holders(), self._participation.all(), self._wanted()
        old = sorted(host.name or host.id for host in self._hosts.all().values() if not host.egresses)
        if old and wanted:
            yield (
                f"the agent of host {', '.join(old)} is of a version without egress addresses, so its containers leave "
                "by its own: upgrade it"
            )
        if not wanted:
            return
        owner_of = self._owners()
        for network in self._networks.all():
            for family, exit_ in network.exits.items():
                if network.name not in taking or (network.name, family) in holders:
                    continue
                if (other := wanted[exit_.prefix.address].network) != network.name:
                    yield f"networks {other} and {network.name} have one egress address, {exit_.address}: change one"
                elif owner := owner_of(exit_.prefix):
                    yield f"egress address {exit_.address} of network {network.name} is {owner}: change it"
                elif rival := self._rivals.get(exit_.prefix.address):
                    yield (
                        f"egress address {exit_.address} of network {network.name} is in use by {rival.words}: take it "
                        "off that machine, or give the network another one"
                    )
                else:
                    yield (
                        f"no host holds the egress address {exit_.address} of network {network.name}: its containers "
                        "do not reach the outside (a link of the host must have its subnet)"
                    )

    def held(self) -> dict[str, bool]:
        """Return whether a living host holds each egress address of the networks in which this host takes part.

        While the store is away nobody does.
        """
        holders, taking = self.holders(), self._participation.all()
        return {
            exit_.address: self._has(holders.get((network.name, family), ""))
            for network in self._networks.all()
            if network.name in taking
            for family, exit_ in network.exits.items()
        }

    def _has(self, holder: str) -> bool:
        if holder == self._hosts.here.id:
            return self._addresses.until > now()
        return bool(holder and self._hosts.lives(holder))

    async def _hold(self) -> None:
        while True:
            coming = [held.since - now() for held in self._addresses.held.values() if held.since > now()]
            await woken(self._wake, min([until_whole(EVERY), *coming]))
            self._wake.clear()
            try:
                await self._look()
            except LinkspanError as error:
                log.warning("%s", error.message)

    async def _look(self) -> None:
        wanted, held = self._wanted(), self._addresses.held
        self._vacant = {address: since for address, since in self._vacant.items() if address in wanted}
        self._others = {address: until for address, until in self._others.items() if until > now()}
        self._rivals = {
            address: rival for address, rival in self._rivals.items() if rival.until > now() and address in wanted
        }
        if not any((wanted, held, self._addresses.put_here, self._unwanted, self._followed, self._flowing)):
            return
        for address, one in list(held.items()):
            if self._gives_up(address, one, wanted.get(address)):
                del held[address]
                self._unwanted.add(address)
        await self._addresses.put()  # first: to ask the store may take a while
        await self._free()
        with contextlib.suppress(Unavailable):
            await self._claim(wanted)
        await self._addresses.put()
        if self._having() != self._followed or self._lost():
            self._moved.set()

    async def _follow_holders(self) -> None:
        """Apply the states of changed networks; beside ``_hold``, which must not wait for that."""
        while True:
            await self._moved.wait()
            self._moved.clear()
            having, lost = self._having(), self._lost()
            changed = {key for key, _ in having.items() ^ self._followed.items()} | lost
            turns = turned(self._hosts.here.id, self._flowing, having, lost)
            if changed:
                await self._follow({network: turns.get(network, {}) for network, _ in changed})
            self._followed = having
            self._flowing = {key: last for key, last in {**self._flowing, **having}.items() if key not in lost}

    def _having(self) -> dict[Exit, Holding]:
        """Return the addresses that hosts hold, and their holders."""
        holders, every = self.holders(), {network.name: network.exits for network in self._networks.all()}
        return {key: (every[key[0]][key[1]].prefix, holder) for key, holder in holders.items()}

    def _lost(self) -> Set[Exit]:
        """Return what networks had, and have no more."""
        return self._flowing.keys() - {(one.name, family) for one in self._networks.all() for family in one.exits}

    def _wanted(self) -> dict[str, Wanted]:
        """Return what leaves by which address; if two networks have one, it is the first one's by name."""
        found: dict[str, Wanted] = {}
        for network in self._networks.all():
            for family, exit_ in network.exits.items() if network.egress else ():
                found.setdefault(exit_.prefix.address, Wanted(network.name, family, exit_))
        return found

    async def _claim(self, wanted: Mapping[str, Wanted]) -> None:
        """Take the records of addresses that nobody has, or this host's agent before. Raises Unavailable."""
        free = {address: again for address in wanted if (again := self._is_free(address)) is not None}
        if not self._addresses.may_be_put:
            return
        may = [address for address, again in free.items() if self._may_hold(address, wanted[address], again=again)]
        places = self._worker.machine.egress.places
        placed = await self._worker.run_brief(places, [wanted[address].wish.prefix for address in may])
        if not placed:
            return
        # An agent before may have taken the record, and ended before it had the address: then another host may have it.
        left = await self._worker.run_brief(self._worker.machine.egress.left)
        free = {address: again and wanted[address].wish.prefix in left for address, again in free.items()}
        owner = self._owners()
        may = [a for a in may if wanted[a].wish.prefix in placed and not owner(wanted[a].wish.prefix)]
        suspected = [address for address in may if address in self._rivals]
        later = await self._suspected(suspected[:AT_ONCE]) | set(suspected[AT_ONCE:])
        rest = self._in_own_order([address for address in may if address not in later])
        while some := rest[: self._at_once]:
            if await self._take(some, wanted, free):
                self._at_once = AT_ONCE
            elif len(some) > 1:  # fewer, so that one that is never free keeps no other back
                self._at_once = len(some) // 2
                return  # another host was faster: its records come now, and wake this task
            rest = rest[len(some) :]

    def _in_own_order(self, addresses: Sequence[str]) -> Sequence[str]:
        """Return addresses in an order of this host's, so that it and another one seldom try to take the same ones."""
        first = zlib.crc32(self._hosts.here.id.encode()) % max(1, len(addresses))
        return [*addresses[first:], *addresses[:first]]

    def _is_free(self, address: str) -> bool | None:
        """Return None if this host may not take an address now, else whether it, or its agent before, had it last."""
        name, here = _key(address), self._hosts.here.id
        if name in self._replica.absences:
            return None
        holder = self._named(address)
        if holder not in ("", here):
            self._addresses.held.pop(address, None)
            if self._hosts.lives(holder) is not False:
                self._vacant.pop(address, None)
                return None
            holder = ""  # somebody put the record by hand, so it never ends
        if holder and (address in self._addresses.held or address in self._unwanted):
            return None
        self._vacant.setdefault(address, now())
        return bool(holder)

    async def _take(self, some: Sequence[str], wanted: Mapping[str, Wanted], free: Mapping[str, bool]) -> bool:
        """Take the records of addresses; return False, and take none, if another host has one of them.

        ``free`` says of each whether it is here, because an agent before had it last.
        """
        here, names = self._hosts.here.id, {address: _key(address) for address in some}
        self._unwanted.update(address for address in some if not free[address])  # without an answer nobody knows
        same = {name: self._replica.known_revision(name) for name in names.values()}
        puts = dict.fromkeys(names.values(), here.encode())
        if not await self._replica.write(puts, unchanged=same, standing=True):
            return False
        for address in some:
            self._unwanted.discard(address)
            self._vacant.pop(address, None)
            # If an earlier agent of this host has held it until now, nobody else has had it since.
            again = free[address]
            self._addresses.add(address, Held(now() if again else now() + LATER, wanted[address], free=again))
            event = f"this host holds egress address {address}"
            self._event_log.add("network", event, network=wanted[address].network)
        return True

    async def _suspected(self, addresses: Sequence[str]) -> set[str]:
        """Ask the segment for addresses; return those that another machine has, and leave them for a while.

        For AT_ONCE addresses it takes almost a second, so the held ones are put again before.
        """
        if not addresses:
            return set()
        await self._addresses.put()
        found = await address_probe.rivals(self._worker, [prefix(address).single() for address in addresses])
        self._note_rivals(addresses, {one.address: words for one, words in found.items()})
        return {one.address for one in found}

    def _decided(self, asked: Iterable[str], taken: Mapping[str, str]) -> None:
        """Go on after new addresses were asked for: put those that are free, and give back the taken ones' records."""
        self._note_rivals(asked, taken)
        self._unwanted.update(taken)
        self._wake.set()

    def _note_rivals(self, asked: Iterable[str], taken: Mapping[str, str]) -> None:
        """Remember which of the addresses another machine has, and leave them to others for a while."""
        for address in asked:
            self._rivals.pop(address, None)
        for address, words in taken.items():
            log.warning("egress address %s is in use by %s", address, words)
            self._rivals[address] = _Rival(words, now() + SUSPECTED)
            self._others[address] = now() + OTHERS

    def _may_hold(self, address: str, wanted: Wanted, *, again: bool) -> bool:
        """Return whether this host may take an address that nobody holds, or (``again``) that it held before."""
        host, first = self._hosts.here, wanted.wish.host
        if wanted.network not in self._participation.all() or host.settings.get("drained") or self._hosts.removed():
            return False
        if address in self._others:
            return False
        preferred = first not in ("", host.id) and self._hosts.lives(first) is not False and not self._is_drained(first)
        return again or not preferred or now() - self._vacant[address] >= PATIENCE

    def _owners(self) -> Callable[[Prefix], str]:
        """Return what says of an address who has it already, '' if nothing is known to.

        Any host may write a network's record. It is made once for many addresses: a thousand hosts have many more.
        """
        pools = [(pool, network.name) for network in self._networks.all() for pool in network.prefixes]
        hosts: dict[Prefix, str] = {}
        for host in self._hosts.all().values():
            for text in (*host.underlay.addresses, *host.underlay.advertise) if host.underlay else ():
                hosts.setdefault(prefix(text).single(), f"host {host.name or host.id}'s own")

        def owner(address: Prefix) -> str:
            pool = next((f"in a pool of network {name}" for pool, name in pools if pool.holds(address)), "")
            return pool or hosts.get(address, "")

        return owner

    def _is_drained(self, host: str) -> bool:
        """Return whether another host takes no addresses, by its record."""
        record = self._hosts.record(host)
        return record is None or bool(record.settings.get("drained"))

    def _gives_up(self, address: str, held: Held, wanted: Wanted | None) -> bool:
        """Return whether this host leaves an address to others.

        It is drained, or cannot put the address; or operators move it, or give it to another network.
        """
        if wanted is None or wanted.network != held.taken.network or self._hosts.here.settings.get("drained"):
            return True
        if held.failing is not None and now() - held.failing >= STUCK:
            self._others[address] = now() + OTHERS
            return True
        target = wanted.wish.host
        if wanted == held.taken or target in (self._hosts.here.id, ""):
            return False
        return bool(self._hosts.lives(target)) and not self._is_drained(target)

    async def _free(self) -> None:
        """Delete the unwanted records once their addresses are removed, so that other hosts may take them.

        This host's keepalive keeps them, so each look tries it again until they are gone.
        """
        gone = [*(self._unwanted - self._addresses.held.keys() - self._addresses.put_here)]
        for some in (gone[start : start + AT_ONCE] for start in range(0, len(gone), AT_ONCE)):
            with contextlib.suppress(Unavailable):
                if not await self._delete(some):
                    for address in some:  # another host has changed one of them
                        await self._delete([address])

    async def _delete(self, addresses: Sequence[str]) -> bool:
        """Delete those records of addresses that name this host now: others may have been taken since the last delete.

        Return False, and delete none, if somebody has changed one of them. Raises Unavailable.
        """
        names = [name for name in map(_key, filter(self._names_here, addresses)) if name not in self._replica.absences]
        same = {name: self._replica.known_revision(name) for name in names}
        return not names or await self._replica.write({}, deletes=names, unchanged=same)

    def _names_here(self, address: str) -> bool:
        """Return whether an address's record names this host."""
        return self._named(address) == self._hosts.here.id

    def _named(self, address: str) -> str:
        """Return the id in an address's record, '' without a record."""
        record = self._replica.records.get(_key(address))
        return record.value.decode(errors="replace") if record is not None else ""


def _key(address: str) -> str:
    return f"{EGRESS}{6 if ':' in address else 4}/{address}"
