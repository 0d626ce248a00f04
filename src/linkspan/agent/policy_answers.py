"""Answers about policies from the records alone, without a packet: who can reach whom, and by which line."""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import msgspec

from linkspan.agent.named_addresses import NamedAddresses
from linkspan.agent.policy_coverage import hosted, policed, unenforceable
from linkspan.agent.policy_records import PolicyRecords
from linkspan.cluster.allowances import Allowances
from linkspan.cluster.endpoint_records import EndpointRecords
from linkspan.cluster.hosts import Hosts
from linkspan.cluster.leases import Leases
from linkspan.cluster.networks import Networks
from linkspan.core import icmp
from linkspan.core.addresses import FAMILIES, Prefix, prefix
from linkspan.core.dns_names import normal
from linkspan.core.errors import Invalid, LinkspanError, NotFound, Unavailable, first_of
from linkspan.core.model import Allowance, Endpoint, Host, Port
from linkspan.core.ports import families_of, is_fixed
from linkspan.policy import names
from linkspan.policy.judge import PROTOCOLS, By, Judge, Match, Party, Probe, Verdict, is_outside
from linkspan.policy.model import Case, End, Policy, Ports, Protocol, Subject, checked, ports
from linkspan.policy.review import Finding, Known, review

_BROADCAST = "255.255.255.255"
OUTSIDE = "outside"
"""The word for every address in no pool."""
_NAMED = 4
"""Addresses that a sentence names."""
_A_TURN = 256
"""Endpoints that are looked at before others use the loop."""
_OWN_HOST = "it is the container's own host, which no policy is about"
_INTERNAL = "network {} is internal: of a host it reaches only DNS and ICMP, whatever a policy says"
_DNS = 53


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to whether one end may connect to the other: at which ports, and by what (None: no policy decides)."""

    allowed: bool
    ports: tuple[str, ...]
    by: By | None
    why: str


class Reacher(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who can connect to a container: a container of ``network`` on ``host``, or the outside.

    ``to`` is the network in which it reaches the container, and ``address`` the container's first address there, "" if
    it has none: of a container in several networks each has its own ports.
    """

    name: str
    network: str
    host: str
    to: str
    address: str
    ports: tuple[str, ...]


class Failure(msgspec.Struct, frozen=True, kw_only=True, rename={"source": "from", "target": "to"}):
    """A case whose answer is not the expected one, or (``got`` is "unknown") has none, and ``why``."""

    source: str
    target: str
    port: str
    expected: str
    got: str
    by: By | None
    line: int
    file: str
    why: str = ""


class Place(msgspec.Struct, frozen=True):
    """An end of a connection: how it is called, its network ("" outside) and host, and what the judge sees.

    ``ports`` are those that a container publishes. ``hosted``: it is on its host's own network, and they are all that
    policies know of it; of one that need not exist any port counts. ``families`` are those of its addresses. ``at`` is
    what the judge sees of a DNS name, once for each address that this host knows of it.
    """

    name: str
    network: str
    host: str
    party: Party
    ports: tuple[Port, ...] = ()
    hosted: bool = False
    families: frozenset[int] = frozenset(FAMILIES)
    at: tuple[Party, ...] = ()


