"""Policy names: keeps the sets of DNS names filled with the addresses that the networks' name servers answer.

Two ways lead to them. The agent asks for each name without a wildcard itself, as soon as a policy names it and again
whenever its TTL is over, at the name server of each network here whose containers such a policy selects. So the set is
filled before a container asks, and the container's answer is the same, from the server's cache. And the agent sees
what these servers answer the containers (``policy/name_rules.py``): that is all it learns of names with a wildcard, and
it counts for the others as well, whose servers may answer something else each time.

The kernel ends each element by itself. So while no agent runs, what is in the sets passes until its time is over, and
a new agent begins with what is left in them.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import time
from collections.abc import Callable, Collection, Iterable

import msgspec

from linkspan.agent import name_lookup
from linkspan.agent.named_addresses import MOST, WORTH, Named, NamedAddresses, Usable, lifetime
from linkspan.agent.policy_elements import PolicyElements
from linkspan.core.addresses import Prefix
from linkspan.core.errors import Conflict, KernelError, LinkspanError, NotFound, Unavailable
from linkspan.core.model import Endpoint
from linkspan.core.ruleset import TABLE
from linkspan.core.supervise import ended, lasting, until_whole, woken
from linkspan.kernel.drivers import timed_elements
from linkspan.kernel.drivers.timed_elements import Timed
from linkspan.kernel.io import dns_messages
from linkspan.kernel.io.dns_messages import Answer
from linkspan.kernel.io.nftables import netfilter_socket
from linkspan.kernel.probe import underlay
from linkspan.kernel.probe.dns_answers import DnsAnswers, Heard
from linkspan.kernel.worker import Worker
from linkspan.policy import name_rules, names
from linkspan.policy.name_rules import GRACE
from linkspan.policy.regime import Regime

log = logging.getLogger("linkspan.agent.policy_names")

AT_ONCE = 16
"""Questions under way at one time; apart from these, as many about what containers were told."""
_A_TURN = 64
"""Answers to containers that are taken in before others use the loop."""
WAIT = 2.0
"""Seconds for which new rules wait for the addresses of their names."""
AGAIN, SELDOM = 2.0, 30.0
"""Seconds until a question without an answer is asked again: at first, and after several."""

_PAUSE = 1.0
"""Seconds between looks at endpoints while these come and go."""


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """A name of a policy: the addresses that it has on this host now, and why it may have none ("": no reason)."""

    name: str
    addresses: tuple[Named, ...]
    problem: str


class _Question(msgspec.Struct, frozen=True):
    server: str
    name: str
    kind: int


class _Asked(msgspec.Struct):
    """State of a question: when it is due (never: under way), its failures in a row, and why it has no address."""

    due: float = 0
    failed: int = 0
    problem: str = ""


_NOWHERE = {dns_messages.NO_ERROR: "it has no addresses", dns_messages.NO_NAME: "there is no such name"}
"""By code: what an answer without addresses says."""


class PolicyNames:
    """Learns the addresses of the names that policies let containers reach."""

    def __init__(
        self,
        worker: Worker,
        elements: PolicyElements,
        addresses: NamedAddresses,
        nameservers: Callable[[Endpoint], tuple[str, ...]],
        *,
        logs: bool,
    ) -> None:
        """Take what names the server of an endpoint's network; ``logs``: this kernel has nflog."""
        self._worker = worker
        self._elements = elements
        self._addresses = addresses
        self._nameservers = nameservers
        self._logs = logs
        self._regime = Regime()
        self._families: frozenset[int] = frozenset()
        self._usable = Usable()
        self._closed: tuple[frozenset[Prefix], frozenset[str]] | None = None
        """The pools and the addresses of hosts that it knows."""
        self._read: set[tuple[str, int]] = set()
        """Names, with a family, of which the kernel's elements have been read."""
        self._unserved: set[str] = set()
        """Networks whose containers such policies select, and that have no name server here."""
        self._serving: list[str] = []
        """The servers that are asked, for records of ``_kinds``."""
        self._kinds: list[int] = []
        self._asked: dict[_Question, _Asked] = {}
        self._due: dict[_Question, None] = {}
        """Questions that are due, in the order in which they are asked."""
        self._asking: set[asyncio.Task[None]] = set()
        """At most AT_ONCE tasks, each of which asks one after the other."""
        self._repeating: dict[_Question, asyncio.Task[None]] = {}
        """Questions of containers whose answers could not be read as they went by."""
        self._due_elements: list[Timed] = []
        self._listener: DnsAnswers | None = None
        self._deaf = "" if logs else "this kernel has no nflog (CONFIG_NETFILTER_NETLINK_LOG)"
        """Why nobody listens to answers."""
        self._putting = asyncio.Lock()
        self._wake, self._fill = asyncio.Event(), asyncio.Event()
        self._moved = False
        """Whether endpoints have come or gone since servers were looked for."""
        self._looked = -math.inf
        self._unsure = False
        """Whether the kernel may lack elements."""
        self._tasks: list[asyncio.Task[None]] = []

    # Life

    def start(self) -> None:
        """Start to ask, and to put what is answered."""
        self._tasks = [lasting("asking for names", self._follow), lasting("filling sets of names", self._put_due)]

    async def stop(self) -> None:
        """Stop; the kernel keeps what it has, until its time is over."""
        for task in self._tasks:
            await ended(task)
        self._rest()
        for task in (*self._asking, *self._repeating.values()):
            await ended(task)

    def note(self, _identity: tuple[str, str]) -> None:
        """Follow an endpoint of this host that was added, changed or removed."""
        if self._regime.names:
            self._moved = True
            self._wake.set()

    def look(self) -> None:
        """Compare the kernel's elements with what is known: somebody else has changed rules, and maybe emptied sets."""
        if self._regime.names:
            self._unsure = True
            self._wake.set()

    async def follow(self, regime: Regime, families: frozenset[int]) -> None:
        """Fill the sets of a regime's names, which are there, before its rules are: for at most WAIT seconds."""
        self._regime, self._families = regime, families
        self._addresses.keep(regime.names)
        if not (regime.names and families):
            self._read.clear()
            self._asked.clear()
            self._due.clear()
            self._closed = None
            self._rest()
            return
        try:
            await self._take_over()
            await self._look_around()
            self._listen()  # only now: no name may have an address of a host
            if asking := self._ask_due():
                await asyncio.wait(asking, timeout=WAIT)
                self._note_silent()
            await self._put()
        except LinkspanError as error:  # other policies must not wait for names
            self._fail(error)
        self._wake.set()

    def _note_silent(self) -> None:
        """Note the questions that their name server has not answered within WAIT: `apply` warns of these."""
        for question, asked in self._asked.items():
            if asked.due == math.inf and question not in self._due and not asked.problem:
                asked.problem = _no_answer(question)

    async def _take_over(self) -> None:
        """Take in what the sets of names have that are new to this agent: an earlier one may have put it."""
        every = set(itertools.product(self._regime.names, self._families))
        unread = sorted(every - self._read)
        found = await self._worker.run(_read, unread) if unread else []
        for name, one, past in found:
            self._addresses.found(name, one.address.address, **{"past" if past else "now": one.seconds})
            self._closed = None  # of the hosts that have joined since, it may have addresses
        self._read = every

    # What containers are told

    def _listen(self) -> None:
        if self._listener is not None or not self._logs:
            return
        try:
            self._listener = DnsAnswers(name_rules.GROUP, name_rules.LOGGED)
        except KernelError as error:
            self._deaf = error.message
            return
        self._deaf = ""
        asyncio.get_running_loop().add_reader(self._listener.fileno(), self._hear)

    def _rest(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None

    def _hear(self) -> None:
        assert self._listener is not None
        for heard in itertools.islice(self._listener.read(), _A_TURN):
            if heard.answer.truncated:
                self._repeat(heard)
            else:
                self._learn(heard.answer)

    def _repeat(self, heard: Heard) -> None:
        """Ask a server what a container asked; if too many such questions are under way, the container asks again."""
        told = heard.answer
        question = _Question(heard.server, told.name, told.kind)
        known = question in self._repeating or told.code != dns_messages.NO_ERROR
        if known or len(self._repeating) >= AT_ONCE or not names.meant(told.name, self._regime.names):
            return
        task = self._repeating[question] = asyncio.create_task(self._ask_once(question))
        task.add_done_callback(lambda _: self._repeating.pop(question, None))

    async def _ask_once(self, question: _Question) -> None:
        with contextlib.suppress(Unavailable):
            self._learn(await name_lookup.ask(question.server, question.name, question.kind))

    def _learn(self, answer: Answer) -> None:
        """Take in what a name has, if a policy means it."""
        told = answer.code == dns_messages.NO_ERROR and answer.addresses
        for name in names.meant(answer.name, self._regime.names) if told else ():
            for packed, ttl in answer.addresses:
                address = Prefix(packed, len(packed) * 8)
                if address.family in self._families and self._usable(address):
                    self._due_elements += _elements(name, address, *self._addresses.learn(name, address, lifetime(ttl)))
        if self._due_elements:
            self._fill.set()

    # What the kernel has

    async def _put_due(self) -> None:
        while True:
            await self._fill.wait()
            self._fill.clear()
            try:
                await self._put()
            except LinkspanError as error:
                self._fail(error)

    async def _put(self) -> None:
        async with self._putting:
            due, self._due_elements = self._due_elements, []
            if due:
                await self._worker.run(_put, due)

    def _fail(self, error: LinkspanError) -> None:
        """Take in that sets were not filled: look again, and compare them with what is known, until they are."""
        log.warning("names of policies: %s", error.message)
        self._unsure = self._moved = True
        asyncio.get_running_loop().call_later(AGAIN, self._wake.set)

    def _every_element(self) -> list[Timed]:
        """Return what the sets should have. A family that no network has any more has no sets."""
        return [
            element
            for name in self._regime.names
            for known in self._addresses.left(name)
            if known[0].family in self._families
            for element in _elements(name, *known)
        ]

    # What the agent asks

    async def _follow(self) -> None:
        while True:
            await woken(self._wake, until_whole(AGAIN) if self._regime.names else None)
            self._wake.clear()
            try:
                if self._regime.names and time.monotonic() - self._looked >= (_PAUSE if self._moved else SELDOM):
                    await self._look_around()
                if self._unsure:
                    self._unsure = False
                    await self._take_over()
                    await self._worker.run(_put_lacking, self._every_element())
                if self._regime.names:
                    self._listen()
            except LinkspanError as error:
                self._fail(error)
            self._ask_due()

    async def _look_around(self) -> None:
        """Learn which servers answer containers that policies let out by names, and whose addresses no name has."""
        self._moved = False
        pools = frozenset(pool for some in self._elements.pools().values() for pool in some)
        local = await self._worker.run(underlay.every_address, self._worker.machine.sockets)
        self._close(pools, local | self._elements.addresses_of_hosts())
        self._looked = time.monotonic()
        askers = self._elements.endpoints(self._elements.selected(self._regime, self._regime.askers))
        found = {name: self._servers(one) for name, one in {one.network: one for one in askers}.items()}
        self._unserved = {network for network, servers in found.items() if not servers}
        self._serving = sorted({some[0] for some in found.values() if some})  # its others are the same server's
        plain = [name for name in self._regime.names if not name.startswith(names.WILDCARD)]
        self._kinds = [dns_messages.KINDS[family] for family in self._families]
        wanted = itertools.starmap(_Question, itertools.product(self._serving, sorted(plain), self._kinds))
        self._asked = {question: self._asked.get(question, _Asked()) for question in wanted}

    def _close(self, pools: frozenset[Prefix], hosts: frozenset[str]) -> None:
        """Let no name have these addresses, and take out those that one has: a host may have joined since."""
        if (pools, hosts) != self._closed:
            self._closed, self._usable = (pools, hosts), Usable(pools, hosts)
            for name, address in self._addresses.drop(self._usable):
                sets = name_rules.named(name, address.family), name_rules.formerly(name, address.family)
                self._due_elements += [Timed(of, address, 0) for of in sets if address.family in self._families]
                self._fill.set()

    def _servers(self, endpoint: Endpoint) -> tuple[str, ...]:
        """Return the servers of an endpoint's network, none if it is just deleted, or not in force on this host."""
        try:
            return self._nameservers(endpoint)
        except (NotFound, Conflict):
            return ()

    def _ask_due(self) -> set[asyncio.Task[None]]:
        """Begin to ask what is due, and return the tasks that end once nothing is."""
        now = time.monotonic()
        for question, asked in self._asked.items():
            if asked.due <= now:
                asked.due = math.inf
                self._due[question] = None
        busy = sum(not task.done() for task in self._asking)
        for _ in range(min(len(self._due), AT_ONCE - busy)):
            task = asyncio.create_task(self._ask_in_turn())
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)
        return set(self._asking)

    async def _ask_in_turn(self) -> None:
        while self._due:
            question = next(iter(self._due))
            del self._due[question]
            if question in self._asked:  # else no policy names it any more
                await self._ask(question)

    async def _ask(self, question: _Question) -> None:
        try:
            answer = await name_lookup.ask(question.server, question.name, question.kind)
        except Unavailable as error:
            self._answered(question, None, error.message)
            return
        self._learn(answer)
        self._answered(question, answer, "")

    def _answered(self, question: _Question, answer: Answer | None, problem: str) -> None:
        """Set the time of the next question: once the answer is over, and sooner if there was none."""
        asked = self._asked.get(question)
        if asked is None:
            return
        if answer is not None and answer.code in (dns_messages.NO_ERROR, dns_messages.NO_NAME):
            shortest = min((ttl for _, ttl in answer.addresses), default=0)
            asked.due = time.monotonic() + lifetime(shortest) - GRACE + 1
            asked.failed, asked.problem = 0, "" if answer.addresses else _NOWHERE[answer.code]
            return
        asked.failed += 1
        asked.due = time.monotonic() + min(AGAIN * asked.failed, SELDOM)
        asked.problem = problem or f"name server {question.server} answers with error {answer.code if answer else 0}"

    # What people are told

    def told(self, wanted: Iterable[str]) -> list[Told]:
        """Return what is known here of names."""
        return [Told(name=one, addresses=tuple(self._addresses.of(one)), problem=self._problem(one)) for one in wanted]

    def _problem(self, name: str) -> str:
        """Return why a name leads nowhere on this host, '' if it leads somewhere, or nobody needs it here."""
        if name in self._addresses.full:
            return f"it has more than {MOST} addresses, and containers reach no more of them"
        if name.startswith(names.WILDCARD):
            return self._deaf and f"nobody learns what containers are told: {self._deaf}"
        if self._addresses.of(name):
            return ""
        questions = itertools.starmap(_Question, itertools.product(self._serving, [name], self._kinds))
        found = [self._asked[one].problem for one in questions if one in self._asked]
        return next(filter(None, found), "") if all(found) else ""

    def problems(self) -> list[str]:
        """Return a sentence for each name that leads nowhere, and each network without DNS, if containers need it."""
        unserved = self._unserved if self._regime.names else ()
        return [
            *(f"DNS name {one.name}: {one.problem}" for one in self.told(sorted(self._regime.names)) if one.problem),
            *(f"network {name} has no name server here: its containers reach nothing by name" for name in unserved),
        ]


