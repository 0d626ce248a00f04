"""Policies: their records in the store, the enforced ones and the staged ones."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Iterator, Mapping

import msgspec

from linkspan.agent.policy_coverage import unenforceable
from linkspan.agent.policy_enforcement import Enforcement
from linkspan.agent.policy_names import PolicyNames
from linkspan.agent.policy_records import PolicyRecords
from linkspan.cluster.hosts import Hosts
from linkspan.cluster.networks import Networks
from linkspan.core import fast_path
from linkspan.core.dns_names import domains
from linkspan.core.errors import Conflict, Invalid, NotFound, closest, first_of
from linkspan.core.event_log import EventLog
from linkspan.core.model import Network
from linkspan.kernel.drivers import bridge_filters
from linkspan.policy.model import DIRECTIONS, Policy, checked
from linkspan.store.compare_and_swap import TRIES
from linkspan.store.replica import Replica
from linkspan.store.request import MOST_BYTES, MOST_KEYS

_SHOWN = 4
"""Hosts, or policies, that a sentence names."""
AT_ONCE = MOST_KEYS // 4
"""Policies that one transaction writes: each may delete its staged version, and raise tombstones as well."""


class Applied(msgspec.Struct, frozen=True, kw_only=True):
    """Result of an apply: the names of what it changed, and what is not as its author may think."""

    created: tuple[str, ...]
    changed: tuple[str, ...]
    same: tuple[str, ...]
    warnings: tuple[str, ...]


class Policies:
    """Changes the records of policies: ``policies/NAME``, and ``staged/NAME`` for one that is only counted."""

    def __init__(
        self,
        replica: Replica,
        records: PolicyRecords,
        networks: Networks,
        hosts: Hosts,
        enforcement: Enforcement,
        names: PolicyNames,
        event_log: EventLog,
    ) -> None:
        self._replica = replica
        self._records = records
        self._networks = networks
        self._hosts = hosts
        self._enforcement = enforcement
        self._names = names
        self._event_log = event_log

    def all(self) -> list[Policy]:
        """Return all policies in the order in which they count."""
        return list(self._records.regime().judge.policies)

    def get(self, name: str) -> Policy:
        """Return a policy. Raises NotFound."""
        if (found := self._replica.value(_key(name), Policy)) is None:
            known = [policy.name for policy in self.all()]
            if self._is_staged(name):
                hint = f"it is staged: `linkspan policy show --staged {name}`, or `linkspan policy enforce {name}`"
                raise NotFound(f"policy {name!r} is not enforced", hint, records=_key(name))
            hint = closest(name, known, "`linkspan policy list` shows them")
            raise NotFound(f"policy {name!r} does not exist", hint, records=_key(name))
        return found

    def staged(self) -> list[Policy]:
        """Return the staged policies, by name."""
        return list(self._records.regime().staged)

    def get_staged(self, name: str) -> Policy:
        """Return a staged policy. Raises NotFound."""
        if (found := self._replica.value(_key(name, staged=True), Policy)) is None:
            known = [policy.name for policy in self.staged()]
            hint = closest(name, known, "`linkspan policy staged` shows them")
            raise NotFound(f"policy {name!r} is not staged", hint, records=_key(name, staged=True))
        return found

    async def apply(
        self, policies: Collection[Policy], *, staged: bool = False, only_if: Mapping[str, int] | None = None
    ) -> Applied:
        """Record policies, new ones and changed ones, and return when this host enforces them, or counts for them.

        A policy that is enforced is not staged any more. Raises Invalid or Conflict, before anything is recorded, for
        what some host could not enforce, and if a record of ``only_if`` has not this revision any more.
        """
        self._require_hosts("apply policies")
        for policy in policies:
            await asyncio.sleep(0)  # there may be thousands
            checked(policy)
            self._check_networks(policy)
            self._check_agents(policy)
        if len({policy.name for policy in policies}) < len(policies):
            raise Invalid("one policy is there twice", "give each its own name")
        found: dict[str, list[str]] = {"created": [], "changed": [], "same": []}
        wanted: dict[str, Policy] = {}
        coming = [] if staged else [policy for policy in policies if self._is_coming(policy)]
        for policy in policies:
            key = _key(policy.name, staged=staged)
            known = self._replica.value(key, Policy)
            done = known == policy and (staged or not self._is_staged(policy.name))
            found["same" if done else "created" if known is None else "changed"].append(policy.name)
            if not done:
                wanted[key] = policy
        keys = list(wanted)
        for start in range(0, len(keys), AT_ONCE):
            await self._write({key: wanted[key] for key in keys[start : start + AT_ONCE]}, only_if or {})
        for policy in wanted.values():
            does = "staged" if staged else "applied"
            self._event_log.add("policy", f"policy {policy.name} was {does}", policy=policy.name)
        before = self._enforcement.filtered()
        await self._enforcement.enforce()
        warnings = [text for policy in policies for text in self.warnings(policy)]
        if not staged:
            warnings += self.silent() if wanted else ()
            warnings += self._untracked(self._enforcement.filtered() - before)
            warnings += self._off_the_path(coming)
        return Applied(
            **{word: tuple(names) for word, names in found.items()}, warnings=tuple(dict.fromkeys(warnings))
        )

    def _untracked(self, bridges: Collection[str]) -> Iterator[str]:
        """Yield what happens to open connections of networks whose frames no rule has seen until now."""
        for network in self._networks.all():
            if not network.routed and network.bridge in bridges:
                yield (
                    f"network {network.name}: open connections with containers under policies end with their next "
                    "packet, also those that are allowed, because no rule has seen them until now; next time, "
                    "`linkspan policy apply --stage` a minute earlier keeps them"
                )

    def _off_the_path(self, coming: Iterable[Policy]) -> Iterator[str]:
        """Yield what happens to open connections of containers that ``coming`` policies take off the fast path."""
        for network in self._networks.all():
            about = (one.select.networks for one in coming)
            if fast_path.is_fast(network) and any(not names or network.name in names for names in about):
                yield (
                    f"network {network.name}: TCP connections that containers under these policies have open on the "
                    "fast path end with their next packet, also those that are allowed, because nothing has tracked "
                    "them until now; next time, `linkspan policy apply --stage` a minute earlier keeps those that are "
                    "allowed whichever end began them"
                )

    async def _write(self, values: Mapping[str, Policy], only_if: Mapping[str, int]) -> None:
        """Write policies; those that are enforced are not staged any more, in the same transaction."""
        encoded = {key: self._replica.encoded(key, value) for key, value in values.items()}
        if sum(len(key) + len(value) for key, value in encoded.items()) > MOST_BYTES and len(values) > 1:
            first = dict(list(values.items())[: len(values) // 2])
            await self._write(first, only_if)
            await self._write({key: value for key, value in values.items() if key not in first}, only_if)
            return
        for _ in range(TRIES):
            enforced = (value.name for key, value in values.items() if not key.startswith(STAGED))
            over = [_key(name, staged=True) for name in enforced if self._is_staged(name)]
            unchanged = {key: self._replica.known_revision(key) for key in (*values, *over)}
            if await self._replica.write(values, deletes=over, unchanged={**unchanged, **only_if}):
                return
            for key in (*values, *over):
                await self._current(key)
            for key, revision in only_if.items():
                if self._replica.known_revision(key) != revision:
                    name = key.removeprefix(STAGED)
                    raise Conflict(f"policy {name} was staged again meanwhile", "`linkspan policy staged` shows it")
        raise Conflict("apply policies: others change them all the while", "try again")

    def _is_coming(self, policy: Policy) -> bool:
        """Return whether a policy selects others than its enforced and its staged version have taken off the path."""
        known = (self._replica.value(_key(policy.name, staged=staged), Policy) for staged in (False, True))
        return not any(one is not None and one.select == policy.select for one in known)

    def _is_staged(self, name: str) -> bool:
        return self._replica.value(_key(name, staged=True), Policy) is not None

    async def _current(self, key: str) -> None:
        try:
            await self._replica.revision(key)
        except NotFound:
            return

    async def enforce(self, name: str) -> Applied:
        """Enforce a staged policy, and return when this host does. Raises NotFound, and what ``apply`` raises.

        If another version is staged meanwhile, neither is enforced.
        """
        key = _key(name, staged=True)
        return await self.apply([self.get_staged(name)], only_if={key: self._replica.known_revision(key)})

    async def delete(self, name: str, *, staged: bool = False) -> None:
        """Delete a policy with its staged version, or this one alone, and return when this host does without them.

        Raises NotFound.
        """
        keys = [_key(name, staged=True), *([] if staged else [_key(name)])]
        keys = [key for key in keys if self._replica.value(key, Policy) is not None]
        if not keys:
            self.get_staged(name) if staged else self.get(name)
        await self._replica.write({}, deletes=keys)
        self._event_log.add("policy", f"policy {name} was {'unstaged' if staged else 'deleted'}", policy=name)
        await self._enforcement.enforce()

    def silent(self) -> list[str]:
        """Return a sentence about the hosts whose agents do not run, if there are any: what changes now waits there."""
        found = sorted(one.name or id_ for id_, one in self._hosts.all().items() if self._hosts.lives(id_) is False)
        if not found:
            return []
        names = first_of(found, _SHOWN)
        if len(found) == 1:
            return [f"host {names} is silent: until its agent runs again, it enforces what was recorded before"]
        return [f"hosts {names} are silent: until their agents run again, they enforce what was recorded before"]

    def require_default(self, network: Network) -> None:
        """Raise Invalid or Conflict if default-deny of a network could not be enforced."""
        self._require_hosts(f"network {network.name}")
        if why := unenforceable(network):
            raise Invalid(f"network {network.name}: {why}", _fix(network))

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

    def _untiered(self, policy: Policy) -> list[str]:
        """Return the names of the other hosts whose agents enforce policies, and do not understand this one."""
        hosted = {network.name for network in self._networks.all() if network.on_host}
        if not policy.is_of_tiers and hosted.isdisjoint(policy.select.networks):
            return []
        others = (one for id_, one in self._hosts.all().items() if id_ != self._hosts.here.id)
        return sorted(one.name or one.id for one in others if one.enforces and not one.tiers)

    def _nameless(self, policy: Policy) -> list[str]:
        """Return the names of the other hosts whose agents enforce policies, and know no DNS names in them."""
        if not policy.names:
            return []
        others = (one for id_, one in self._hosts.all().items() if id_ != self._hosts.here.id)
        return sorted(one.name or one.id for one in others if one.enforces and not one.dns_peers)

    def _check_agents(self, policy: Policy) -> None:
        if old := self._nameless(policy):
            raise Conflict(
                f"policy {policy.name}: the agent of host {', '.join(old)} is of a version that knows no DNS names in "
                "policies",
                "upgrade it first: linkspan upgrade",
            )
        if old := self._untiered(policy):
            raise Conflict(
                f"policy {policy.name}: the agent of host {', '.join(old)} is of a version that knows neither tiers of "
                "policies, nor requests of ICMP in them, nor ports of containers on the host's own network",
                "upgrade it first: linkspan upgrade",
            )

    def _check_networks(self, policy: Policy) -> None:
        for network in self._networks.all():
            if network.name in policy.select.networks and (why := _unable(policy, network)):
                raise Invalid(f"policy {policy.name} selects network {network.name}: {why}", _fix(network))

    def about(self, network: str) -> list[str]:
        """Return a sentence about the policies, enforced or staged, that name a network, if there are any."""
        names = sorted({one.name for one in (*self.all(), *self.staged()) if network in _named(one)})
        if not names:
            return []
        word, name = ("policy", "names") if len(names) == 1 else ("policies", "name")
        return [f"{word} {first_of(names, _SHOWN)} {name} network {network}, which does not exist now"]

    def warnings(self, policy: Policy) -> Iterator[str]:
        """Yield what a policy does not do, though its author may think so."""
        for host in self._lax():  # it joined after the policy was applied
            yield f"host {host} enforces no policy: its agent is of an older version"
        for host in dict.fromkeys((*self._untiered(policy), *self._nameless(policy))):
            yield f"policy {policy.name}: host {host} does not enforce it as it is: its agent is of an older version"
        for one in self._names.told(sorted(policy.names)):
            if one.problem:
                yield f"policy {policy.name}: DNS name {one.name} leads nowhere from this host: {one.problem}"
        known = {network.name: network for network in self._networks.every()}
        yield from _own_names(policy, known.values())
        for name in policy.select.networks:
            if name not in known:
                yield f"policy {policy.name}: network {name} does not exist, so it selects nothing there"
        yield from _missing_peers(policy, known.keys(), self._hosts)
        if not policy.select.networks:
            for network in known.values():
                if why := _unable(policy, network):
                    yield f"policy {policy.name} does not count in network {network.name}: {why}"


def _named(policy: Policy) -> set[str]:
    """Return the networks that a policy names: those that it selects, and those of its peers."""
    peers = (peer.select for rule in policy.every_rule for peer in rule.peers if peer.select is not None)
    return {name for selector in (policy.select, *peers) for name in selector.networks}


def _missing_peers(policy: Policy, networks: Collection[str], hosts: Hosts) -> Iterator[str]:
    """Yield which networks and hosts peers name that do not exist: nobody is there."""
    for rule in policy.every_rule:
        where = f"policy {policy.name}" + (f" line {rule.line}" if rule.line else "")
        for select in (peer.select for peer in rule.peers if peer.select is not None):
            yield from (f"{where}: network {name} does not exist" for name in select.networks if name not in networks)
            if select.hosts:  # few policies name any, and a cluster may have a thousand
                known = {hosts.here.name, *hosts.names().values()}
                yield from (f"{where}: host {name} does not exist" for name in select.hosts if name not in known)


def _own_names(policy: Policy, networks: Iterable[Network]) -> Iterator[str]:
    """Yield the DNS names of a policy that are names of containers, whose addresses are never outside."""
    own = tuple(f".{domain}" for network in networks for domain in domains(network))
    for name in sorted(policy.names):
        if name.endswith(own):
            yield f"policy {policy.name}: {name} is a name of containers, and no DNS name opens these: write labels"


def _unable(policy: Policy, network: Network) -> str:
    """Return why a direction of a policy is not enforced in a network, '' if all are."""
    every = (unenforceable(network, one) for one in DIRECTIONS if policy.rules(one) is not None)
    return next(filter(None, every), "")


def _fix(network: Network) -> str:
    if network.on_host:
        return "leave egress out, or put the containers on a network of another backend"
    return bridge_filters.FIX


STAGED = "staged/"
"""Prefix of the records of staged policies."""


def _key(name: str, *, staged: bool = False) -> str:
    return f"{STAGED}{name}" if staged else f"policies/{name}"
