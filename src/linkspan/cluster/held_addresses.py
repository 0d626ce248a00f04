"""Held addresses: puts the egress addresses that this host holds on its links, as long as it certainly lives.

Which ones these are, and when the time of each comes, is in `cluster/egress.py`. Before an address is put for the first
time, this host asks the segment whether another machine has it (`cluster/address_probe.py`). It begins to ask when it
has taken the record. Most often the last holder is dead, and nobody answers. If somebody does, that may still be the
last holder, so the question is repeated until the time of the address has come.

Whatever is done for one address is done for many together: some hundred addresses of a dead holder are on this host as
soon as one would be. The questions do not keep the addresses that are free from being put again.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import msgspec

from linkspan.cluster import address_probe
from linkspan.core.addresses import Prefix
from linkspan.core.clock import now
from linkspan.core.errors import LinkspanError
from linkspan.core.event_log import EventLog
from linkspan.core.model import Egress
from linkspan.core.states.host import HOST, EgressAddress
from linkspan.core.supervise import ended, lasting
from linkspan.kernel.drivers.egress_addresses import SHORTEST
from linkspan.kernel.machine import Machine
from linkspan.kernel.probe import gratuitous_arp
from linkspan.kernel.worker import Worker

log = logging.getLogger("linkspan.cluster.held_addresses")

ANNOUNCED = 5.0
"""Seconds for which a new holder announces the address each time that it puts it: an announcement may be lost."""
ASKED_AT_ONCE = 500
"""Addresses that one round of questions is about: it takes less than three seconds."""
AGAIN = 0.5
"""Seconds between two rounds, if another machine has answered."""
PUT_AT_ONCE = 25
"""Addresses that are put in one go: that takes some milliseconds, and then the event loop has other work."""


class Wanted(NamedTuple):
    """The network and the family that leave by an address, and the wish of an operator's."""

    network: str
    family: int
    wish: Egress


class Held(msgspec.Struct):
    """An address whose record this host holds: from when on, and for what it was taken."""

    since: float
    taken: Wanted
    link: str = ""
    """The link that has the address, '' for none."""
    failing: float | None = None
    """Since when it cannot be put; None if it can."""
    free: bool = False
    """Whether no other machine on the link has it."""


