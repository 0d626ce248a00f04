"""Endpoint records of this host for all others: ``endpoints/HOST/ID/IFNAME`` in the store, for lists and traces.

A separate task writes them after the attach, so no container waits for the store. The host's journal is authoritative:
the task corrects missing and old records when the agent starts, and after the store lost them.

The task writes the first change at once. It gathers what changes within GATHER after a write, and writes it as one
transaction: a hundred containers that come within a second are ten transactions, so ten entries of etcd's log, and ten
messages to each watch.

If another agent uses this host's id, each would delete the other's records, and give out the addresses of the other's
containers. So nothing is deleted while one lives. A new agent, which has no endpoints, first waits as long as such an
agent may stay unseen. The addresses in these records are given out to no other container (``strangers``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet

import msgspec

from linkspan.cluster.interest import Interest
from linkspan.cluster.presence import ALONE, Namesakes
from linkspan.cluster.remote_endpoints import SLICE, RemoteEndpoints, network_of, owner_of
from linkspan.core import dns_names
from linkspan.core.addresses import Prefix, prefix
from linkspan.core.clock import loop_time
from linkspan.core.errors import Conflict, Invalid, LinkspanError, NotFound, Unavailable, closest
from linkspan.core.event_log import EventLog
from linkspan.core.model import Endpoint, Host
from linkspan.core.store_contract import Record
from linkspan.core.supervise import ended, lasting, woken
from linkspan.store import record_form, validation
from linkspan.store.records import ENDPOINTS, GONE
from linkspan.store.replica import Replica
from linkspan.store.request import MOST_BYTES, MOST_KEYS

log = logging.getLogger("linkspan.cluster.endpoint_records")

AGAIN = 2.0
"""Seconds until a write is retried that the store refused, or up to a half less: not all hosts should come at once."""
GATHER = 0.1
"""Seconds after a write in which further changes gather for the next one."""
LOOK_EVERY = 1.0
"""Seconds between two checks whether another agent with this host's id has ended, while records are withheld."""
PATIENCE = 2.0
"""Seconds that an attach waits for the endpoints of a network, if it must know them, and that an explanation waits for
the store."""
SHOWN = 24
"""Characters of an id that lists show."""
FEWEST = 4
"""Least number of digits that stand for an engine's id, if they are unambiguous: fewer are probably a typing error."""
Identity = tuple[str, str]


def key_of(host: str, identity: Identity) -> str:
    """Return the key of an endpoint's record."""
    return f"{ENDPOINTS}{host}/{identity[0]}/{identity[1]}"


def record_of(endpoint: Endpoint) -> Endpoint:
    """Return the endpoint without the path of its namespace, which is of no use to other hosts."""
    return msgspec.structs.replace(endpoint, netns_path="")


