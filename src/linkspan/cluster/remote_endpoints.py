"""Remote endpoints: the other hosts' endpoints in this host's memory.

It has the endpoints that matter here, packed: the fields that names, exact addresses and conflicts need. ``interest``
says which hosts and networks matter. ``endpoint_records`` reads all other endpoints from the store.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping

import msgspec

from linkspan.core.addresses import Prefix, host_address, prefix
from linkspan.core.dns_names import speakable
from linkspan.core.errors import Invalid, LinkspanError
from linkspan.core.model import ALIASES, Endpoint
from linkspan.core.store_contract import Batch, Record, Store
from linkspan.core.supervise import ended, lasting, woken
from linkspan.store import record_form, records, validation
from linkspan.store.records import ENDPOINTS

log = logging.getLogger("linkspan.cluster.remote_endpoints")

AGAIN = 1.0
"""Seconds until the endpoints of a host are read again after an error."""
AT_ONCE = 4
"""Hosts whose endpoints are read at the same time."""
SLICE = 200
"""Records that are read without a pause of the event loop: about 20 microseconds each."""
FEW = 100
"""Hosts that left a network and are remembered, however small the network is."""
Networks = frozenset[str]


class Packed(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """The fields of an endpoint that other hosts need.

    Spaces divide ``addresses`` (without length) and ``names`` (as DNS has them). ``called`` is the container's name or
    id, '' if it is the first of ``names``. ``labels`` are those that policies look at.
    """

    addresses: str
    names: str
    called: str
    labels: tuple[tuple[str, str], ...] = ()

    @property
    def prefixes(self) -> Iterator[Prefix]:
        """Yield its addresses, parsed."""
        return map(prefix, self.addresses.split())

    @property
    def container(self) -> str:
        """Return its container's name; the id if it has no name."""
        return self.called or self.names.partition(" ")[0]


class _Network(msgspec.Struct):
    network: str = ""


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(dict[str, Packed])


class _Held(msgspec.Struct, gc=False):
    """A host's endpoints in a network, and the number of their last change.

    They are bytes until somebody asks for them: 0.15 KB for each, a quarter of what it takes as an object. Most are
    asked for once, for the host's names, because most hosts change rarely.
    """

    encoded: bytes
    count: int
    number: int

    @property
    def endpoints(self) -> dict[str, Packed]:
        """Return the endpoints by ID/IFNAME."""
        return _DECODER.decode(self.encoded)


class _Changes:
    """Endpoints that a batch may change: those of a host are decoded once, however many of them change."""

    def __init__(self, of: Callable[[str, str], dict[str, Packed]]) -> None:
        self._of = of
        self._read: dict[tuple[str, str], dict[str, Packed]] = {}
        self._changed: set[tuple[str, str]] = set()

    def of(self, network: str, host: str) -> Mapping[str, Packed]:
        """Return a host's endpoints in a network, by ID/IFNAME, as changed so far."""
        if (network, host) not in self._read:
            self._read[network, host] = self._of(network, host)
        return self._read[network, host]

    def put(self, network: str, host: str, place: str, one: Packed) -> None:
        """Add or replace an endpoint."""
        self.of(network, host)
        self._read[network, host][place] = one
        self._changed.add((network, host))

    def drop(self, network: str, host: str, place: str) -> bool:
        """Remove an endpoint; return whether it was there."""
        if place not in self.of(network, host):
            return False
        del self._read[network, host][place]
        self._changed.add((network, host))
        return True

    def all(self) -> Iterator[tuple[str, str, dict[str, Packed]]]:
        """Yield each changed host, as (network, host, endpoints)."""
        for network, host in self._changed:
            yield network, host, self._read[network, host]