class PolicyAnswers:
    """Answers questions about policies, as they are recorded."""

    def __init__(
        self,
        networks: Networks,
        allowances: Allowances,
        endpoint_records: EndpointRecords,
        hosts: Hosts,
        leases: Leases,
        records: PolicyRecords,
        named: NamedAddresses,
    ) -> None:
        self._named = named
        self._hosts = hosts
        self._leases = leases
        self._networks = networks
        self._allowances = allowances
        self._endpoint_records = endpoint_records
        self._records = records

    @property
    def _judge(self) -> Judge:
        return self._records.regime().judge

    async def can(self, source: str, target: str, port: str = "") -> Answer:
        """Return whether a container, an address or the outside may connect to another one.

        Raises NotFound for a name that means nobody, and Invalid for a port that is none.
        """
        return self._answer(self._judge, *await self.pair(End(name=source), End(name=target)), port)

    async def who_can(self, target: str, port: str = "") -> list[Reacher]:
        """Return who may connect to a container: containers of all hosts, and the outside."""
        judge = self._judge
        places = await self._places(judge, End(name=target))
        found: list[Reacher] = []
        known: dict[tuple[Place, Place], tuple[str, ...]] = {}

        async def ports_of(one: Place, place: Place) -> tuple[str, ...]:
            """Return at which ports; most endpoints are like others, and answers take a millisecond."""
            party = one.party if judge.by_address else msgspec.structs.replace(one.party, address=None)
            near = one.host if place.hosted else ""
            like = place, Place("", one.network, near, party, hosted=one.hosted, families=one.families)
            if like not in known:
                await asyncio.sleep(0)
                answer = self._answer(judge, one, place, port)
                known[like] = answer.ports if answer.allowed else ()
            return known[like]

        async def note(one: Place) -> None:
            """Take in at which ports of each of the container's addresses."""
            for place in places:
                if reached := await ports_of(one, place):
                    ends = {"name": one.name, "network": one.network, "host": one.host}
                    found.append(Reacher(**ends, to=place.network, address=_at(place), ports=reached))

        async for some in self._endpoint_records.everywhere():
            for endpoint in some:
                one = self._place(judge, endpoint)
                if one.network and not any(_same(place, one) for place in places):
                    await note(one)
        await note(Place(OUTSIDE, "", "", Party(None, outside=True)))
        return found

    async def test(self, policies: Iterable[Policy], cases: Iterable[Case]) -> list[Failure]:
        """Return the cases that would fail if these policies were applied."""
        after = {policy.name: policy for policy in (*self._judge.policies, *map(checked, policies))}
        judge = Judge(after.values(), self._judge.closed)
        failed = []
        for case in cases:
            await asyncio.sleep(0)  # a file may have a hundred thousand, and an answer takes up to some milliseconds
            try:
                answer = self._answer(judge, *await self.pair(case.source, case.target, judge), case.port)
            except (NotFound, Invalid) as error:
                failed.append(unanswered(case, error))
                continue
            got = "allow" if answer.allowed else "deny"
            if got != case.expect:
                failed.append(failure(case, got, answer.by))
        return failed

    async def idle(self, policies: Iterable[Policy]) -> frozenset[str]:
        """Return the names of those of these policies that select no container.

        Not of those in whose networks there is no container yet: whoever applies policies first means it. None while
        the store does not answer.
        """
        judge, waiting, networks = Judge(policies), dict[str, set[str]](), set[str]()
        for policy in judge.policies:
            waiting.setdefault(policy.select.digest, set()).add(policy.name)
        try:
            async for some in self._endpoint_records.everywhere():
                for number, one in enumerate(some, 1):
                    networks.add(one.network)
                    for digest in judge.chosen(Subject(one.called, one.network, one.host, one.labels)):
                        waiting.pop(digest, None)
                    if not waiting:
                        return frozenset()
                    if number % _A_TURN == 0:
                        await asyncio.sleep(0)
        except Unavailable:
            return frozenset()
        left = set[str]().union(*waiting.values())
        return frozenset(
            one.name for one in judge.policies
            if one.name in left and (networks.intersection(one.select.networks) if one.select.networks else networks)
        )  # fmt: skip

    async def review(self, hosts: Mapping[str, Host], resolvers: Collection[Prefix]) -> list[Finding]:
        """Return what is odd about the policies, given all endpoints; none without policies.

        ``hosts`` are the other hosts, ``resolvers`` what the hosts' name servers ask.
        """
        judge = self._judge
        if not judge.policies:
            return []
        known = [
            Known(
                Subject(one.called, one.network, one.host, one.labels), tuple(at.single() for at in one.prefixes)
            )
            async for some in self._endpoint_records.everywhere()
            for one in some
        ]
        under = [prefix(text).single() for one in hosts.values() if one.underlay for text in one.underlay.addresses]
        askers = [Party(address, outside=True) for address in under]
        return await asyncio.to_thread(lambda: list(review(judge, known, resolvers, askers)))

    async def pair(self, source: End, target: End, judge: Judge | None = None) -> tuple[Place, Place]:
        """Return both ends; of containers in several networks the endpoints that meet in one, if there are any.

        Otherwise those whose networks may reach each other.
        """
        judge = judge or self._judge
        sources, targets = await self._places(judge, source), await self._places(judge, target)
        pairs = [(one, other) for one in sources for other in targets]
        near = (pair for pair in pairs if pair[0].network == pair[1].network)
        allowed = (pair for pair in pairs if self._gates(pair[0].network, pair[1].network))
        return next(near, next(allowed, pairs[0]))

    async def _places(self, judge: Judge, end: End) -> list[Place]:
        if end.network:
            network = self._networks.get(end.network)
            chosen = judge.chosen(Subject("", end.network, "", end.labels))
            party = Party(None, chosen, policed=not unenforceable(network))
            families = frozenset(pool.family for pool in network.prefixes) or frozenset(FAMILIES)
            return [Place(str(end), end.network, "", party, hosted=network.on_host, families=families)]
        if end.name == OUTSIDE:
            return [Place(OUTSIDE, "", "", Party(None, outside=True))]
        address = _address(end.name)
        if address is not None and _of_many(address):
            raise Invalid(
                f"{address.address} is the address of many, and policies decide about two ends",
                "name a container, or an address of one; docs/policy.md (Bridged networks) says who gets broadcasts",
            )
        every = [] if address is None else [e async for some in self._endpoint_records.everywhere() for e in some]
        mine = [e for e in every if any(one.single() == address for one in e.prefixes)]
        if address is not None and not mine:
            outside = is_outside(address, [pool for one in self._networks.all() for pool in one.prefixes])
            called = self._named.by_address().get(address.address, frozenset()) & judge.names
            return [Place(address.address, "", "", Party(address, outside=outside, names=called))]
        try:
            found = mine or await self._endpoint_records.find(end.name)
        except NotFound as error:
            if not (meant := names.meant(normal(end.name), judge.names)):
                raise self._nobody(end.name, error) from error
            # The first one is the narrowest: every address of the asked name is one of it.
            at = (
                Party(prefix(text), outside=True, names=some & judge.names)
                for text, some in sorted(self._named.by_address().items())
                if meant[0] in some
            )
            return [Place(end.name, "", "", Party(None, outside=True, names=frozenset(meant)), at=tuple(at))]
        return [self._place(judge, endpoint) for endpoint in found]

    def _nobody(self, name: str, error: NotFound) -> NotFound:
        """Return the error about an end that is no container, with what could be meant."""
        host = name.removeprefix("host:")
        if host in {one.name for one in self._hosts.all().values()}:
            own = next((one.address for one in self._underlay(host)), "its address")
            return NotFound(f"no container is called {name!r}: it is a host", f"give an address of it: {own}")
        if name != host or "." not in name.strip(".") or error.hint.startswith("did you mean"):
            return error
        what = f"no container is called {name!r}, and no policy has this DNS name"
        return NotFound(what, f"give an address, or the word {OUTSIDE}")

    def _place(self, judge: Judge, endpoint: Endpoint) -> Place:
        subject = Subject(endpoint.called, endpoint.network, endpoint.host, endpoint.labels)
        address = next((one.single() for one in endpoint.prefixes), None)
        party = Party(address, judge.chosen(subject), policed=self._is_policed(endpoint))
        families = frozenset(one.family for one in endpoint.prefixes) or frozenset(FAMILIES)
        return Place(
            endpoint.called, endpoint.network, endpoint.host, party, endpoint.ports, hosted(endpoint), families
        )

    def _is_policed(self, endpoint: Endpoint) -> bool:
        """Return whether policies about an endpoint count on its host, by what that says of its kernel."""
        if hosted(endpoint):
            return bool(endpoint.ports)
        if endpoint.host == self._hosts.here.name or not endpoint.host_ifname.startswith("lsp"):
            return policed(endpoint)
        return any(host.filters for host in self._hosts.all().values() if host.name == endpoint.host)

    def answer(self, source: Place, target: Place, port: str) -> Answer:
        """Return whether one end may connect to the other, by the recorded policies. Raises Invalid."""
        return self._answer(self._judge, source, target, port)

    def _answer(self, judge: Judge, source: Place, target: Place, port: str) -> Answer:
        """Return the answer about two ends; of a DNS name it is about all addresses that this host knows of it."""
        cidrs = judge.cidrs("ingress", target.party), judge.cidrs("egress", source.party)
        if alike := _alike(source, target, cidrs[0]):
            return _joined(judge, source, [(self._answer(judge, one, target, port), at) for one, at in alike])
        if alike := _alike(target, source, cidrs[1]):
            return _joined(judge, target, [(self._answer(judge, source, one, port), at) for one, at in alike])
        found = self._answer_about(judge, source, target, port)
        for named, which in zip((source, target), cidrs, strict=True):
            if which and named.party.names and named.party.address is None:
                unjudged = f"; this host knows no address of {named.name} for it, so rules with cidr were not judged"
                found = msgspec.structs.replace(found, why=found.why + unjudged)
        return found

    def _answer_about(self, judge: Judge, source: Place, target: Place, port: str) -> Answer:
        """Return the answer about two ends of which each has one address, or none that is known."""
        probe = _probe(port) if port else None
        if target.hosted:
            return self._answer_at_host(judge, source, target, probe)
        if source.hosted:
            if source.host and source.host == target.host:
                return Answer(allowed=True, ports=(_said(probe),), by=None, why=_OWN_HOST)
            source = _unknown(source)
        gates = self._gates(source.network, target.network)
        if self._is_own_host(target, source):
            return Answer(allowed=True, ports=(_said(probe),), by=None, why=_OWN_HOST)
        if self._is_own_host(source, target):
            return self._answer_of_host(source.network, probe)
        if inner := self._internal(source, target):
            why = f"network {inner} is internal: nothing passes between it and the outside, whatever a policy says"
            return Answer(allowed=False, ports=(), by=None, why=why)
        if not any(_passes(gate, probe) for gate in gates):
            pair = f"networks {source.network} and {target.network}"
            why = f"{pair} are isolated from each other (`linkspan network allow`), whatever a policy says"
            return Answer(allowed=False, ports=(), by=None, why=why)
        if probe is None:
            spans = judge.openings(source.party, target.party)
            if all(gate.port for gate in gates):
                wanted = [Probe(gate.protocol, gate.port) for gate in gates]
                spans = tuple(_ports(one) for one in wanted if judge.verdict(source.party, target.party, one).allowed)
            probe = _probe_of(spans)
            open_ = tuple(map(str, spans))
            open_ = ("all",) if open_ == PROTOCOLS else open_
        else:
            allowed = judge.verdict(source.party, target.party, probe).allowed
            open_ = (str(_ports(probe)),) if allowed else ()
        verdict = judge.verdict(source.party, target.party, probe)
        why = _why(verdict)
        if bare := [place.network for place in (source, target) if not place.party.policed]:
            why += f"; linkspan enforces no policy for containers of network {bare[0]}"
        if port and open_:
            why += "".join(_limits(source, target, probe))
        why += _by_name(judge, source, target)
        return Answer(allowed=bool(open_), ports=open_, by=verdict.by, why=why)

    def _answer_at_host(self, judge: Judge, source: Place, target: Place, probe: Probe | None) -> Answer:
        """Return whether one end may connect to a container on its host's own network, whose ports are the host's."""
        if source.hosted and source.host == target.host:
            return Answer(allowed=True, ports=(_said(probe),), by=None, why=_OWN_HOST)
        if source.hosted:
            source = _unknown(source)
        network = next((one for one in self._networks.all() if one.name == source.network), None)
        if network is not None and network.internal:
            return Answer(allowed=False, ports=(), by=None, why=_INTERNAL.format(network.name))
        published = [Probe(one.protocol, one.host_port) for one in target.ports]
        if not target.party.policed or (probe is not None and published and probe not in published):
            why = f"{target.name} publishes no {'port' if probe is None else _ports(probe)}, so no policy is about it"
            return Answer(allowed=True, ports=(_said(probe),), by=None, why=why)
        # Its own egress is enforced only where its packets are forwarded: by another host, whose address they get then.
        seen = msgspec.structs.replace(source.party, policed=False)
        elsewhere = source.host not in ("", target.host)
        if elsewhere and (network is None or network.masquerade):
            seen = self._as_host(source.host)

        def verdict(one: Probe) -> Verdict:
            out = judge.judged("egress", source.party, self._as_host(target.host), one) if elsewhere else None
            return out if out is not None and not out.allowed else judge.verdict(seen, target.party, one)

        asked = [probe] if probe is not None else published or [_probe_of(judge.openings(seen, target.party))]
        said = {one: verdict(one) for one in asked}
        names = tuple(str(_ports(one)) for one, found in said.items() if found.allowed)
        telling = next((found for found in said.values() if found.allowed or not names), Verdict(allowed=True))
        limits = (text for one, found in said.items() if found.allowed for text in _limits(source, target, one))
        return Answer(allowed=bool(names), ports=names, by=telling.by, why=_why(telling) + "".join(limits))

    def _as_host(self, name: str) -> Party:
        """Return a host as another one sees it: outside all networks, at its underlay address, if it has told one."""
        return Party(next(self._underlay(name), None), outside=True)

    def _underlay(self, name: str) -> Iterator[Prefix]:
        """Yield the underlay addresses that a host has told."""
        known = (one.underlay for one in self._hosts.all().values() if one.name == name)
        return (prefix(text).single() for one in known if one is not None for text in one.addresses)

    def address_for(self, source: Place, target: Place, wanted: Ports) -> str:
        """Return to which address one end's packets for a port of the other one go, "" if none is known.

        A container on its host's own network is reached at the address at which it publishes the port, or at any: from
        a container there at its gateway, from other hosts at the underlay.
        """
        if not target.hosted:
            return _at(target)
        mine = [one for one in target.ports if (one.protocol, one.host_port) == (wanted.protocol, wanted.first)]
        fixed = [prefix(one.host_ip).single() for one in mine if is_fixed(one)]
        families = {family for one in mine if not is_fixed(one) for family in families_of(one)}
        near = (one for one in self._networks.all() if one.name == source.network and source.host == target.host)
        gateways = (prefix(text).single() for one in near for text in one.gateways)
        every = (at for at in (*gateways, *self._underlay(target.host)) if at.family in families or not mine)
        usable = (at.address for at in (*every, *fixed) if at.family in source.families)
        return next((text for text in usable if not ipaddress.ip_address(text).is_loopback), "")

    def _is_own_host(self, place: Place, other: Place) -> bool:
        """Return whether ``other`` is the host of a container, ``place``: no packet between them passes a policy.

        A host has its addresses on the underlay, those of its own in networks, and the gateway of each container.
        """
        if not place.network or other.network or other.party.address is None:
            return False
        ids = (id_ for id_, host in self._hosts.all().items() if host.name == place.host)
        own = (text for id_ in ids for lease in self._leases.of_host(id_) for text in lease.addresses)
        gateways = (text for one in self._networks.all() if one.name == place.network for text in one.gateways)
        every = itertools.chain(map(prefix, itertools.chain(gateways, own)), self._underlay(place.host))
        return other.party.address.address in (at.address for at in every)

    def _answer_of_host(self, name: str, probe: Probe | None) -> Answer:
        """Return at which ports a container of a network reaches its own host, if no policy is about these."""
        if not any(network.internal for network in self._networks.all() if network.name == name):
            return Answer(allowed=True, ports=(_said(probe),), by=None, why=_OWN_HOST)
        if probe is None:
            open_: tuple[str, ...] = ("53/tcp", "53/udp", "icmp")
        else:
            asks = probe.port == _DNS and probe.protocol in ("tcp", "udp")
            open_ = (_said(probe),) if asks or probe.protocol == "icmp" else ()
        return Answer(allowed=bool(open_), ports=open_, by=None, why=_INTERNAL.format(name))

    def _internal(self, source: Place, target: Place) -> str:
        """Return the internal network between which and the outside nothing passes, '' if no end is in one."""
        internal = {network.name for network in self._networks.all() if network.internal}
        for one, other in ((source, target), (target, source)):
            if one.network in internal and not other.network and other.party.outside:
                return one.network
        return ""

    def _gates(self, source: str, target: str) -> list[Allowance]:
        """Return the ways by which one network may reach another one; the outside and a network itself need none."""
        if source == target or not source or not target:
            return [Allowance(source, target)]
        return [one for one in self._allowances.all() if (one.source, one.target) == (source, target)]


