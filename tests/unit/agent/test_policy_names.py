"""Names of policies: which server is asked when, and what is put of what it and others say."""

from __future__ import annotations

import asyncio
import io
import os
import socket
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, ParamSpec, TypeVar, cast

import pytest

from linkspan.agent import name_lookup, policy_names
from linkspan.agent.named_addresses import NamedAddresses
from linkspan.agent.policy_elements import PolicyElements
from linkspan.agent.policy_names import PolicyNames
from linkspan.core.addresses import Prefix, prefix
from linkspan.core.errors import Conflict, KernelError, Unavailable
from linkspan.core.model import Endpoint
from linkspan.kernel.drivers import timed_elements
from linkspan.kernel.drivers.timed_elements import Timed
from linkspan.kernel.io.dns_messages import A, Answer
from linkspan.kernel.io.namespaces import Namespaces
from linkspan.kernel.io.sockets import Sockets
from linkspan.kernel.probe import underlay
from linkspan.kernel.probe.dns_answers import Heard
from linkspan.kernel.worker import Worker
from linkspan.policy import name_rules
from linkspan.policy.model import Peer, Policy, Rule
from linkspan.policy.regime import Regime
from support.memory_machine import MemoryMachine
from support.polling import eventually

P = ParamSpec("P")
R = TypeVar("R")

NAMES = Regime([Policy(name="p", egress=(Rule(peers=(Peer(dns=("a.example.com", "*.example.org")),)),))])
WEB = Endpoint(id="c1", ifname="eth0", network="demo", addresses=("10.77.0.2/32",))
FOUR = frozenset({4})


def said(name: str, *texts: str, ttl: int = 300, code: int = 0) -> Answer:
    """Return an answer."""
    return Answer(0, name, A, code, addresses=tuple((socket.inet_aton(text), ttl) for text in texts))


class Elements(PolicyElements):
    """A network's pool, another host's address, and endpoints of this host, which all policies select."""

    def __init__(self, endpoints: Mapping[tuple[str, str], Endpoint]) -> None:
        self.selectable = endpoints

    def pools(self) -> Mapping[str, tuple[Prefix, ...]]:
        """Return the pool of the network."""
        return {"demo": (prefix("10.77.0.0/16"),)}

    def addresses_of_hosts(self) -> frozenset[str]:
        """Return the other host's address."""
        return frozenset({"198.51.100.2"})

    def selected(self, regime: Regime, digests: Collection[str]) -> set[tuple[str, str]]:
        """Return all endpoints."""
        return set(self.selectable)

    def endpoints(self, identities: Iterable[tuple[str, str]]) -> list[Endpoint]:
        """Return these."""
        return [self.selectable[one] for one in identities]


class SocketsMachine(MemoryMachine):
    """A machine with its table of sockets, of which none is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.sockets = Sockets(Namespaces())


class Immediate(Worker):
    """A worker that needs no thread: a test says when the loop goes on."""

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run it here."""
        return function(*args, **kwargs)


