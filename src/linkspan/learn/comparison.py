"""Linkspan beside the reader: its plan of the chapter's network."""

from __future__ import annotations

from collections.abc import Sequence

from linkspan.demo.chapter_network import CONTAINERS, planned
from linkspan.diagnose.plan import plan
from linkspan.learn.sandbox import NETNS


def commands(kinds: Sequence[str]) -> list[str]:
    """Return the commands of linkspan's plan for these kinds of states, for the host and the first container."""
    (name, *_) = CONTAINERS
    inodes = {name: 1}  # no namespace is looked at: the plan only needs its path
    states = [one for one in planned(inodes) if type(one).__name__ in kinds]
    found = [c for state in plan.ordered(states) for c in plan.commands(state, lambda _: str(NETNS / name))]
    return [one for command in found for one in command.splitlines()]
