"""Truth tables of policies, played on nine containers wherever they are, and random policies beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol

import msgspec
from hypothesis import strategies as st

from linkspan.core.addresses import prefix
from linkspan.policy import document
from linkspan.policy.judge import Judge, Party, Probe
from linkspan.policy.model import TIERS, Peer, Policy, Ports, Requirement, Rule, Selector, Subject, Tier
from support.agent.cells import Cell
from support.agent.yard import PODS
from support.policy_cases import END, Case

FAMILIES = (4, 6)
Expected = Callable[[str, str, int, str], bool]
"""Whether a source reaches a target at a port by a protocol."""


class Grid(Protocol):
    """The nine containers of ``yard.PODS``, on one host or on several, and the policies about them."""

    ips: dict[str, dict[int, str]]

    def enforce(self, *policies: Policy) -> None:
        """Make these the only policies, and return when all hosts enforce them."""

    def wrong(self, family: int, expected: Expected) -> list[Cell]:
        """Return the cells that are not as expected."""


def _text(container: str, case: Case) -> str:
    """Return a case as a policy about one container."""
    end = "from" if case.direction == "ingress" else "to"
    rules = [{end if key == END else key: value for key, value in rule.items()} for rule in case.rules]
    # JSON is YAML, too, without aliases for what two rules share.
    return json.dumps({"policy": f"about-{container}", "select": {"name": container}, case.direction: rules}) + "\n"


def both_wrong(grid: Grid, expected: Callable[[int], Expected]) -> dict[int, list[Cell]]:
    """Return by family the cells that are not as ``expected`` says of it; both families are asked at the same time."""
    with ThreadPoolExecutor(len(FAMILIES)) as pool:
        asked = {family: pool.submit(grid.wrong, family, expected(family)) for family in FAMILIES}
        return {family: found.result() for family, found in asked.items()}


def play(grid: Grid, cases: Iterable[Case]) -> list[str]:
    """Give each container a case of one direction, nine at a time; return the cells that are wrong."""
    found = []
    every = list(cases)
    for direction in ("ingress", "egress"):
        waiting = [case for case in every if case.direction == direction]
        for start in range(0, len(waiting), len(PODS)):
            about = dict(zip(PODS, waiting[start : start + len(PODS)], strict=False))
            text = "---\n".join(_text(name, case) for name, case in about.items())
            grid.enforce(*document.parsed(text, "policies.yaml").policies)
            for family, cells in both_wrong(grid, lambda family: partial(_expected, about, family)).items():  # noqa: B023 - called at once
                for cell in cells:
                    names = {about[end].name for end in cell[:2] if end in about}
                    found.append(f"{cell} by IPv{family}, {direction}: one of {names}")
    return found


def _expected(about: Mapping[str, Case], family: int, source: str, target: str, port: int, protocol: str) -> bool:
    for own, other, direction in ((target, source, "ingress"), (source, target, "egress")):
        case = about.get(own)
        if case is not None and case.direction == direction:
            return other in case.ends[family] and (port, protocol) in case.ports
    return True


_values = st.sampled_from("abc")
_requirements = st.builds(
    Requirement,
    st.sampled_from(("pod", "tier")),
    st.sampled_from(("In", "NotIn")),
    st.lists(_values, min_size=1, max_size=2, unique=True).map(tuple),
) | st.builds(Requirement, st.sampled_from(("pod", "tier")), st.sampled_from(("Exists", "DoesNotExist")))
_selectors = st.builds(
    Selector,
    labels=st.dictionaries(st.just("pod"), _values, max_size=1),
    expressions=st.lists(_requirements, max_size=1).map(tuple),
    networks=st.sampled_from(((), ("x",), ("y", "z"))),
    names=st.sampled_from(((), (), (), ("x-a",))),
    hosts=st.sampled_from(((), (), ("h1",), ("h2", "h3"))),
)
_cidrs = st.sampled_from(
    (
        Peer(cidr="10.211.0.0/16", excepts=("10.211.0.0/30",)),
        Peer(cidr="0.0.0.0/0"),
        Peer(cidr="fd00:212::/64"),
        Peer(outside=True),
    )
)
_ports = st.sampled_from(
    (Ports("tcp", 80, 80), Ports("tcp"), Ports("udp", 80, 81), Ports("udp", 81, 81), Ports("icmp"))
)


def _ways(*actions: str) -> st.SearchStrategy[Any]:
    rules = st.builds(
        Rule,
        action=st.sampled_from(actions),
        peers=st.lists(st.builds(Peer, select=_selectors) | _cidrs, max_size=2).map(tuple),
        ports=st.lists(_ports, max_size=2, unique=True).map(tuple),
    )
    some = st.lists(rules, max_size=2).map(tuple)
    return st.tuples(some, some) | st.tuples(st.none(), some) | st.tuples(some, st.none())


def _made(select: Selector, ways: Any, order: int, tier: Tier) -> Policy:
    return Policy(name="p", select=select, ingress=ways[0], egress=ways[1], order=order, tier=tier)


_tiered = st.builds(_made, _selectors, _ways("allow", "deny", "pass"), st.integers(0, 2), st.sampled_from(TIERS[::2]))
_usual = st.builds(_made, _selectors, _ways("allow", "allow", "deny"), st.integers(0, 2), st.just("normal"))
policies = st.lists(_usual | _tiered, min_size=1, max_size=5)
"""Up to five policies of all tiers; hosts are h1, h2 and h3."""


def disagreements(grid: Grid, made: list[Policy], host_of: Callable[[str], str]) -> dict[int, list[Cell]]:
    """Enforce policies, and return by family the cells where the kernel does not what the judge says.

    ``host_of`` returns a container's host.
    """
    named = [msgspec.structs.replace(one, name=f"p{number}") for number, one in enumerate(made)]
    grid.enforce(*named)
    judge = Judge(named)

    def expected(family: int) -> Expected:
        parties = {
            name: Party(
                prefix(grid.ips[name][family]),
                judge.chosen(Subject(name, name[0], host_of(name), {"pod": name[2], "ns": name[0]})),
            )
            for name in PODS
        }
        return lambda source, target, port, protocol: judge.verdict(
            parties[source], parties[target], Probe(protocol, port)
        ).allowed

    return both_wrong(grid, expected)
