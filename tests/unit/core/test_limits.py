"""Bandwidth limits as users write them, and as engines' users do."""

from __future__ import annotations

import pytest

from linkspan.core import bandwidth
from linkspan.core.errors import Invalid
from linkspan.core.model import Bandwidth
from linkspan.runtimes import wishes


@pytest.mark.parametrize(
    ("text", "received", "sent"),
    [
        ("in=20M,out=5M", 20_000_000, 5_000_000),
        ("out=1500k", 0, 1_500_000),
        ("in=1G", 1_000_000_000, 0),
        ("in=64001", 64_001, 0),
        ("in=1k, out=17G", 1000, 17_000_000_000),
    ],
)
def test_rates_are_bits_a_second(text: str, received: int, sent: int) -> None:
    """Either direction alone, too; what is shown is what may be typed."""
    limits = bandwidth.parse(text)
    assert limits == Bandwidth(ingress_rate=received, egress_rate=sent)
    assert bandwidth.spelled(limits) == text.replace(" ", "")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("20M", "is not understood"),
        ("up=20M", "is not understood"),
        ("in=20M,", "is not understood"),
        ("in=20M,in=5M", "has in= twice"),
        ("in=20MB", "'20MB' is not a rate"),
        ("in=1.5M", "'1.5M' is not a rate"),
        ("in=-1", "'-1' is not a rate"),
        ("in=", "'' is not a rate"),
        ("in=\u0663M", "is not a rate"),
        ("in=0", "'0' is out of range"),
        ("in=999", "'999' is out of range"),
        ("out=18G", "'18G' is out of range"),
    ],
)
def test_what_is_no_limit_is_refused_with_its_reason(text: str, why: str) -> None:
    """Each with what to write instead."""
    with pytest.raises(Invalid, match=why) as refused:
        bandwidth.parse(text)
    assert refused.value.hint


def test_no_limit_is_written_as_nothing() -> None:
    """A burst alone limits nothing."""
    assert bandwidth.spelled(Bandwidth(ingress_burst=8000)) == ""


def test_engines_users_say_it_by_two_options() -> None:
    """Docker's command line writes values in lower case; another option is named, with those that there are."""
    assert wishes.limits({}) is None
    assert wishes.limits({"bandwidth-in": "20m"}) == Bandwidth(ingress_rate=20_000_000)
    both = {"bandwidth-in": "20M", "bandwidth-out": "1g"}
    assert wishes.limits(both) == Bandwidth(ingress_rate=20_000_000, egress_rate=1_000_000_000)
    with pytest.raises(Invalid, match="option colour is unknown to driver linkspan") as refused:
        wishes.limits(both | {"colour": "red"})
    assert "bandwidth-in" in refused.value.hint
    with pytest.raises(Invalid, match="bandwidth 'fast' is not a rate"):
        wishes.limits({"bandwidth-out": "fast"})


def test_a_network_of_an_engine_has_no_limits_of_its_own() -> None:
    """The error says where they belong; another option is refused, too."""
    wishes.check_options({"network": "demo"})
    for options, hint in (({"bandwidth-in": "20M"}, "a limit is a container's"), ({"colour": ""}, "the only option")):
        with pytest.raises(Invalid, match="is unknown to driver linkspan") as refused:
            wishes.check_options({"network": "demo"} | options)
        assert refused.value.hint.startswith(hint)


def test_a_label_sets_changes_and_lifts_limits() -> None:
    """Other labels leave the limits as they are; one that is no limit is refused."""
    given, label = Bandwidth(ingress_rate=8000), {bandwidth.LABEL: "in=1M"}
    assert bandwidth.followed({}, {"app": "web"}, given) == given
    assert bandwidth.followed({}, label, given) == Bandwidth(ingress_rate=1_000_000)
    assert bandwidth.followed(label, {**label, "app": "web"}, given) == given
    assert bandwidth.followed(label, {}, given) is None
    with pytest.raises(Invalid, match=r"label linkspan\.bandwidth: bandwidth 'fast' is not a rate"):
        bandwidth.followed(label, {bandwidth.LABEL: "in=fast"}, given)