def failure(case: Case, got: str, by: By | None, *, port: str = "", why: str = "") -> Failure:
    """Return a case that fails, which was asked at ``port`` if it names none."""
    return Failure(
        source=str(case.source),
        target=str(case.target),
        port=case.port or port,
        expected=case.expect,
        got=got,
        by=by,
        line=case.line,
        file=case.file,
        why=why,
    )


def unanswered(case: Case, error: LinkspanError) -> Failure:
    """Return a case that has no answer: an end of it means nobody, for example."""
    return failure(case, "unknown", None, why="; ".join(filter(None, (error.message, error.hint))))


def _same(one: Place, other: Place) -> bool:
    """Return whether two places are one container's."""
    if one.party.address is None:
        return (one.name, one.host, one.hosted) == (other.name, other.host, other.hosted)
    return one.party.address == other.party.address


def _unknown(source: Place) -> Place:
    """Return a container on its host's own network as its packets show it: nobody that a selector selects."""
    return Place(source.name, "", source.host, Party(None))


def _probe_of(spans: Sequence[Ports]) -> Probe:
    """Return one of what is open. All ports may be a rule's span of them, which a packet without a port is not in."""
    first = spans[0] if spans else Ports("tcp")
    return Probe(first.protocol, first.first or (1 if first.protocol != "icmp" else 0))


