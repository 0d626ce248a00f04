"""Judge: what policies mean, as tables of a few containers and as properties against a naive reading."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from linkspan.core.addresses import prefix
from linkspan.policy.judge import Judge, Party, Probe
from linkspan.policy.model import Peer, Policy, Ports, Rule, Selector, Subject, selects
from support import policies as samples

WEB, DB, OTHER = (
    Subject(name, network, "h1", {"app": name}) for name, network in (("web", "x"), ("db", "x"), ("other", "y"))
)
ENDS: dict[str, Subject | str] = {"web": WEB, "db": DB, "other": OTHER, "near": "192.0.2.9", "far": "198.51.100.1"}
OUTER = ("192.0.2.7", "192.0.2.200", "198.51.100.1", "2001:db8::9")


def party(judge: Judge, end: Subject | str) -> Party:
    """Return an end as a judge sees it; endpoints have no address that a CIDR of these tests contains."""
    if isinstance(end, str):
        return Party(prefix(end), outside=True)
    return Party(None, judge.chosen(end))


def table(*policies: Policy, closed: tuple[str, ...] = ()) -> set[tuple[str, str]]:
    """Return the pairs of ends that are refused at 80/tcp."""
    judge = Judge(policies, closed)
    pairs = itertools.permutations(ENDS, 2)
    return {
        (one, two) for one, two in pairs
        if not judge.verdict(party(judge, ENDS[one]), party(judge, ENDS[two]), Probe("tcp", 80)).allowed
    }  # fmt: skip


def but(refused: Callable[[str, str], bool]) -> set[tuple[str, str]]:
    """Return all pairs for which this is true."""
    return {pair for pair in itertools.permutations(ENDS, 2) if refused(*pair)}


OF_X, OF_WEB = Selector(networks=("x",)), Selector(labels={"app": "web"})


@pytest.mark.parametrize(
    ("ingress", "refused"),
    [
        pytest.param((), lambda _s, t: t == "web", id="no rule: nobody"),
        pytest.param((Rule(),), lambda _s, _t: False, id="a rule without peers: everybody"),
        pytest.param((Rule(peers=(Peer(select=OF_X),)),), lambda s, t: t == "web" and s != "db", id="a network"),
        pytest.param(
            (Rule(peers=(Peer(outside=True),)),), lambda s, t: t == "web" and s in ("db", "other"), id="the outside",
        ),
        pytest.param((Rule(peers=(Peer(cidr="192.0.2.0/24"),)),), lambda s, t: t == "web" and s != "near", id="a CIDR"),
        pytest.param(
            (Rule(peers=(Peer(cidr="0.0.0.0/0", excepts=("192.0.2.0/24",)),)),),
            lambda s, t: t == "web" and s != "far", id="an exception",
        ),
        pytest.param((Rule(ports=(Ports("tcp", 443, 443),)),), lambda _s, t: t == "web", id="another port"),
        pytest.param((Rule(ports=(Ports("tcp", 1, 100),)),), lambda _s, _t: False, id="a range"),
        pytest.param((Rule(ports=(Ports("udp"),)),), lambda _s, t: t == "web", id="another protocol"),
        pytest.param(
            (Rule(action="deny", peers=(Peer(select=OF_X),)),), lambda s, t: (s, t) == ("db", "web"),
            id="only denies: the rest stays",
        ),
        pytest.param(
            (Rule(action="deny", peers=(Peer(cidr="192.0.2.0/24"),)), Rule()), lambda s, t: (s, t) == ("near", "web"),
            id="the first rule that matches decides",
        ),
    ],
)  # fmt: skip
def test_ingress_of_one_container(ingress: tuple[Rule, ...], refused: Callable[[str, str], bool]) -> None:
    """A policy on web refuses these pairs and no others."""
    assert table(Policy(name="p", select=OF_WEB, ingress=ingress)) == but(refused)


def test_egress_is_judged_as_well_as_ingress() -> None:
    """Both ends must allow a connection."""
    out = Policy(name="out", select=OF_WEB, egress=(Rule(peers=(Peer(select=Selector(labels={"app": "db"})),)),))
    into = Policy(name="in", select=Selector(labels={"app": "db"}), ingress=(Rule(peers=(Peer(outside=True),)),))
    assert table(out) == but(lambda s, t: s == "web" and t != "db")
    assert table(out, into) == but(lambda s, t: s == "web" or (t == "db" and s == "other"))


def test_policies_add_up_and_the_lower_order_comes_first() -> None:
    """A policy that only lacks what another one allows does not forbid it; a deny counts by its order."""
    allowing = Policy(name="a", select=OF_WEB, ingress=(Rule(peers=(Peer(select=OF_X),)),))
    more = Policy(name="b", select=OF_WEB, ingress=(Rule(peers=(Peer(outside=True),)),))
    deny = (Rule(action="deny", peers=(Peer(outside=True),)),)
    denying = Policy(name="c", select=Selector(), ingress=deny, order=200)
    assert table(allowing, more) == but(lambda s, t: t == "web" and s == "other")
    inner = ("web", "db", "other")
    assert table(allowing, more, denying) == but(
        lambda s, t: (t, s) == ("web", "other") or (s not in inner and t in inner and t != "web")
    )
    first = Policy(name="c", select=Selector(), ingress=deny, order=1)
    assert ("near", "web") in table(allowing, more, first)


def test_a_default_deny_network_is_closed_for_what_comes_in() -> None:
    """Its containers still go out; a policy opens it."""
    assert table(closed=("x",)) == but(lambda _s, t: t in ("web", "db"))
    opened = Policy(name="p", select=OF_WEB, ingress=(Rule(peers=(Peer(select=OF_X),)),))
    assert ("db", "web") not in table(opened, closed=("x",))


def test_a_verdict_names_the_policy_and_the_line() -> None:
    """By the rule that decides, by the policy that isolates, or by the network."""
    policy = Policy(name="p", select=OF_WEB, ingress=(Rule(peers=(Peer(select=OF_X),), line=7),), line=3)
    judge = Judge([policy], ["x", "y"])
    web, db, other = (party(judge, end) for end in (WEB, DB, OTHER))
    probe = Probe("tcp", 80)
    found = [judge.verdict(one, two, probe) for one, two in ((db, web), (other, web), (web, other))]
    assert [(one.allowed, one.policy, one.line, one.network) for one in found] == [
        (True, "p", 7, ""), (False, "p", 3, ""), (False, "", 0, "y"),
    ]  # fmt: skip


@given(samples.selectors, samples.subjects)
def test_a_selector_means_what_a_reader_takes_it_for(selector: Selector, subject: Subject) -> None:
    """Also where the judge has sorted selectors by a label that they need."""
    assert selects(selector, subject) == samples.chosen(selector, subject)
    judge = Judge([Policy(name="p", select=selector, ingress=())])
    assert bool(judge.chosen(subject)) == samples.chosen(selector, subject)


@settings(suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
@given(
    st.tuples(*(samples.policies(name) for name in "abc")).map(list),
    st.sets(st.sampled_from(samples.NETWORKS)),
    samples.subjects | st.sampled_from(OUTER),
    samples.subjects | st.sampled_from(OUTER),
    samples.probes,
)
def test_the_judge_agrees_with_a_naive_reading(
    policies: list[Policy], closed: set[str], source: Subject | str, target: Subject | str, probe: Probe
) -> None:
    """On random policies, ends and ports."""
    judge = Judge(policies, closed)
    one, two = party(judge, source), party(judge, target)
    wanted = samples.allows(policies, closed, source, target, probe)
    assert judge.verdict(one, two, probe).allowed == wanted
    open_ = [
        span for span in judge.openings(one, two)
        if span.protocol == probe.protocol and (not span.first or span.first <= probe.port <= span.last)
    ]  # fmt: skip
    assert bool(open_) == wanted