class EndpointRecords:
    """Keeps the records equal to this host's endpoints, and finds those of the other hosts."""

    def __init__(
        self,
        replica: Replica,
        host: str,
        endpoints: Mapping[Identity, Endpoint],
        remote: RemoteEndpoints,
        interest: Interest,
        namesakes: Namesakes,
        *,
        shared: bool = True,
    ) -> None:
        """``shared``: other hosts use the store too, so it may have endpoints of theirs."""
        self._replica = replica
        self._host = host
        self._endpoints = endpoints
        self._remote = remote
        self._interest = interest
        self._namesakes = namesakes
        self._shared = shared
        self._alone_from = float("-inf")
        """Until when another agent with this host's id may live unseen (the loop's time)."""
        self._withheld: set[str] = set()
        """Keys of this host's records without an endpoint here, which another agent may have put."""
        self.due: set[str] = set()
        """Keys of this host's records that must be compared."""
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Correct all records of this host, and then those that change."""
        there = {*self._replica.keys_under(f"{ENDPOINTS}{self._host}/")}
        if self._shared and there and not self._endpoints:
            self._alone_from = loop_time() + ALONE
        self._withhold(there)
        self.due |= there | {key_of(self._host, identity) for identity in self._endpoints}
        self._wake.set()
        self._task = lasting("publishing endpoints", self._follow)

    async def stop(self) -> None:
        """Stop writing; the records stay, as the containers do."""
        await ended(self._task)

    def note(self, identity: Identity) -> None:
        """Write the record of an endpoint that was added, changed or removed."""
        self.due.add(key_of(self._host, identity))
        self._wake.set()

    def changed(self, keys: frozenset[str]) -> None:
        """Check changed records of this host: put wrong ones again, and remove superfluous ones."""
        if self.has_own(keys):
            own = {key for key in keys if key.startswith(f"{ENDPOINTS}{self._host}/")}
            self._withhold(own)
            self.due |= own
            self._wake.set()

    def _withhold(self, keys: AbstractSet[str]) -> bool:
        """Keep those of this host's records that another agent may have put; return whether one may live."""
        if not self._namesakes.second and loop_time() >= self._alone_from:
            return False
        there = self._replica.records
        self._withheld |= {key for key in keys if key in there and _identity(key) not in self._endpoints}
        return True

    def withholds(self, identity: Identity) -> bool:
        """Return whether another agent with this host's id may have an endpoint that this one does not have."""
        return key_of(self._host, identity) in self._withheld and identity not in self._endpoints

    def strangers(self, network: str) -> Iterator[tuple[Prefix, str]]:
        """Yield the addresses of such endpoints in a network, each with its container's name or id."""
        for key in self._withheld:
            endpoint = self._replica.value(key, Endpoint) if _identity(key) not in self._endpoints else None
            if endpoint is not None and endpoint.network == network:
                yield from ((address.single(), endpoint.called) for address in endpoint.prefixes)

    def has_own(self, keys: AbstractSet[str]) -> bool:
        """Return whether one of the keys belongs to an endpoint of this host."""
        return any(key.startswith(f"{ENDPOINTS}{self._host}/") for key in keys)

    def own(self) -> list[Endpoint]:
        """Return this host's endpoints as the store has them, from this agent or an earlier one.

        They have no paths of namespaces, because somebody else may have written a path there.
        """
        own = (self._replica.value(key, Endpoint) for key in self._replica.keys_under(f"{ENDPOINTS}{self._host}/"))
        return [record_of(endpoint) for endpoint in own if endpoint is not None]

    async def elsewhere(self, network: str = "", host: str = "") -> AsyncIterator[list[Endpoint]]:
        """Yield the other hosts' endpoints as the store has them now, those of one host together.

        All of them, or those of one network or of one host. Raises Unavailable.
        """
        if not self._shared:
            return
        found: list[Endpoint] = []
        of = ""
        async for page, _ in self._replica.store.pages(f"{ENDPOINTS}{host}/" if host else ENDPOINTS):
            for number, record in enumerate(page, 1):
                if (owner := owner_of(record.key)) != of:
                    if found:
                        yield found
                    found, of = [], owner
                if owner != self._host and (endpoint := self._read(record, network)) is not None:
                    found.append(endpoint)
                if number % SLICE == 0:
                    await asyncio.sleep(0)
        if found:
            yield found

    def _read(self, record: Record, network: str) -> Endpoint | None:
        """Return the endpoint in a record; None if it is in another network, or cannot be read (which is noted)."""
        try:
            if why := record_form.misfit(record):
                raise Invalid(why)
            if network and network_of(record) != network:
                return None
            return validation.decode(record.key, record.value, Endpoint)
        except Invalid as error:
            self._remote.skip(record.key, error.message)
            return None

    async def everywhere(self, network: str = "") -> AsyncIterator[list[Endpoint]]:
        """Yield the endpoints of all hosts, in one network or in all, by host; this host's come first.

        Raises Unavailable after this host's, if the store does not answer.
        """
        yield [endpoint for endpoint in self._endpoints.values() if network in ("", endpoint.network)]
        try:
            async for found in self.elsewhere(network):
                yield found
        except Unavailable as error:
            raise Unavailable(
                f"the other hosts' endpoints are in the store: {error.message}",
                "`linkspan endpoint list --local` shows this host's",
            ) from error

    def held(self, network: str, host: str) -> Iterator[tuple[Prefix, str]]:
        """Yield the addresses that containers on a host have in a network, each with its container's name or id.

        If the network has no container here, the other hosts' are known only a moment after the first call.
        """
        if host == self._host:
            here = (endpoint for endpoint in self._endpoints.values() if endpoint.network == network)
            yield from ((address.single(), e.name or e.id) for e in here for address in e.prefixes)
            return
        self._interest.ask(network)
        for one in self._remote.of(network, host).values():
            yield from ((address, one.container) for address in one.prefixes)

    async def known(self, network: str) -> bool:
        """Read a network's endpoints if they are not in memory yet; return whether all are known now."""
        if not self._remote.whole(network):
            self._interest.ask(network)
            self._interest.look()
            await self._remote.caught_up(PATIENCE)
        return self._remote.whole(network)

    def living(self, network: str, host: str) -> set[Prefix]:
        """Return the addresses that containers on a host have in a network."""
        return {address for address, _ in self.held(network, host)}

    def remote(self, network: str) -> Iterator[tuple[str, Prefix, str]]:
        """Yield the other hosts, the addresses that their containers have in a network, and each one's name or id."""
        self._interest.ask(network)
        for host in self._remote.hosts(network):
            yield from ((host, address, called) for address, called in self.held(network, host))

    def holder(self, network: str, address: Prefix) -> str:
        """Return the endpoint that has an address of a network, as text; '' if none is known.

        The text has the name and the host; for a named endpoint of this host the name alone.
        """
        for endpoint in self._endpoints.values():
            if endpoint.network == network and address in (one.single() for one in endpoint.prefixes):
                return self._who(endpoint)
        for host, other, called in self.remote(network):
            if other == address:
                known = self._replica.value(f"hosts/{host}", Host)
                return f"{called} on host {known.name if known else host}"
        return ""

    def _who(self, endpoint: Endpoint) -> str:
        here = self._endpoints.get(endpoint.identity) is endpoint and endpoint.name
        return f"{endpoint.called}{'' if here else f' on host {endpoint.host}'}"

    async def holders(self, network: str, among: Prefix) -> list[tuple[str, str]]:
        """Return the endpoints' addresses of a network in the prefix ``among``, each with the text of `holder`."""
        return [
            (one.address, self._who(endpoint))
            async for some in self.everywhere(network)
            for endpoint in some
            for one in endpoint.prefixes
            if among.holds(one.single())
        ]

    async def find(self, word: str) -> list[Endpoint]:
        """Return the cluster's endpoints that a word means (`meant`). Raises NotFound, with a similar word.

        Raises Unavailable if the store does not answer, and the word means no endpoint of this host.
        """
        fitting = list(self._endpoints.values())
        try:
            fitting += [endpoint for _, endpoint in await self.named(word)]
        except Unavailable:
            if not meant(word, fitting):
                raise
        if found := meant(word, fitting):
            return found
        known = [*self._endpoints.values(), *(sketch for _, sketch in self._remote.sketches())]
        look = "`linkspan endpoint list` shows them"
        raise NotFound(f"endpoint {word!r} does not exist", closest(word, _words(known), look))

    async def named(self, *words: str) -> list[tuple[str, Endpoint]]:
        """Return the other hosts' endpoints that one of these names or addresses may mean, as (host id, endpoint).

        Others may be among them, because this looks for the name's first part in the bytes of a record. Raises
        Unavailable.
        """
        parts = [_sought(word) for word in words if _sought(word)]
        found = []
        if parts and self._shared:
            async for page, _ in self._replica.store.pages(ENDPOINTS):
                for number, record in enumerate(page, 1):
                    text = record.key.encode() + record.value.lower()
                    if any(part in text for part in parts):
                        host, endpoint = owner_of(record.key), self._read(record, "")
                        if endpoint is not None and host != self._host:
                            found.append((host, endpoint))
                    if number % SLICE == 0:
                        await asyncio.sleep(0)
        return found

    def here(self, word: str, *, named: bool = True, ifname: str = "", network: str = "") -> list[Endpoint]:
        """Return the endpoints of this host's container that a word means (`meant`), with an interface, in a network.

        If not ``named``, the word is an id alone. Returns none if no container fits. Raises Conflict, with the
        candidates, if it is a name and several containers fit. An id is always one container's: it may have an endpoint
        in a namespace that is gone beside that of the present one.
        """
        local = list(self._endpoints.values())
        found = meant(word, local) if named else [e for e in local if e.id == word]
        found = [e for e in found if ifname in ("", e.ifname, e.identity[1]) and network in ("", e.network)]
        containers = len(set(_containers(found)))
        if containers > 1 and len({e.id for e in found} | {word.partition("@")[0]}) > 1:
            each = ", ".join(f"{e.called}@{e.network} ({e.id[:SHOWN]} {e.ifname})" for e in found)
            apart = len({(e.called, e.network) for e in found}) > 1 and "@" not in word
            fix = "give NAME@NETWORK, or an id" if apart else "give an id"
            raise Conflict(f"{containers} containers on this host are called {word}: {each}", fix)
        return found

    def keeps(self, address: Prefix) -> bool:
        """Return whether another host's endpoint with an address is kept here."""
        return self._remote.has(address)

    async def met(self, *words: str) -> list[tuple[str, Endpoint]]:
        """Return the other hosts' endpoints that a packet may meet, as (host id, endpoint).

        Those that a name or an address may mean are complete, if the store answers. The rest are those that matter
        here, as sketches.
        """
        whole: list[tuple[str, Endpoint]] = []
        with contextlib.suppress(Unavailable):  # then only this host can say where the packet goes
            whole = await self.named(*words)
        there = {(host, endpoint.identity) for host, endpoint in whole}
        return [*whole, *(one for one in self._remote.sketches() if (one[0], one[1].identity) not in there)]

    async def missing(self, word: str, event_log: EventLog, *, named: bool = True, to: str = "detach it") -> str:
        """Return why a word (an id or, if ``named``, a name) means no endpoint on this host.

        ``to`` says what the command would do to it.
        """
        name = word.partition("@")[0]
        if mine := meant(name, self._endpoints.values()):
            have = ", ".join(f"{e.ifname} of network {e.network}" for e in mine)
            if not any(name == e.id or named for e in mine):
                return f"no container has this id; one has the name: `linkspan detach {name}` detaches {have}"
            return f"it has {have}, and no other interface here"
        there, unsure = list[Endpoint](), ""
        try:
            async with asyncio.timeout(PATIENCE):
                there = [endpoint for _, endpoint in await self.named(name)]
        except (Unavailable, TimeoutError):
            unsure = "; the store does not say whether another host has it"
        if hosts := sorted({e.host for e in meant(name, there)}):
            return f"it is on host {' and '.join(hosts)}, where the command can {to}"
        gone = [h for h in event_log.kept("detach") if h.about.get("endpoint") == name or h.what.split(" ")[0] == name]
        if gone:
            at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(gone[-1].at))
            return f"it was detached already, at {at}"
        look = closest(name, _words(self._endpoints.values()), "`linkspan endpoint list` shows those of all hosts")
        return f"no container on this host has this id or name{unsure} ({look})"

    async def _follow(self) -> None:
        while True:
            await woken(self._wake, LOOK_EVERY if self._withheld else None)
            self._wake.clear()
            if not self._withhold(set()):
                self.due |= self._withheld
                self._withheld.clear()
            due = sorted(self.due)[:MOST_KEYS]
            try:
                if await self._write(due) and len(due) < MOST_KEYS:
                    await asyncio.sleep(GATHER)
            except LinkspanError as error:
                log.debug("endpoints are not published: %s", error.message)
                await asyncio.sleep(AGAIN * random.uniform(0.5, 1))  # noqa: S311 - it spreads, and hides nothing
            if self.due:
                self._wake.set()

    async def _write(self, due: list[str]) -> bool:
        """Write the records of these keys, as far as they differ and one transaction takes them.

        Return whether any differed. The rest stays due.
        """
        current = {key_of(self._host, i): record_of(e) for i, e in self._current(due)}
        known = {key: self._replica.encoded(key, endpoint) for key, endpoint in current.items()}
        there = self._replica.records
        puts = {k: v for k, v in known.items() if k not in there or there[k].value != v}
        deletes = [k for k in due if k not in known and k in there]
        if self._withhold({*deletes}):
            deletes = []
        for key in [key for key in puts if _size(key, puts[key]) > MOST_BYTES]:  # `endpoints/build.py` refuses these
            log.warning("endpoint %s is not published: its record has %d bytes", key, len(puts.pop(key)))
        later = _beyond(puts)
        puts = {k: v for k, v in puts.items() if k not in later}
        self.due -= {*due} - later
        removed = f"{GONE}hosts/{self._host}" in there  # a removed host writes nothing by itself
        if removed or not (puts or deletes):
            return False
        try:
            await self._replica.write(puts, deletes)
        except LinkspanError:
            self.due |= set(due)
            raise
        return True

    def _current(self, due: list[str]) -> Iterator[tuple[Identity, Endpoint]]:
        for key in due:
            if (found := self._endpoints.get(_identity(key))) is not None:
                yield found.identity, found