class Servers:
    """Name servers, and a kernel that keeps what is put."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answer: Callable[[str], Answer] = lambda name: said(name, "192.0.2.7")
        self.asked: Counter[tuple[str, str]] = Counter()
        self.kernel: dict[tuple[str, str], float] = {}
        self.unable = False
        self.endpoints = {WEB.identity: WEB}
        self.serving: dict[str, tuple[str, ...]] = {"demo": ("10.77.0.1",)}
        monkeypatch.setattr(name_lookup, "ask", self._ask)
        monkeypatch.setattr(policy_names, "_put", self._put)
        monkeypatch.setattr(policy_names, "_put_lacking", self._put)
        monkeypatch.setattr(policy_names, "_read", self._read)
        monkeypatch.setattr(policy_names, "AGAIN", 0.02)
        monkeypatch.setattr(policy_names, "_PAUSE", 0.02)
        monkeypatch.setattr(policy_names, "until_whole", lambda seconds: seconds)
        monkeypatch.setattr(underlay, "every_address", lambda _sockets: frozenset({"198.51.100.1"}))
        self.known = NamedAddresses()
        worker, elements = Immediate(SocketsMachine()), Elements(self.endpoints)
        self.names = PolicyNames(worker, elements, self.known, lambda one: self.serving[one.network], logs=False)

    async def _ask(self, server: str, name: str, _kind: int) -> Answer:
        self.asked[server, name] += 1
        return self.answer(name)

    def _put(self, elements: Iterable[Timed]) -> None:
        if self.unable:
            raise KernelError("no such set")
        self.kernel.update({(one.set, one.address.address): one.seconds for one in elements})

    def _read(self, names: Iterable[tuple[str, int]]) -> list[tuple[str, Timed, bool]]:
        return [
            (name, Timed(of, prefix(address), seconds), past)
            for name, family in names
            for made, past in ((name_rules.named, False), (name_rules.formerly, True))
            for (of, address), seconds in self.kernel.items()
            if of == made(name, family)
        ]

    def there(self, name: str) -> set[str]:
        """Return the addresses in a name's set."""
        return {address for of, address in self.kernel if of == name_rules.named(name, 4)}

    def told(self, answer: Answer) -> None:
        """Have a container told something."""
        self.names._learn(answer)

    async def run(self, work: Callable[[], Any]) -> None:
        """Run with the tasks."""
        self.names.start()
        try:
            await work()
        finally:
            await self.names.stop()


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Servers:
    """Return servers."""
    return Servers(monkeypatch)


def test_sets_are_filled_before_rules_come(servers: Servers) -> None:
    """When ``follow`` returns, a name without a wildcard has its addresses, and nobody was asked for the other one."""

    async def main() -> None:
        await servers.names.follow(NAMES, FOUR)
        assert servers.there("a.example.com") == {"192.0.2.7"}
        assert set(servers.asked) == {("10.77.0.1", "a.example.com")}
        await servers.names.stop()

    asyncio.run(main())