def _no_answer(question: _Question) -> str:
    return f"name server {question.server} does not answer for {question.name}"


def _elements(name: str, address: Prefix, passing: float, past: float) -> list[Timed]:
    """Return the elements of a name's two sets; those without time are left out."""
    sets = (name_rules.named(name, address.family), passing), (name_rules.formerly(name, address.family), past)
    return [Timed(of, address, seconds) for of, seconds in sets if seconds > 0]


# In the worker's thread


def _put(elements: Iterable[Timed]) -> None:
    with contextlib.closing(netfilter_socket()) as netlink:
        timed_elements.put(netlink, TABLE, elements)


def _put_lacking(elements: Collection[Timed]) -> None:
    """Put those of the elements that sets lack, or have for less time."""
    with contextlib.closing(netfilter_socket()) as netlink:
        sets = {one.set for one in elements}
        there = {(of, one.address): one.seconds for of in sets for one in timed_elements.read(netlink, TABLE, of)}
        lacking = [one for one in elements if there.get((one.set, one.address), 0) + WORTH < one.seconds]
        timed_elements.put(netlink, TABLE, lacking)


def _read(names: Iterable[tuple[str, int]]) -> list[tuple[str, Timed, bool]]:
    """Return by name what an earlier agent has put into its sets of a family, and whether that is the former one."""
    with contextlib.closing(netfilter_socket()) as netlink:
        return [
            (name, one, past)
            for name, family in names
            for of, past in ((name_rules.named, False), (name_rules.formerly, True))
            for one in timed_elements.read(netlink, TABLE, of(name, family))
        ]
