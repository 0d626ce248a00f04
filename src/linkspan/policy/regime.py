"""Regime: the policies that are enforced, and the same with the staged ones in their place, which are only counted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property

from linkspan.core.states.host import NftChain
from linkspan.policy.judge import Judge
from linkspan.policy.model import DIRECTIONS, Direction, Policy, Selector, Subject


class Regime:
    """All policies of a cluster at one moment. It does not change."""

    def __init__(
        self,
        policies: Iterable[Policy] = (),
        staged: Iterable[Policy] = (),
        closed: Iterable[str] = (),
        before: Regime | None = None,
    ) -> None:
        """Take the enforced policies, the staged ones, and the networks with default-deny as ``closed``.

        A staged policy takes the place of the enforced one with its name. What the regime ``before`` has read of a
        policy is not read again.
        """
        known = {policy.name: policy for policy in policies}
        self.staged = tuple(sorted(staged, key=lambda one: one.name))
        closed = tuple(closed)
        self.judge: Judge = Judge(known.values(), closed, before.judge if before is not None else None)
        """What is enforced."""
        later = known | {policy.name: policy for policy in self.staged}
        trial = before.trial if before is not None else None
        self.trial: Judge = Judge(later.values(), closed, trial) if self.staged else Judge()
        """What would be, if all staged policies were enforced; nothing if there are none."""
        self.watched: Mapping[Direction, frozenset[str]] = {
            direction: frozenset(
                one.select.digest
                for policy in self.staged
                for one in (policy, known.get(policy.name))
                if one is not None and one.rules(direction) is not None
            )
            for direction in DIRECTIONS
        }
        """By direction: the digests of the selectors whose endpoints staged policies may refuse something."""

        self.ways: dict[tuple[str, str, int, frozenset[str]], dict[str, NftChain]] = {}
        """The chains of endpoints that ``endpoint_elements`` has made until now, by the tier after which each comes."""

    def __bool__(self) -> bool:
        return bool(self.judge) or bool(self.trial)

    @cached_property
    def selectors(self) -> Mapping[str, Selector]:
        """By digest: every selector that a policy has."""
        return {**self.judge.selectors, **self.trial.selectors}

    @cached_property
    def peers(self) -> frozenset[str]:
        """The digests of the selectors that are peers of a rule."""
        return frozenset(self.judge.peers | self.trial.peers)

    @cached_property
    def keys(self) -> frozenset[str]:
        """The keys of all labels that selectors of peers look at."""
        return self.judge.keys | self.trial.keys

    @cached_property
    def names(self) -> frozenset[str]:
        """The DNS names that are peers of a rule."""
        return self.judge.names | self.trial.names

    @cached_property
    def askers(self) -> frozenset[str]:
        """The digests of the selectors whose endpoints some policy lets out by DNS names."""
        return self.judge.askers | self.trial.askers

    @property
    def by_host(self) -> bool:
        """True if a selector looks at hosts' names."""
        return self.judge.by_host or self.trial.by_host

    def chosen(self, subject: Subject) -> frozenset[str]:
        """Return the digests of the selectors that select an endpoint."""
        found = self.judge.chosen(subject)
        return found | self.trial.chosen(subject) if self.staged else found

    def concerns(self, network: str) -> bool:
        """Return whether a policy, enforced or staged, may be about an endpoint of a network."""
        return "" in self._networks or network in self._networks

    @cached_property
    def _networks(self) -> frozenset[str]:
        """The networks of endpoints that a policy may be about; with "" all are."""
        subjects = {digest for about in (self.judge.subjects, self.watched) for one in about.values() for digest in one}
        return frozenset(name for digest in subjects for name in self.selectors[digest].networks or ("",))
