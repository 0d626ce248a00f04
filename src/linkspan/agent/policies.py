"""Policies: their records in the store, and answers from the records alone: who can reach whom, and by which line."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Iterator, Mapping

import msgspec

from linkspan.agent.policy_enforcement import Enforcement, policed
from linkspan.cluster.allowances import Allowances
from linkspan.cluster.endpoint_records import EndpointRecords
from linkspan.cluster.hosts import Hosts
from linkspan.cluster.networks import Networks
from linkspan.core.addresses import prefix
from linkspan.core.errors import Conflict, Invalid, LinkspanError, NotFound, closest
from linkspan.core.event_log import EventLog
from linkspan.core.model import Allowance, Endpoint, Network
from linkspan.policy.judge import PROTOCOLS, Judge, Party, Probe, Verdict
from linkspan.policy.model import Case, End, Policy, Ports, Subject, checked, ports
from linkspan.store.compare_and_swap import TRIES
from linkspan.store.replica import Replica
from linkspan.store.request import MOST_BYTES, MOST_KEYS

OUTSIDE = "outside"
"""The word for every address in no pool."""
AT_ONCE = MOST_KEYS // 2
"""Policies that one transaction writes: each may raise a tombstone as well."""


class By(msgspec.Struct, frozen=True):
    """The policy and line that decide; of a network's default the line is 0."""

    policy: str
    line: int


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Whether one end may connect to the other, at which ports, and by what (None: no policy decides)."""

    allowed: bool
    ports: tuple[str, ...]
    by: By | None
    why: str


class Reacher(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who can connect to a container: a container of ``network`` on ``host``, or the outside."""

    name: str
    network: str
    host: str
    ports: tuple[str, ...]


class Applied(msgspec.Struct, frozen=True, kw_only=True):
    """What an apply changed, by names, and what is not as its author may think."""

    created: tuple[str, ...]
    changed: tuple[str, ...]
    same: tuple[str, ...]
    warnings: tuple[str, ...]


class Failure(msgspec.Struct, frozen=True, kw_only=True, rename={"source": "from", "target": "to"}):
    """A case whose answer is not the expected one."""

    source: str
    target: str
    port: str
    expected: str
    got: str
    by: By | None
    line: int


class Place(msgspec.Struct, frozen=True):
    """An end of a connection: how it is called, its network ("" outside) and host, and what the judge sees."""

    name: str
    network: str
    host: str
    party: Party