def _said(probe: Probe | None) -> str:
    return str(_ports(probe)) if probe else "all"


def _address(text: str) -> Prefix | None:
    """Return the address that an end is, None if it is none. Raises Invalid for a prefix of several addresses."""
    try:
        found = prefix(text)
    except Invalid:
        return None
    if found != found.single():
        hint = f"give one address, for example {found.address}: others of the range may get another answer"
        raise Invalid(f"{text} is a range, and policies decide about two ends", hint)
    return found


def _of_many(address: Prefix) -> bool:
    return address.address == _BROADCAST or ipaddress.ip_address(address.address).is_multicast


def _limits(source: Place, target: Place, probe: Probe) -> Iterator[str]:
    """Yield by which published ports of a container somebody outside does not come in, though policies allow it."""
    at = source.party.address
    for one in target.ports if source.party.outside else ():
        inside = at is not None and any(prefix(cidr).holds(at) for cidr in one.sources)
        if one.sources and not inside and probe == Probe(one.protocol, one.host_port if target.hosted else one.port):
            yield f"; only {', '.join(one.sources)} may come in by port {one.host_port}/{one.protocol} of the host"


def _by_name(judge: Judge, source: Place, target: Place) -> str:
    """Return what an answer about an address outside rests on, if a policy lets the source out by DNS names."""
    if target.network or judge.askers.isdisjoint(source.party.chosen or ()):
        return ""
    if target.name != _at(target):  # asked by its name, which is said with all of its addresses
        return "" if target.party.names else "; by DNS name it may reach addresses that records do not have"
    if target.party.names:
        return f"; on this host {', '.join(sorted(target.party.names))} has this address now"
    return "; on this host no DNS name of its policies has this address now"