class HeldAddresses:
    """This host's egress addresses in the kernel."""

    def __init__(
        self, worker: Worker, event_log: EventLog, answered: Callable[[Collection[str], Mapping[str, str]], None]
    ) -> None:
        """Call ``answered`` after a question: with the addresses that are decided, and with words for taken ones.

        These have left ``held``.
        """
        self.held: dict[str, Held] = {}
        """By address."""
        self.put_here: set[str] = set()
        """The addresses that are states of this host."""
        self.until = 0.0
        """Until when this host may have addresses (``core.clock.now``)."""
        self._worker = worker
        self._event_log = event_log
        self._answered = answered
        self._coming = asyncio.Event()
        """Set if there may be an address to ask for."""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start to ask for addresses that are new."""
        self._task = lasting("asking for egress addresses", self._ask)

    async def stop(self) -> None:
        """Stop; the kernel ends the lifetime of the addresses."""
        await ended(self._task)

    @property
    def may_be_put(self) -> bool:
        """Return whether the cluster certainly knows that this host lives."""
        return self.until - now() >= SHORTEST

    def add(self, address: str, held: Held) -> None:
        """Hold an address from now on."""
        self.held[address] = held
        self._coming.set()

    async def put(self) -> None:
        """Put the held addresses that no other machine has again, announcing new ones, and remove the others."""
        for gone in _some(self.put_here - self.held.keys()):
            sources = {_source(address): () for address in gone}
            await self._worker.run_brief(self._worker.machine.reconciler.changes, sources)
            self.put_here.difference_update(gone)
        told: dict[str, list[Prefix]] = {}
        for some in _some(self.held):
            await asyncio.sleep(0)  # the next keepalive must not wait for all of them
            # If a record ended meanwhile, another host may have the address.
            held = {address: one for address in some if (one := self.held.get(address)) is not None}
            if not self.may_be_put:
                for one in held.values():
                    one.failing = None
            elif due := {address: one for address, one in held.items() if one.since <= now() and one.free}:
                self.put_here.update(due)
                new = [one for one in due.values() if not one.link or now() - one.since < ANNOUNCED]
                await self._put_some(due)
                for one in new:
                    if one.link:
                        told.setdefault(one.link, []).append(one.taken.wish.prefix)
        if told and self.may_be_put:
            # Once for all: to close the socket takes the kernel 10 ms, however many were announced.
            await self._worker.run_brief(_announce, self._worker.machine, told)

    async def _put_some(self, due: Mapping[str, Held]) -> None:
        links = {one.taken.wish.prefix: one.link for one in due.values()}
        try:
            put = await self._worker.run_brief(_renew, self._worker.machine, links, self.until)
        except LinkspanError as error:
            put = dict.fromkeys(links, error)
        for address, held in due.items():
            self._note(address, held, put[held.taken.wish.prefix])

    def _note(self, address: str, held: Held, put: str | LinkspanError) -> None:
        """Remember on which link an address is, or since when on none."""
        link = put if isinstance(put, str) else ""  # after an error it may have another one now
        if isinstance(put, LinkspanError) and held.failing is None:
            log.warning("egress address %s: %s", address, put.message)
        if link != held.link:
            what = f"egress address {address} is on {link or 'no link'}"
            self._event_log.add("network", what, network=held.taken.network)
        held.link = link
        held.failing = None if link else now() if held.failing is None else held.failing

    async def _ask(self) -> None:
        """Ask the segment for new addresses; beside ``put``, which must not wait for that."""
        while True:
            new = ((address, held) for address, held in self.held.items() if not held.free)
            asked = dict(itertools.islice(new, ASKED_AT_ONCE))
            if not asked:
                await self._coming.wait()
                self._coming.clear()
                continue
            begun = now()
            try:
                await self._ask_for(asked)
            except LinkspanError as error:
                log.warning("asking for egress addresses: %s", error.message)
            if not all(held.free for held in asked.values()):
                await asyncio.sleep(max(0.0, begun + AGAIN - now()))

    async def _ask_for(self, asked: Mapping[str, Held]) -> None:
        """Ask who has addresses; give those up that another machine has though its time is over."""
        begun = now()
        answers = await address_probe.rivals(self._worker, [held.taken.wish.prefix for held in asked.values()])
        words = {one.address: told for one, told in answers.items()}
        decided, taken = [], {}
        for address, held in asked.items():
            if self.held.get(address) is not held:
                continue
            held.free = address not in words
            if not held.free and held.since > begun:
                continue
            decided.append(address)
            if not held.free:
                del self.held[address]
                taken[address] = words[address]
                event = f"egress address {address} is in use by {words[address]}"
                self._event_log.add("network", event, network=held.taken.network)
        self._answered(decided, taken)


def _some(addresses: Collection[str]) -> Sequence[Sequence[str]]:
    """Return addresses in groups of PUT_AT_ONCE."""
    every = list(addresses)
    return [every[start : start + PUT_AT_ONCE] for start in range(0, len(every), PUT_AT_ONCE)]


def _renew(machine: Machine, links: Mapping[Prefix, str], until: float) -> dict[Prefix, str | LinkspanError]:
    """Put addresses until a moment, each on its link, or find one for it ('') (worker thread).

    Return the links of all, '' for none, or why one cannot be put.
    """
    found = machine.egress.places([address for address, link in links.items() if not link])
    on: dict[str, list[Prefix]] = {}
    for address, link in links.items():
        if device := link or found.get(address, ""):
            on.setdefault(device, []).append(address)
    put: dict[Prefix, str | LinkspanError] = dict.fromkeys(links, "")
    for device, addresses in on.items():
        try:
            put.update(_renew_on(machine, device, addresses, until))
        except LinkspanError as error:
            put.update(dict.fromkeys(addresses, error))
    return put


def _renew_on(
    machine: Machine, device: str, addresses: Sequence[Prefix], until: float
) -> Mapping[Prefix, str | LinkspanError]:
    """Do the same for addresses of one link; return none if it is down. Raises LinkspanError if it is gone."""
    if not machine.sockets.link(HOST, device).up:
        return {}
    driver, states = machine.egress, [EgressAddress(device, address) for address in addresses]
    for address in addresses:
        driver.hold(address, until)
    failed = machine.reconciler.changes({_source(state.prefix.address): (state,) for state in states})
    failed |= driver.apply([state for state in states if state.key not in failed], ())
    return {state.prefix: failed.get(state.key, device) for state in states}


def _announce(machine: Machine, told: Mapping[str, Collection[Prefix]]) -> None:
    """Announce addresses on their links (worker thread)."""
    for device, addresses in told.items():
        try:
            gratuitous_arp.announce(device, machine.sockets.link(HOST, device).mac, addresses)
        except LinkspanError as error:  # the link has just gone; a moment later they are announced again
            log.warning("%s", error.message)


def _source(address: str) -> tuple[str, ...]:
    return ("egress", address)