class Policies:
    """Changes the records of policies, and answers questions about them."""

    def __init__(
        self,
        replica: Replica,
        networks: Networks,
        allowances: Allowances,
        hosts: Hosts,
        endpoint_records: EndpointRecords,
        enforcement: Enforcement,
        event_log: EventLog,
    ) -> None:
        self._replica = replica
        self._networks = networks
        self._allowances = allowances
        self._hosts = hosts
        self._endpoint_records = endpoint_records
        self._enforcement = enforcement
        self._event_log = event_log

    # Records

    def all(self) -> list[Policy]:
        """Return all policies in the order in which they count."""
        return list(self._enforcement.recorded().policies)

    def get(self, name: str) -> Policy:
        """Return a policy. Raises NotFound."""
        if (found := self._replica.value(_key(name), Policy)) is None:
            known = [policy.name for policy in self.all()]
            raise NotFound(f"policy {name!r} does not exist", closest(name, known, "`linkspan policy list` shows them"))
        return found

    async def apply(self, policies: Collection[Policy]) -> Applied:
        """Record policies, new ones and changed ones, and return when this host enforces them.

        Raises Invalid or Conflict, before anything is recorded, for what some host could not enforce.
        """
        self._require_hosts("apply policies")
        for policy in policies:
            checked(policy)
            self._check_networks(policy)
        if len({policy.name for policy in policies}) < len(policies):
            raise Invalid("one policy is there twice", "give each its own name")
        created: list[str] = []
        changed: list[str] = []
        same: list[str] = []
        wanted: dict[str, Policy] = {}
        for policy in policies:
            known = self._replica.value(_key(policy.name), Policy)
            (created if known is None else same if known == policy else changed).append(policy.name)
            if known != policy:
                wanted[_key(policy.name)] = policy
        keys = list(wanted)
        for start in range(0, len(keys), AT_ONCE):
            await self._write({key: wanted[key] for key in keys[start : start + AT_ONCE]})
        for name in (*created, *changed):
            self._event_log.add("policy", f"policy {name} was applied", policy=name)
        await self._enforcement.enforce()
        warnings = [text for policy in policies for text in self.warnings(policy)]
        return Applied(
            created=tuple(created), changed=tuple(changed), same=tuple(same), warnings=tuple(dict.fromkeys(warnings))
        )

    async def _write(self, values: Mapping[str, Policy]) -> None:
        encoded = {key: self._replica.encoded(key, value) for key, value in values.items()}
        if sum(len(key) + len(value) for key, value in encoded.items()) > MOST_BYTES and len(values) > 1:
            first = dict(list(values.items())[: len(values) // 2])
            await self._write(first)
            await self._write({key: value for key, value in values.items() if key not in first})
            return
        for _ in range(TRIES):
            if await self._replica.write(values, unchanged={key: self._replica.known_revision(key) for key in values}):
                return
            for key in values:
                await self._current(key)
        raise Conflict("apply policies: others change them all the while", "try again")

    async def _current(self, key: str) -> None:
        try:
            await self._replica.revision(key)
        except NotFound:
            return

    async def delete(self, name: str) -> None:
        """Delete a policy, and return when this host does not enforce it any more. Raises NotFound."""
        self.get(name)
        await self._replica.write({}, deletes=[_key(name)])
        self._event_log.add("policy", f"policy {name} was deleted", policy=name)
        await self._enforcement.enforce()

    def require_default(self, network: Network) -> None:
        """Raise Invalid or Conflict if default-deny of a network could not be enforced."""
        self._require_hosts(f"network {network.name}")
        if why := _unenforced(network):
            raise Invalid(f"network {network.name}: {why}", _FIX)

    def _require_hosts(self, what: str) -> None:
        if old := self._lax():
            raise Conflict(
                f"{what}: the agent of host {', '.join(old)} is of a version that enforces no policy",
                "upgrade it first: linkspan upgrade",
            )

    def _lax(self) -> list[str]:
        """Return the names of the other hosts whose agents enforce no policy."""
        here = self._hosts.here.id
        return sorted(one.name or id_ for id_, one in self._hosts.all().items() if id_ != here and not one.enforces)

    def _check_networks(self, policy: Policy) -> None:
        for network in self._networks.all():
            if network.name in policy.select.networks and (why := _unenforced(network)):
                raise Invalid(f"policy {policy.name} selects network {network.name}: {why}", _FIX)

    def warnings(self, policy: Policy) -> Iterator[str]:
        """Yield what a policy does not do, though its author may think so."""
        for host in self._lax():  # it joined after the policy was applied
            yield f"host {host} enforces no policy: its agent is of an older version"
        known = {network.name: network for network in self._networks.every()}
        for name in policy.select.networks:
            if name not in known:
                yield f"policy {policy.name}: network {name} does not exist, so it selects nothing there"
        if not policy.select.networks:
            for network in known.values():
                if why := _unenforced(network):
                    yield f"policy {policy.name} does not count in network {network.name}: {why}"

    # Answers

    async def can(self, source: str, target: str, port: str = "") -> Answer:
        """Return whether a container, an address or the outside may connect to another one.

        Raises NotFound for a name that means nobody, and Invalid for a port that is none.
        """
        return self._answer(self._enforcement.recorded(), *await self._pair(End(name=source), End(name=target)), port)

    async def who_can(self, target: str, port: str = "") -> list[Reacher]:
        """Return who may connect to a container: containers of all hosts, and the outside."""
        judge = self._enforcement.recorded()
        places = await self._places(judge, End(name=target))
        found = []
        known: dict[Place, tuple[str, ...]] = {}

        async def ports_of(one: Place) -> tuple[str, ...]:
            """Return at which ports; most endpoints are like others, and answers take a millisecond."""
            party = one.party if judge.by_address else msgspec.structs.replace(one.party, address=None)
            like = Place("", one.network, "", party)
            if like not in known:
                await asyncio.sleep(0)
                answers = [self._answer(judge, one, place, port) for place in places]
                known[like] = tuple(dict.fromkeys(t for answer in answers if answer.allowed for t in answer.ports))
            return known[like]

        async for some in self._endpoint_records.everywhere():
            for endpoint in some:
                one = self._place(judge, endpoint)
                itself = any(place.party.address == one.party.address for place in places)
                if one.network and not itself and (reached := await ports_of(one)):
                    found.append(Reacher(name=one.name, network=one.network, host=one.host, ports=reached))
        if reached := await ports_of(Place(OUTSIDE, "", "", Party(None, outside=True))):
            found.append(Reacher(name=OUTSIDE, network="", host="", ports=reached))
        return found

    async def test(self, policies: Iterable[Policy], cases: Iterable[Case]) -> list[Failure]:
        """Return the cases that would fail if these policies were applied."""
        after = {policy.name: policy for policy in (*self.all(), *map(checked, policies))}
        judge = Judge(after.values(), self._enforcement.recorded().closed)
        failed = []
        for case in cases:
            try:
                answer = self._answer(judge, *await self._pair(case.source, case.target, judge), case.port)
            except LinkspanError as error:
                raise error.within(f"test at line {case.line}") from error
            got = "allow" if answer.allowed else "deny"
            if got != case.expect:
                ends = {"source": str(case.source), "target": str(case.target), "port": case.port}
                failed.append(Failure(**ends, expected=case.expect, got=got, by=answer.by, line=case.line))
        return failed

    async def _pair(self, source: End, target: End, judge: Judge | None = None) -> tuple[Place, Place]:
        """Return both ends; of containers in several networks the endpoints that meet in one, if there are any.

        Otherwise those whose networks may reach each other.
        """
        judge = judge or self._enforcement.recorded()
        sources, targets = await self._places(judge, source), await self._places(judge, target)
        pairs = [(one, other) for one in sources for other in targets]
        near = (pair for pair in pairs if pair[0].network == pair[1].network)
        allowed = (pair for pair in pairs if self._gates(pair[0].network, pair[1].network))
        return next(near, next(allowed, pairs[0]))

    async def _places(self, judge: Judge, end: End) -> list[Place]:
        if end.network:
            self._networks.get(end.network)
            chosen = judge.chosen(Subject("", end.network, "", end.labels))
            routed = not _unenforced(self._networks.get(end.network))
            return [Place(str(end), end.network, "", Party(None, chosen, policed=routed))]
        if end.name == OUTSIDE:
            return [Place(OUTSIDE, "", "", Party(None, outside=True))]
        try:
            address = prefix(end.name).single()
        except Invalid:
            address = None
        every = [] if address is None else [e async for some in self._endpoint_records.everywhere() for e in some]
        mine = [e for e in every if any(one.single() == address for one in e.prefixes)]
        if address is not None and not mine:
            outside = not any(pool.holds(address) for one in self._networks.all() for pool in one.prefixes)
            return [Place(address.address, "", "", Party(address, outside=outside))]
        return [self._place(judge, endpoint) for endpoint in mine or await self._endpoint_records.find(end.name)]

    def _place(self, judge: Judge, endpoint: Endpoint) -> Place:
        subject = Subject(endpoint.called, endpoint.network, endpoint.host, endpoint.labels)
        address = next((one.single() for one in endpoint.prefixes), None)
        party = Party(address, judge.chosen(subject), policed=policed(endpoint))
        return Place(endpoint.called, endpoint.network, endpoint.host, party)

    def _answer(self, judge: Judge, source: Place, target: Place, port: str) -> Answer:
        probe = _probe(port) if port else None
        gates = self._gates(source.network, target.network)
        if own := self._own(source, target):
            return Answer(allowed=True, ports=(str(_ports(probe)) if probe else "all",), by=None, why=own)
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
            probe = Probe(spans[0].protocol, spans[0].first) if spans else Probe("tcp", 1)
            names = tuple(map(str, spans))
            names = ("all",) if names == PROTOCOLS else names
        else:
            allowed = judge.verdict(source.party, target.party, probe).allowed
            names = (str(_ports(probe)),) if allowed else ()
        verdict = judge.verdict(source.party, target.party, probe)
        why = _why(verdict)
        if bare := [place.network for place in (source, target) if not place.party.policed]:
            why += f"; linkspan enforces no policy for containers of network {bare[0]}"
        return Answer(allowed=bool(names), ports=names, by=_by(verdict), why=why)

    def _own(self, source: Place, target: Place) -> str:
        """Return why packets between two ends pass no rule of policies: one is the other one's gateway; '' if not."""
        networks = {network.name: network for network in self._networks.all()}
        for one, other in ((source, target), (target, source)):
            if one.network in networks and not other.network and other.party.address is not None:
                gateways = {prefix(text).address for text in networks[one.network].gateways}
                if other.party.address.address in gateways:
                    return "it is the container's own host, which no policy is about"
        return ""

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


def _passes(gate: Allowance, probe: Probe | None) -> bool:
    return not gate.port or probe is None or (gate.protocol, gate.port) == (probe.protocol, probe.port)


def _probe(text: str) -> Probe:
    found = ports(text)
    if found.first != found.last or (not found.first and found.protocol != "icmp"):
        raise Invalid(f"{text!r} is not one port", "write 80/tcp, or icmp")
    return Probe(found.protocol, found.first)


def _ports(probe: Probe) -> Ports:
    return ports(f"{probe.port}/{probe.protocol}" if probe.port else probe.protocol)


def _by(verdict: Verdict) -> By | None:
    if verdict.network:
        return By(f"default of network {verdict.network}", 0)
    return By(verdict.policy, verdict.line) if verdict.policy else None


def _why(verdict: Verdict) -> str:
    does = "allows" if verdict.allowed else "refuses"
    if verdict.network:
        return f"no policy allows it, and network {verdict.network} is default-deny"
    if verdict.policy:
        return f"policy {verdict.policy} {does} it" + (f" (line {verdict.line})" if verdict.line else "")
    return "no policy is about it"


_FIX = "create a network with --opt mode=routed, or with a backend across hosts"


def _unenforced(network: Network) -> str:
    """Return why linkspan enforces no policy in a network, '' if it does."""
    if network.on_host:
        return "its containers have the host's own addresses, so no rule knows them"
    return "" if network.routed else "its containers are on a bridge, whose frames pass no rule of policies"


def _key(name: str) -> str:
    return f"policies/{name}"