def _at(place: Place) -> str:
    address = place.party.address
    return "" if address is None else address.address


def _alike(named: Place, other: Place, cidrs: Collection[Match]) -> list[tuple[Place, list[str]]]:
    """Return a DNS name at one of its addresses for all those that get the same answer, and these addresses.

    They are those that the other end, about which ``cidrs`` are, can use; there are none of any end but a DNS name. A
    name may have thousands, and an answer takes a millisecond.
    """
    found: dict[tuple[object, ...], list[Party]] = {}
    for one in named.at:
        if (at := one.address) is not None and at.family in other.families:
            fits = tuple(cidr.fits(one) for cidr in cidrs)
            limits = tuple(prefix(cidr).holds(at) for port in other.ports for cidr in port.sources)
            found.setdefault((one.names, fits, limits), []).append(one)
    return [
        (msgspec.structs.replace(named, party=some[0], at=()), [one.address.address for one in some if one.address])
        for some in found.values()
    ]


def _joined(judge: Judge, named: Place, answers: list[tuple[Answer, list[str]]]) -> Answer:
    """Return the answer about a DNS name, from those about its addresses: it allows what each of them allows."""
    open_ = functools.reduce(_both, (one.ports for one, _ in answers))
    answers.sort(key=lambda one: one[0].allowed)
    whys: dict[str, list[str]] = {}
    for one, some in answers:
        whys.setdefault(one.why, []).extend(some)
    called = next(iter(names.meant(normal(named.name), judge.names)), named.name)  # policies may have changed since
    if len(whys) == 1:
        why = "".join(f"{text}; on this host {called} has {first_of(some, _NAMED)} now" for text, some in whys.items())
    else:
        said = "; ".join(f"at {first_of(some, _NAMED)}: {text}" for text, some in whys.items())
        why = f"{said}; on this host {called} has these addresses now"
    return Answer(allowed=bool(open_), ports=open_, by=answers[0][0].by, why=why)


