"""Readings of all policies, with the names that their chains and sets have in nftables."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Collection, Mapping

import msgspec

from linkspan.core.ruleset import TABLE
from linkspan.core.states.host import BridgeFilter, NftChain, NftElement, NftSet, State
from linkspan.policy import name_rules
from linkspan.policy.judge import Judge, Section
from linkspan.policy.model import Direction
from linkspan.policy.regime import Regime

_SHORT: dict[Direction, str] = {"ingress": "in", "egress": "out"}
KNOWN = {4: "policy_known4", 6: "policy_known6"}
"""By family: the set of all addresses of pools that somebody has."""
PORTS, RECEIVERS = "filtered_ports", "receivers"
"""Sets of the bridge family: ports of containers under ingress, and the addresses that each may get packets for."""
TALLIES = ("staged_ports", "staged_hosts")
"""The sets that count what staged policies would refuse: by both addresses, protocol and port; without a port.

The port of an ICMP request is its number (``core/icmp.py``).
"""
_SETS = ("chosen", "policy_known", "policed_", "watched_", *TALLIES, PORTS, RECEIVERS, *name_rules.SETS)
"""How the names of the sets of policies begin."""


class Reading(msgspec.Struct, frozen=True):
    """One reading of all policies, in chains of its own: what is enforced, or what is only counted.

    ``sets`` begins the names of the sets of addresses whose packets pass its chains. ``priority`` is that of egress;
    ingress follows.
    """

    judge: Judge
    name: str
    sets: str
    priority: int

    @property
    def enforces(self) -> bool:
        """True if it refuses anything."""
        return self.name == "policy"

    def chain(self, direction: Direction, family: int | str = "") -> str:
        """Return the name of a chain."""
        return f"{self.name}_{_SHORT[direction]}{family}"

    def of(self, section: Section, direction: Direction, family: int) -> str:
        """Return the name of the chain with a section's rules."""
        return f"{self.chain(direction, family)}_{digest_of(section.called)}"

    def otherwise(self, section: Section, direction: Direction, family: int) -> str:
        """Return the name of the chain that refuses what no rule of a section allows."""
        return f"{self.of(section, direction, family)}_no"

    def subjects(self, direction: Direction, family: int) -> str:
        """Return the name of the set of the endpoints that the chains of a direction are about."""
        return f"{self.sets}_{_SHORT[direction]}{family}"

    def ways(self, direction: Direction, family: int, after: str = "") -> str:
        """Return the name of the map that leads each of them to the chain of its policies: those ``after`` a tier."""
        return f"{self.sets}_by_{_SHORT[direction]}{family}{f'_{after}' if after else ''}"

    def ports(self, family: int, at: str = "") -> str:
        """Return the name of the set of the ports of containers on the host's network; ``at`` as in ``key_of``."""
        return f"{self.sets}_port{at}{family}"

    def port_ways(self, family: int, at: str = "", after: str = "") -> str:
        """Return the name of the map that leads from each of them to the chain of its policies, as in ``ways``."""
        return f"{self.sets}_by_port{at}{family}{f'_{after}' if after else ''}"

    def after(self, tier: str, direction: Direction, family: int) -> str:
        """Return the name of the chain to which rules lead that pass on what a tier does not decide."""
        return f"{self.chain(direction, family)}_after_{tier}"

    def passing(self, direction: Direction) -> list[str]:
        """Return the tiers with such rules."""
        return list(dict.fromkeys(section.tier for section in self.judge.sections[direction] if section.passes))

    def about(self, regime: Regime) -> Mapping[Direction, frozenset[str]]:
        """Return by direction the digests of the selectors whose endpoints it is about."""
        return self.judge.subjects if self.enforces else regime.watched

    @property
    def lost(self) -> tuple[str, ...]:
        """Return what becomes of a packet whose endpoint is under policy and has lost its way to the chains."""
        return ("drop",) if self.enforces else ()

    def refuses(self, family: int) -> str:
        """Return the verdict of a rule that refuses."""
        return f"counter goto {'policy_refused' if self.enforces else f'staged_refused{family}'}"


def readings(regime: Regime) -> list[Reading]:
    """Return the readings that have policies; after ``forward``, whose order does not matter: a drop is final.

    Staged policies come last: what the others refuse is not theirs.
    """
    every = Reading(regime.judge, "policy", "policed", 5), Reading(regime.trial, "staged", "watched", 7)
    return [reading for reading in every if reading.judge]


def sets_of_peers(regime: Regime, families: Collection[int]) -> frozenset[str]:
    """Return the names of the sets in which other hosts' endpoints may be."""
    chosen = (chosen_set(digest, family) for digest, family in itertools.product(regime.peers, families))
    return frozenset([*(KNOWN[family] for family in families), *chosen])


def ours(state: State) -> bool:
    """Return whether a set, chain or element belongs to policies."""
    match state:
        case NftElement(table=table, set=name) | NftSet(table=table, name=name):
            return table == TABLE and name.startswith(_SETS)
        case NftChain(table=table, name=name):
            return table == TABLE and name.startswith(("policy_", "staged_"))
    return isinstance(state, BridgeFilter)


@functools.lru_cache(4096)
def chosen_set(digest: str, family: int) -> str:
    """Return the name of the set of the addresses that a peer's selector selects."""
    return f"chosen{family}_{digest}"


@functools.lru_cache(4096)
def digest_of(name: str) -> str:
    """Return 128 bits of a chain's name: two contents with one name would be a conflict on every host."""
    return hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
