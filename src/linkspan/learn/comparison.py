"""Linkspan beside the reader: its plan of the chapter's network."""

from __future__ import annotations

import re

from linkspan.demo.chapter_network import CONTAINERS, of_container, of_network
from linkspan.diagnose.plan import plan
from linkspan.learn.lesson import Shown
from linkspan.learn.sandbox import NETNS


def commands(shown: Shown) -> list[str]:
    """Return the commands of linkspan's plan that a lesson shows, none if the plan has none of them."""
    if shown.of not in ("", *CONTAINERS):
        return []
    states = of_container(shown.of, netns=1) if shown.of else of_network()  # the plan only needs the namespace's path
    ordered = plan.ordered([one for one in states if type(one).__name__ in shown.kinds])
    found = [c for state in ordered for c in plan.commands(state, lambda _: str(NETNS / shown.of))]
    return [one for command in found for one in command.splitlines() if re.search(shown.has, one)]