def _both(some: tuple[str, ...], others: tuple[str, ...]) -> tuple[str, ...]:
    """Return the ports that are in both of two answers."""
    if some == others:
        return some
    every = [[ports(text) for text in (PROTOCOLS if one == ("all",) else one)] for one in (some, others)]
    return tuple(str(both) for one, other in itertools.product(*every) if (both := _shared(one, other)) is not None)


def _shared(one: Ports, other: Ports) -> Ports | None:
    if one.protocol != other.protocol:
        return None
    if not one.first or not other.first:
        return other if not one.first else one
    first, last = max(one.first, other.first), min(one.last, other.last)
    return Ports(one.protocol, first, last) if first <= last else None


def _passes(gate: Allowance, probe: Probe | None) -> bool:
    return not gate.port or probe is None or (gate.protocol, gate.port) == (probe.protocol, probe.port)


def _probe(text: str) -> Probe:
    """Return what a port means in a question: icmp alone is a ping. Raises Invalid."""
    found = ports(text)
    if found == Ports("icmp"):
        return Probe("icmp", icmp.ECHO)
    if found.first != found.last or not found.first:
        raise Invalid(f"{text!r} is not one port", "write 80/tcp, or icmp")
    return Probe(found.protocol, found.first)


def _ports(probe: Probe) -> Ports:
    return Ports(msgspec.convert(probe.protocol, Protocol), probe.port, probe.port)


def _why(verdict: Verdict) -> str:
    does = "allows" if verdict.allowed else "refuses"
    if verdict.network:
        return f"no policy allows it, and network {verdict.network} is default-deny"
    if verdict.policy:
        # Which end's rules refuse it says which container's policy to look at; what is allowed, both ends allow.
        where: list[str] = [verdict.direction] if verdict.direction and not verdict.allowed else []
        where += [f"line {verdict.line}"] if verdict.line else []
        return f"policy {verdict.policy} {does} it" + (f" ({', '.join(where)})" if where else "")
    return "no policy is about it"