class RemoteEndpoints:
    """The other hosts' endpoints in networks that matter here. Their records have keys ENDPOINTS + HOST/ID/IFNAME."""

    def __init__(
        self, store: Store, host: str, changed: Callable[[frozenset[str]], Awaitable[None]]
    ) -> None:
        """Call ``changed`` with the keys of changed endpoints after a host's endpoints were read."""
        self._store = store
        self._host = host
        self._changed = changed
        self._wanted: dict[str, set[str]] = {}
        """By network that matters: the hosts whose endpoints there matter."""
        self.wanted: frozenset[str] = frozenset()
        """The hosts whose endpoints matter here."""
        self._whole: set[str] = set()
        """The networks of which all hosts' endpoints have been read."""
        self._known: dict[str, dict[str, _Held]] = {}
        """By network and host, in the order of the last changes; a host that has lost its last one is still there.

        Those that left the network are there until they are too many.
        """
        self.number = 0
        """The number of the last change of the known endpoints."""
        self._matters: dict[str, int] = {}
        """By network that matters: the number of the change since which it does."""
        self._unread: set[str] = set()
        """Hosts whose endpoints must be read."""
        self._missing: Counter[str] = Counter()
        """By network: how many of them may have endpoints there."""
        self._late: dict[str, list[Batch]] = {}
        """By host whose endpoints are being read: the changes meanwhile."""
        self._listed = 0
        """How often the store was listed: an answer from before may be of another store."""
        self._labels: frozenset[str] = frozenset()
        """The keys of the labels that are kept."""
        self._unlabelled: set[str] = set()
        """Hosts whose endpoints have not been read since one of these keys was not kept."""
        self._records: dict[str, int] = {}
        """By host: how many endpoints it had when they were read, in all networks."""
        self.reasons: dict[str, str] = {}
        """Why records are skipped, by key."""
        self._wake = asyncio.Event()
        self._complete = asyncio.Event()
        """Set while no host's endpoints must be read."""
        self._complete.set()
        self._task: asyncio.Task[None] | None = None

    # Life

    def start(self) -> None:
        """Start to read endpoints."""
        self._task = lasting("reading other hosts' endpoints", self._follow)

    async def stop(self) -> None:
        """Stop reading."""
        await ended(self._task)

    # What changes

    def want(self, wanted: Mapping[str, Collection[str]]) -> None:
        """Keep the endpoints in these networks, on these hosts of each, from now on; forget all others."""
        before, self._wanted = self._wanted, {name: {*hosts} - {self._host} for name, hosts in wanted.items()}
        self.wanted = frozenset().union(*self._wanted.values())
        for network, hosts in before.items():
            for host in hosts - self._wanted.get(network, set()):
                self._set(network, host, {})
        for network in before.keys() - self._wanted.keys():
            self._known.pop(network, None)
            del self._matters[network]
        for network in self._wanted.keys() - before.keys():
            self.number += 1
            self._matters[network] = self.number
        self._forget_left()
        new = {host for name, hosts in self._wanted.items() for host in hosts - before.get(name, set())}
        self._whole &= wanted.keys()
        self._unlabelled &= self.wanted
        self._records = {host: count for host, count in self._records.items() if host in self.wanted}
        self._due((self._unread | new) & self.wanted)

    def want_labels(self, keys: frozenset[str]) -> None:
        """Keep the labels with these keys from now on; read all endpoints again if one of them was not kept."""
        new, self._labels = keys - self._labels, keys
        if new:
            self._unlabelled = {*self.wanted}
            self._due({*self.wanted})

    def _forget_left(self) -> None:
        """Forget the hosts that left a network when they are more than those in it; its readers begin again then."""
        for network, hosts in self._wanted.items():
            known = self._known.get(network, {})
            left = known.keys() - hosts
            if len(left) > max(len(hosts), FEW):
                self._matters[network] = self.number
                self.number += 1
                self._known[network] = {host: held for host, held in known.items() if host in hosts}
                for held in self._known[network].values():
                    held.number = self.number

    def _wanted_of(self, host: str) -> Networks:
        """Return the networks in which a host's endpoints matter."""
        return frozenset(network for network, hosts in self._wanted.items() if host in hosts)

    def _due(self, unread: set[str]) -> None:
        """Make these the hosts whose endpoints must be read."""
        self._unread = unread
        self._missing = Counter({network: len(hosts & unread) for network, hosts in self._wanted.items()})
        self._count()

    def _done(self, host: str) -> None:
        """Record that a host's endpoints have been read."""
        self._unlabelled.discard(host)
        if host in self._unread:
            self._unread.remove(host)
            self._missing.subtract(self._wanted_of(host))
            self._count()

    def _count(self) -> None:
        self._whole |= {network for network in self._wanted if not self._missing[network]}
        if self._unread:
            self._complete.clear()
            self._wake.set()
        else:
            self._complete.set()

    def listed(self) -> None:
        """Read everything again, because changes may have been missed; until then the known endpoints stay."""
        self._listed += 1
        self.reasons.clear()
        self._due({*self.wanted})

    def take(self, batch: Batch) -> set[str]:
        """Adopt changes, and return the keys of the changed endpoints that matter here."""
        touched, changes = set(), _Changes(self.of)
        for record in batch.puts:
            self.reasons.pop(record.key, None)
            host = owner_of(record.key)
            if host in self._late:
                self._late[host].append(Batch(batch.revision, (record,)))
            if (wanted := self._wanted_of(host)) and self._adopt(record, wanted, changes):
                touched.add(record.key)
        for key in batch.deletes:
            self.reasons.pop(key, None)
            host = owner_of(key)
            if host in self._late:
                self._late[host].append(Batch(batch.revision, (), (key,)))
            if self._drop(key, changes):
                touched.add(key)
        for network, host, endpoints in changes.all():
            self._set(network, host, endpoints)
        return touched

    def skip(self, key: str, why: str) -> None:
        """Record why a record is skipped; of very many only some have a name."""
        if key not in self.reasons and len(self.reasons) >= record_form.NAMED:
            return
        if self.reasons.get(key) != why:
            log.warning("record %s is skipped: %s", key, why)
        self.reasons[key] = why

    def _adopt(self, record: Record, wanted: Networks, changes: _Changes) -> bool:
        """Adopt one record, and return whether that changes an endpoint; an unreadable record changes none."""
        host, place = owner_of(record.key), _place(record.key)
        found = self._read(record, wanted)
        if found is None:
            return False
        network, one = found
        if one is None:
            return self._drop(record.key, changes)
        if changes.of(network, host).get(place) == one:
            return False
        self._drop(record.key, changes)
        changes.put(network, host, place, one)
        return True

    def _drop(self, key: str, changes: _Changes) -> bool:
        """Forget an endpoint; return whether it was known."""
        host, place = owner_of(key), _place(key)
        return any(changes.drop(network, host, place) for network in self._wanted_of(host))

    def _set(self, network: str, host: str, endpoints: dict[str, Packed]) -> None:
        self.number += 1
        known = self._known.setdefault(network, {})
        if known.pop(host, None) is not None or endpoints:
            known[host] = _Held(_ENCODER.encode(endpoints), len(endpoints), self.number)

    def _read(self, record: Record, wanted: Networks) -> tuple[str, Packed | None] | None:
        """Return a record's network and its packed endpoint; the latter is None if the network does not matter.

        None if the record cannot be read.
        """
        try:
            if why := record_form.misfit(record):
                raise Invalid(why)
            network = network_of(record)
            if network not in wanted:
                return network, None
            return network, packed(validation.decode(record.key, record.value, Endpoint), self._labels)
        except Invalid as error:
            self.skip(record.key, error.message)
            return None

    # What is read from the store

    async def _follow(self) -> None:
        while True:
            if not self._unread:
                self._wake.clear()
                await self._wake.wait()
            some = list(itertools.islice(self._unread, AT_ONCE))
            found = await asyncio.gather(*map(self._read_host, some), return_exceptions=True)
            for error in found:
                if isinstance(error, LinkspanError):
                    log.debug("endpoints of other hosts are not read: %s", error.message)
                elif error is not None:
                    raise error
            if any(found):
                await asyncio.sleep(AGAIN)

    async def _read_host(self, host: str) -> None:
        """Read a host's endpoints from the store, and adopt them with what changed meanwhile.

        If another network of the host matters by then, its endpoints must be read once more.
        """
        wanted, listed, labels = self._wanted_of(host), self._listed, self._labels
        late = self._late[host] = []
        read: dict[str, dict[str, Packed]] = {network: {} for network in wanted}
        count = 0
        try:
            async for page, _ in self._store.pages(f"{ENDPOINTS}{host}/"):
                count += len(page)
                for start in range(0, len(page), SLICE):
                    known = _Changes(self.of)
                    for record in page[start : start + SLICE]:
                        self._sort(record, wanted, read, known)
                    await asyncio.sleep(0)
        finally:
            del self._late[host]
        if self._wanted_of(host) != wanted or self._listed != listed or self._labels - labels:
            return
        self._records[host] = count
        touched = set()
        for network, endpoints in read.items():
            before = self.of(network, host)
            if before != endpoints:
                differ = (at for at in before.keys() | endpoints.keys() if before.get(at) != endpoints.get(at))
                touched |= {f"{ENDPOINTS}{host}/{at}" for at in differ}
                self._set(network, host, endpoints)
        for batch in late:  # what the pages have already is changed again by what came after it
            touched |= self.take(batch)
        self._done(host)
        if touched:
            await self._changed(frozenset(touched))

    def _sort(
        self, record: Record, wanted: Networks, read: Mapping[str, dict[str, Packed]], known: _Changes
    ) -> None:
        """Add a record to the endpoints of its network; an unreadable one stays as it is ``known``."""
        host, place = owner_of(record.key), _place(record.key)
        found = self._read(record, wanted)
        if found is None:
            for network in wanted:
                if (one := known.of(network, host).get(place)) is not None:
                    read[network][place] = one
        elif found[1] is not None:
            read[found[0]][place] = found[1]

    # Queries

    async def caught_up(self, seconds: float) -> bool:
        """Wait until all endpoints that matter have been read, at most ``seconds``; return whether they have been."""
        return await woken(self._complete, seconds)

    @property
    def complete(self) -> bool:
        """True if all endpoints that matter have been read, with the labels that are kept now."""
        return self._complete.is_set()

    def labelled(self, host: str) -> bool:
        """Return whether a host's known endpoints have all labels that are kept now."""
        return host not in self._unlabelled

    def whole(self, network: str) -> bool:
        """Return whether all endpoints of a network have been read since the network matters here."""
        return network in self._whole

    def hosts(self, network: str) -> list[str]:
        """Return the hosts that have endpoints in a network."""
        return [host for host, held in self._known.get(network, {}).items() if held.count]

    def matters(self, network: str) -> int:
        """Return the number of the change since which a network matters, 0 if it does not.

        It becomes another one if hosts that left are forgotten: what was made from earlier answers is invalid then.
        """
        return self._matters.get(network, 0)

    def changed(self, network: str, since: int) -> dict[str, Mapping[str, Packed]]:
        """Return the endpoints of each host whose endpoints in a network changed after the change ``since``.

        A host without any endpoints is among them only if it has had some since the network ``matters``.
        """
        every = reversed(self._known.get(network, {}).items())
        return {host: held.endpoints for host, held in itertools.takewhile(lambda one: one[1].number > since, every)}

    def of(self, network: str, host: str) -> dict[str, Packed]:
        """Return a host's endpoints in a network, by ID/IFNAME; the dictionary is the caller's."""
        held = self._known.get(network, {}).get(host)
        return held.endpoints if held is not None else {}

    def owners(self) -> set[str]:
        """Return the hosts with known endpoints."""
        return {host for hosts in self._known.values() for host in hosts}

    def of_host(self, host: str) -> Iterator[tuple[str, Packed]]:
        """Yield a host's known endpoints, each with its network."""
        for network, hosts in self._known.items():
            if (held := hosts.get(host)) is not None:
                yield from ((network, one) for one in held.endpoints.values())

    def count(self) -> int:
        """Return how many endpoints are read after a listing: those that are known, and the same hosts' others."""
        known = Counter[str]()
        for hosts in self._known.values():
            known.update({host: held.count for host, held in hosts.items()})
        return sum(max(known[host], self._records.get(host, 0)) for host in known.keys() | self._records)

    def has(self, address: Prefix) -> bool:
        """Return whether a known endpoint has an address."""
        every = (one for hosts in self._known.values() for held in hosts.values() for one in held.endpoints.values())
        return any(address.address in one.addresses.split() for one in every)

    def sketches(self) -> Iterator[tuple[str, Endpoint]]:
        """Yield each known endpoint as (host id, sketch): an `Endpoint` with the known fields only."""
        for network, hosts in self._known.items():
            for host, held in hosts.items():
                for place, one in held.endpoints.items():
                    id_, _, ifname = place.partition("/")
                    yield host, Endpoint(
                        id=id_,
                        ifname=ifname,
                        name=one.container,
                        network=network,
                        addresses=tuple(one.addresses.split()),
                        labels={ALIASES: one.names.replace(" ", ",")},
                    )


def packed(endpoint: Endpoint, keys: frozenset[str] = frozenset()) -> Packed:
    """Return the fields of an endpoint that other hosts need, with the labels of these keys."""
    names, called = speakable(endpoint), endpoint.name or endpoint.id
    addresses = " ".join(host_address(text).address for text in endpoint.addresses)
    labels = _shared(tuple((key, value) for key, value in endpoint.labels.items() if key in keys))
    return Packed(addresses, " ".join(names), "" if names[:1] == (called,) else called, labels)


@functools.lru_cache(1024)
def _shared(labels: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """Return the same object for equal labels: most endpoints have those of many others."""
    return labels


def network_of(record: Record) -> str:
    """Return the network in an endpoint's record: a tenth of the work of decoding all of it. Raises Invalid."""
    network: str = records.parse(record.value, _Network).network
    return network


def owner_of(key: str) -> str:
    """Return the id of the host whose endpoint has this key."""
    return key.split("/", 2)[1]


def _place(key: str) -> str:
    return key.split("/", 2)[2] if key.count("/") > 1 else ""