def _beyond(puts: Mapping[str, bytes]) -> set[str]:
    """Return the keys of the records that one transaction cannot take with those before them."""
    size, later = 0, set[str]()
    for key, value in puts.items():
        if size + _size(key, value) > MOST_BYTES:
            later.add(key)
        else:
            size += _size(key, value)
    return later


def _size(key: str, value: bytes) -> int:
    return len(key.encode()) + len(value)


def meant(word: str, endpoints: Iterable[Endpoint]) -> list[Endpoint]:
    """Return the endpoints that match a word, or NAME@NETWORK.

    The first of these that matches anything counts: the id, the container's name, a name that DNS answers, and the
    beginning of an id as lists show it. A beginning has at least SHOWN characters, or FEWEST if an engine made the id.
    """
    name, _, network = word.partition("@")
    every = [e for e in endpoints if network in ("", e.network)]
    ways: tuple[Callable[[Endpoint], bool], ...] = (
        lambda e: e.id == name,
        lambda e: e.name == name,
        lambda e: dns_names.answers(e, name),
        lambda e: e.id.startswith(name) and len(name) >= (FEWEST if dns_names.DIGEST.fullmatch(e.id) else SHOWN),
    )
    found = ([e for e in every if fits(e)] for fits in ways)
    return next(filter(None, found), [])