def test_rules_do_not_wait_for_a_silent_server(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """They come without its addresses, which follow; whoever applies the policy is told."""
    monkeypatch.setattr(policy_names, "WAIT", 0.01)
    ready = asyncio.Event()

    async def slow(_server: str, name: str, _kind: int) -> Answer:
        await ready.wait()
        return said(name, "192.0.2.8")

    async def main() -> None:
        monkeypatch.setattr(name_lookup, "ask", slow)

        async def work() -> None:
            await servers.names.follow(NAMES, FOUR)
            assert servers.there("a.example.com") == set()
            (told,) = servers.names.told(["a.example.com"])
            assert told.problem == "name server 10.77.0.1 does not answer for a.example.com"
            ready.set()
            await eventually(lambda: servers.there("a.example.com") == {"192.0.2.8"}, "they follow")
            (told,) = servers.names.told(["a.example.com"])
            assert told.problem == ""

        await servers.run(work)

    asyncio.run(main())


def test_a_name_is_asked_for_again_when_its_ttl_is_over(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not before: what it has then is put, and what it had stays until its time is over."""
    monkeypatch.setattr(policy_names, "GRACE", 1000)
    monkeypatch.setattr(policy_names, "lifetime", lambda ttl: 999 + ttl)

    async def main() -> None:
        async def work() -> None:
            servers.answer = lambda name: said(name, "192.0.2.7", ttl=1000)
            await servers.names.follow(NAMES, FOUR)
            await asyncio.sleep(0.2)
            assert servers.asked["10.77.0.1", "a.example.com"] == 1
            servers.answer = lambda name: said(name, "192.0.2.8", ttl=0)
            await servers.names.follow(Regime(), frozenset())
            await servers.names.follow(NAMES, FOUR)
            await eventually(lambda: servers.asked["10.77.0.1", "a.example.com"] > 3, "it is asked for again")
            assert servers.there("a.example.com") == {"192.0.2.7", "192.0.2.8"}

        await servers.run(work)

    asyncio.run(main())


def test_a_server_that_fails_is_asked_again(servers: Servers) -> None:
    """Soon; and until it answers, the reason is told."""

    def fails(_name: str) -> Answer:
        raise Unavailable("name server 10.77.0.1 does not answer for a.example.com")

    async def main() -> None:
        async def work() -> None:
            servers.answer = fails
            await servers.names.follow(NAMES, FOUR)
            assert servers.names.problems()[-1].endswith("10.77.0.1 does not answer for a.example.com")
            servers.answer = lambda name: said(name, code=2)
            await eventually(lambda: "with error 2" in servers.names.problems()[-1], "an error of the server's")
            servers.answer = lambda name: said(name, "192.0.2.7")
            await eventually(lambda: servers.there("a.example.com"), "it answers")
            assert not [text for text in servers.names.problems() if "a.example.com" in text]

        await servers.run(work)

    asyncio.run(main())


def test_only_what_a_policy_means_is_learnt(servers: Servers) -> None:
    """Of what containers are told: below the wildcard, outside the cluster, of a family that has sets."""

    async def main() -> None:
        async def work() -> None:
            await servers.names.follow(NAMES, FOUR)
            servers.told(said("x.y.example.org", "192.0.2.9", "10.77.0.9", "198.51.100.1", "198.51.100.2", "127.0.0.1"))
            servers.told(said("example.org", "192.0.2.10"))
            servers.told(said("b.example.com", "192.0.2.11"))
            servers.told(said("z.example.org", "192.0.2.12", code=3))
            servers.told(Answer(0, "v.example.org", 28, 0, addresses=((bytes(15) + b"\7", 60),)))
            await eventually(lambda: servers.there("*.example.org"), "it is put")
            assert servers.there("*.example.org") == {"192.0.2.9"}
            assert servers.there("a.example.com") == {"192.0.2.7"}

        await servers.run(work)

    asyncio.run(main())


def test_a_network_whose_first_container_comes_has_its_server_asked(servers: Servers) -> None:
    """Each network's server answers its own containers; a network without one is named."""
    other = Endpoint(id="c2", ifname="eth0", network="other", addresses=("10.78.0.2/32",))
    servers.serving |= {"other": ("10.78.0.1",), "bare": ()}

    async def main() -> None:
        async def work() -> None:
            await servers.names.follow(NAMES, FOUR)
            servers.endpoints[other.identity] = other
            servers.names.note(other.identity)
            await eventually(lambda: ("10.78.0.1", "a.example.com") in servers.asked, "its server is asked")
            servers.endpoints["c3", "eth0"] = Endpoint(id="c3", ifname="eth0", network="bare")
            servers.names.note(("c3", "eth0"))
            await eventually(lambda: "network bare has no name server here" in servers.names.problems()[-1], "named")

        await servers.run(work)

    asyncio.run(main())


def test_a_network_that_is_not_in_force_keeps_no_other_from_its_server(servers: Servers) -> None:
    """Or one that was deleted a moment ago: it has no server, and the others have theirs."""
    servers.endpoints = {("c0", "eth0"): Endpoint(id="c0", ifname="eth0", network="gone"), WEB.identity: WEB}

    def nameservers(endpoint: Endpoint) -> tuple[str, ...]:
        if endpoint.network == "gone":
            raise Conflict("network gone is not in force on this host", "remove the route")
        return servers.serving[endpoint.network]

    async def main() -> None:
        servers.names._nameservers = nameservers
        await servers.names.follow(NAMES, FOUR)
        assert servers.there("a.example.com") == {"192.0.2.7"}
        await servers.names.stop()

    asyncio.run(main())


def test_an_address_of_a_host_that_joins_leaves_its_names(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that had it before would lead into the cluster for an hour; others stay. An earlier agent's as well."""
    monkeypatch.setattr(policy_names, "SELDOM", 0.02)
    servers.kernel[name_rules.named("*.example.org", 4), "198.51.100.2"] = 40

    async def main() -> None:
        async def work() -> None:
            await servers.names.follow(NAMES, FOUR)
            assert servers.kernel[name_rules.named("*.example.org", 4), "198.51.100.2"] == 0
            servers.told(said("x.example.org", "192.0.2.8", "192.0.2.9"))
            await eventually(lambda: servers.there("*.example.org") >= {"192.0.2.8", "192.0.2.9"}, "it has two")
            monkeypatch.setattr(underlay, "every_address", lambda _sockets: frozenset({"192.0.2.9"}))
            joined = name_rules.named("*.example.org", 4), "192.0.2.9"
            await eventually(lambda: servers.kernel[joined] == 0, "one is taken out")
            assert servers.known.by_address(past=True).keys() == {"192.0.2.7", "192.0.2.8"}
            assert servers.kernel[name_rules.named("*.example.org", 4), "192.0.2.8"] > 0

        await servers.run(work)

    asyncio.run(main())


def test_a_set_that_could_not_be_filled_is_filled_later(servers: Servers) -> None:
    """With all that is known, whatever was lost: somebody may have removed the set, or emptied it."""

    async def main() -> None:
        async def work() -> None:
            await servers.names.follow(NAMES, FOUR)
            servers.unable = True
            servers.told(said("x.example.org", "192.0.2.9"))
            await asyncio.sleep(0.1)
            servers.kernel.clear()
            servers.unable = False
            await eventually(lambda: servers.there("*.example.org") == {"192.0.2.9"}, "it is filled")
            assert servers.there("a.example.com") == {"192.0.2.7"}
            servers.kernel.clear()
            servers.names.look()
            await eventually(lambda: servers.there("a.example.com") == {"192.0.2.7"}, "it is filled again")

        await servers.run(work)

    asyncio.run(main())


class Listener:
    """Listener that hears the answers that a test gives it."""

    def __init__(self, *_: int) -> None:
        self.heard = [Heard("10.77.0.1", said("early.example.org", "198.51.100.2", "192.0.2.20"))]
        self._ready = os.eventfd(1)

    def fileno(self) -> int:
        """Return a descriptor that is ready."""
        return self._ready

    def close(self) -> None:
        """End it."""
        os.close(self._ready)

    def read(self) -> Iterator[Heard]:
        """Yield what was heard."""
        while self.heard:
            yield self.heard.pop()


@pytest.fixture
def listener(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> Listener:
    """Return what the agent listens with."""
    made = Listener()
    monkeypatch.setattr(policy_names, "DnsAnswers", lambda *_: made)
    servers.names._logs = True
    return made


def test_nobody_is_heard_before_hosts_are_known(servers: Servers, listener: Listener) -> None:
    """Otherwise a name could have an address of a host for an hour, by an answer at the right moment."""
    slow = asyncio.Event()

    async def run(function: Callable[..., Any], *args: Any) -> Any:
        if function is underlay.every_address:
            await slow.wait()
        return function(*args)

    async def main() -> None:
        async def work() -> None:
            cast("Any", servers.names)._worker.run = run
            asyncio.get_running_loop().call_later(0.1, slow.set)
            await servers.names.follow(NAMES, FOUR)
            await eventually(lambda: servers.there("*.example.org"), "what was told is learnt")
            assert servers.there("*.example.org") == {"192.0.2.20"}
            assert not listener.heard

        await servers.run(work)

    asyncio.run(main())


def test_what_could_not_be_read_is_asked_again(servers: Servers, listener: Listener) -> None:
    """At the server that told it, if a policy means it: by TCP a container could make an answer look like any other."""
    cut = (Answer(0, name, A, 0, truncated=True) for name in ("x.example.org", "x.example.org", "y.net"))
    listener.heard = [Heard("10.77.0.9", one) for one in cut]

    async def main() -> None:
        async def work() -> None:
            await servers.names.follow(NAMES, FOUR)
            await eventually(lambda: servers.there("*.example.org") == {"192.0.2.7"}, "it is learnt from the server")
            assert servers.asked["10.77.0.9", "x.example.org"] == 1
            assert ("10.77.0.9", "y.net") not in servers.asked

        await servers.run(work)

    asyncio.run(main())


def test_only_so_many_are_asked_again_at_once(
    servers: Servers, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container could ask for any number of names whose server is silent."""
    asked: set[str] = set()

    async def silent(_server: str, name: str, _kind: int) -> Answer:
        asked.add(name)
        await asyncio.sleep(3600)
        return said(name)

    monkeypatch.setattr(policy_names, "WAIT", 0.01)
    monkeypatch.setattr(name_lookup, "ask", silent)
    many = (Answer(0, f"n{number}.example.org", A, 0, truncated=True) for number in range(200))
    listener.heard = [Heard("10.77.0.1", one) for one in many]

    async def main() -> None:
        async def work() -> None:
            await servers.names.follow(NAMES, FOUR)
            await eventually(lambda: not listener.heard, "all are heard")
            await asyncio.sleep(0.02)
            assert len(asked - {"a.example.com"}) == policy_names.AT_ONCE

        await servers.run(work)

    asyncio.run(main())


def test_the_names_of_policies_that_come_and_go_make_no_crowd(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only so many questions are under way while the server is silent; then each name is asked for."""
    ready = asyncio.Event()

    async def slow(server: str, name: str, _kind: int) -> Answer:
        servers.asked[server, name] += 1
        await ready.wait()
        return said(name, "192.0.2.7")

    monkeypatch.setattr(policy_names, "WAIT", 0)
    monkeypatch.setattr(name_lookup, "ask", slow)
    every = [f"n{number}.example.com" for number in range(200)]
    many = Regime([Policy(name="p", egress=(Rule(peers=(Peer(dns=tuple(every)),)),))])

    async def main() -> None:
        async def work() -> None:
            for _ in range(5):
                await servers.names.follow(many, FOUR)
                await servers.names.follow(Regime(), FOUR)
            await servers.names.follow(many, FOUR)
            assert len(servers.names._asking) <= policy_names.AT_ONCE
            assert len(servers.names._due) <= len(every)
            ready.set()
            await eventually(lambda: all(servers.there(name) for name in every), "all are asked for")

        await servers.run(work)

    asyncio.run(main())


def test_a_family_that_no_network_has_any_more_is_not_put(servers: Servers) -> None:
    """Its sets are gone: to put into them would fail, and keep all others from being filled."""

    async def main() -> None:
        async def work() -> None:
            await servers.names.follow(NAMES, frozenset({4, 6}))
            servers.told(Answer(0, "v.example.org", 28, 0, addresses=((b"\x20\1" + bytes(13) + b"\7", 60),)))
            await eventually(lambda: "2001::7" in {address for _, address in servers.kernel}, "it is put")
            await servers.names.follow(NAMES, FOUR)
            servers.kernel.clear()
            servers.names.look()
            await eventually(lambda: servers.there("a.example.com") == {"192.0.2.7"}, "the others are filled")
            assert "2001::7" not in {address for _, address in servers.kernel}

        await servers.run(work)

    asyncio.run(main())


def test_what_ends_too_soon_is_put_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed transaction may have moved an end: the address would be closed though its name still has it."""
    put: list[Timed] = []
    there = [Timed("s", prefix("192.0.2.1"), 20), Timed("s", prefix("192.0.2.2"), 298)]
    monkeypatch.setattr(policy_names, "netfilter_socket", io.BytesIO)
    monkeypatch.setattr(timed_elements, "read", lambda *_: there)
    monkeypatch.setattr(timed_elements, "put", lambda _netlink, _table, some: put.extend(some))
    wanted = [Timed("s", prefix(f"192.0.2.{last}"), 300) for last in (1, 2, 3)]
    policy_names._put_lacking(wanted)
    assert put == [wanted[0], wanted[2]]


def test_a_new_agent_goes_on_with_what_is_left(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of names with a wildcard nobody could tell it anything else."""
    servers.kernel[name_rules.named("*.example.org", 4), "192.0.2.9"] = 40
    servers.kernel[name_rules.formerly("*.example.org", 4), "192.0.2.10"] = 4000

    async def main() -> None:
        await servers.names.follow(NAMES, FOUR)
        (told,) = servers.names.told(["*.example.org"])
        assert [one.address for one in told.addresses] == ["192.0.2.9"]
        assert servers.known.by_address(past=True)["192.0.2.10"] == {"*.example.org"}
        await servers.names.stop()

    asyncio.run(main())
