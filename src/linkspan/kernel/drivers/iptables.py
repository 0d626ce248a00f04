"""iptables: two rules in another program's chain, so that Docker's or a firewall's DROP spares our pools.

A ``drop`` in any base chain of a hook is final: no accept in a table of ours can overrule it. So if another
program's FORWARD chain exists (or DOCKER-USER, which Docker keeps for others' rules and calls first), our
rules are at its head, recognised by their comment. There may be two such tables, nftables' and the legacy
one, and both see every packet: the rules are added to each table that has the chain. The driver never makes a
table or a chain.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from linkspan.core.addresses import FAMILIES, Prefix
from linkspan.core.driver_contract import Support
from linkspan.core.errors import LinkspanError, NotFound
from linkspan.core.kinds import Event, Kind, Sort
from linkspan.core.shell import Shell
from linkspan.core.states.host import HOST, ForwardAccept, Key, State
from linkspan.kernel.local_host import LocalHost
from linkspan.kernel.probe import foreign_chains
from linkspan.kernel.probe.iptables_rules import (
    CHAINS,
    COMMENT,
    WAIT,
    command_of,
    legacy_rules,
    listed,
    pool_of,
    run,
)

IN_PART = " (in part)"
"""Suffix of the chain's name in an observed state with only some of our rules. It is never desired,
so it is deleted; a put of the whole in the same pass comes first, and then the delete does nothing."""


class Place(msgspec.Struct, frozen=True):
    """A chain that exists, and the command that reaches it."""

    family: int
    chain: str
    command: str
    nft: bool


def places() -> list[Place]:
    """Return the chains of this namespace's iptables that could have our rules."""
    filters = foreign_chains.nft_chains()
    found = []
    for family in FAMILIES:
        there = foreign_chains.of_iptables(filters, family)
        if there and (command := command_of(family, "nft")):
            found += [Place(family, chain, command, nft=True) for chain in CHAINS if chain in there]
        if rules := legacy_rules(family):
            command = command_of(family, "legacy")
            names = {words[1] for words in rules}
            found += [Place(family, chain, command, nft=False) for chain in CHAINS if chain in names]
    return found


def _marked(place: Place) -> bool:
    """Return whether any rule of ours may exist, by one query of the kernel, which saves starting a process."""
    if not place.nft:
        return True
    return any(COMMENT.encode() in rule for rule in foreign_chains.nft_rules(place.family, place.chain))


def _pair(pool: Prefix) -> list[list[str]]:
    """Return the two rules as ``iptables -S`` prints them."""
    mark = ["-m", "comment", "--comment", f"{COMMENT}{pool}", "-j", "ACCEPT"]
    return [[side, str(pool), *mark] for side in ("-s", "-d")]


def _ours(place: Place) -> dict[Prefix, list[list[str]]]:
    """Return our rules in a place, without ``-A CHAIN``, by pool."""
    found: dict[Prefix, list[list[str]]] = {}
    for words in listed(place.command, place.chain):
        if words[:1] == ["-A"] and (pool := pool_of(words)):
            found.setdefault(pool, []).append(words[2:])
    return found


class IptablesDriver:
    """Adds and removes our pair of rules in each chain that decides on forwarding."""

    def probe(self) -> Support:
        """Return whether the command exists; it is needed only if another program uses it."""
        if any(command_of(family, variant) for family in FAMILIES for variant in ("nft", "legacy")):
            return Support("kernel")
        return Support("", "iptables is not installed; it is needed only if Docker or a firewall uses it")

    def observe(self, netns: int) -> Iterable[State]:
        """Yield the pools of which every place has both rules, and, as IN_PART, those with only some of them."""
        if netns != HOST:
            return []
        return [
            ForwardAccept(chain if whole else chain + IN_PART, pool)
            for (chain, pool), whole in self._present(places()).items()
        ]

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Insert missing rules at the chain's head; delete those with our comment."""
        errors: dict[Key, LinkspanError] = {}
        try:
            there = places()
        except LinkspanError as error:
            return {state.key: error for state in (*put, *delete)}
        for states, act in ((put, self._put), (delete, self._delete)):
            for state in states:
                assert isinstance(state, ForwardAccept)
                chain = state.chain.removesuffix(IN_PART)
                try:
                    act(state, [p for p in there if (p.family, p.chain) == (state.prefix.family, chain)])
                except LinkspanError as error:
                    errors[state.key] = error
        return errors

    def _present(self, there: Sequence[Place]) -> dict[tuple[str, Prefix], bool]:
        """Return for each pool with a rule of ours whether all places of its chain have both."""
        found = {}
        rules = {place: _ours(place) for place in there if _marked(place)}
        for place, pools in rules.items():
            for pool in pools:
                peers = [p for p in there if (p.family, p.chain) == (place.family, place.chain)]
                whole = all(rule in rules.get(p, {}).get(pool, []) for p in peers for rule in _pair(pool))
                found[place.chain, pool] = whole
        return found

    def _put(self, state: ForwardAccept, there: Sequence[Place]) -> None:
        if not there:
            raise NotFound(f"accept forwarding for {state.prefix}: chain {state.chain} is gone")
        for place in there:
            ours = _ours(place).get(state.prefix, [])
            for rule in _pair(state.prefix):
                if rule not in ours:
                    run(place.command, "-w", WAIT, "-I", place.chain, "1", *rule)

    def _delete(self, state: ForwardAccept, there: Sequence[Place]) -> None:
        if state.chain.endswith(IN_PART):
            whole = self._present(there).get((state.chain.removesuffix(IN_PART), state.prefix))
            if whole:
                return  # a put of the same pass has repaired it
        for place in there:
            for rule in _ours(place).get(state.prefix, []):
                run(place.command, "-w", WAIT, "-D", place.chain, *rule)


def driver(_host: LocalHost) -> IptablesDriver:
    """Return the driver of other programs' iptables chains."""
    return IptablesDriver()


def _add(state: ForwardAccept, _shell: Shell) -> tuple[str, ...]:
    tables = "iptables" if state.prefix.family == 4 else "ip6tables"
    comment = shlex.quote(f"{COMMENT}{state.prefix}")
    chain = shlex.quote(state.chain)
    return tuple(
        f"{tables} -w -I {chain} 1 {side} {state.prefix} -m comment --comment {comment} -j ACCEPT"
        for side in ("-s", "-d")
    )


KINDS = (
    Kind(
        state=ForwardAccept,
        rank=30,
        driver=driver,
        known_by="the comment of the rules",
        purpose="another program's firewall would drop forwarded packets",
        sort=Sort.RULE,
        commands=_add,
        events=frozenset({Event.NFT}),
    ),
)