def _sought(word: str) -> bytes:
    """Return bytes, in lower case, that the record of each endpoint contains that a name or an address means.

    NAME@NETWORK, NAME.NETWORK and the beginning of an id start with them. `host:NAME` means no endpoint, so it has none
    (b'').
    """
    if word.startswith("host:"):
        return b""
    name = word.partition("@")[0]
    try:
        return prefix(name).address.encode()
    except Invalid:
        return name.partition(".")[0].encode().lower()


def by_container(endpoints: Iterable[Endpoint]) -> list[Endpoint]:
    """Return the endpoints, with those of one container together and in the order eth0, eth1, eth10."""
    every = list(endpoints)
    cookies = {e.netns_cookie for e in every}
    if len({e.id for e in every}) == len(cookies) == len(every) and 0 not in cookies:
        return every  # as usual: each is of another container
    containers = _containers(every)
    first: dict[object, int] = {}
    for number, container in enumerate(containers):
        first.setdefault(container, number)
    pairs = zip(containers, every, strict=True)
    ordered = sorted(pairs, key=lambda pair: (first[pair[0]], len(pair[1].ifname), pair[1].ifname))
    return [endpoint for _, endpoint in ordered]


def _containers(endpoints: Iterable[Endpoint]) -> list[tuple[object, ...]]:
    """Return a key for each endpoint, the same for all endpoints of one container; Docker gives each another id.

    The kernel reuses a namespace's inode, but with another cookie. Records of older agents have no cookie: they
    belong to the namespace whose cookie the other endpoints with their inode have, if these have only one.
    """
    every = list(endpoints)
    cookies: dict[tuple[str, int], set[int]] = {}
    for endpoint in every:
        cookies.setdefault((endpoint.host, endpoint.netns), set()).add(endpoint.netns_cookie)
    found: list[tuple[object, ...]] = []
    for endpoint in every:
        known = cookies[endpoint.host, endpoint.netns] - {0}
        netns = (endpoint.netns, *known) if len(known) < 2 else endpoint.namespace
        found.append((endpoint.host, *(netns if endpoint.netns else (endpoint.id,))))
    return found


def _words(endpoints: Iterable[Endpoint]) -> Iterator[str]:
    return (word for e in endpoints for word in (e.id, *dns_names.given(e)))


def _identity(key: str) -> Identity:
    id_, _, ifname = key.split("/", 2)[2].partition("/")  # works for any key, because others may write keys too
    return id_, ifname
