"""Addresses of names: for how long they count, which ones no name may have, and how many."""

from __future__ import annotations

import pytest

from linkspan.agent import named_addresses
from linkspan.agent.named_addresses import Named, NamedAddresses, Usable, lifetime
from linkspan.core.addresses import prefix
from linkspan.policy.name_rules import REMEMBERED
from support.clocks import Clock

AT, OTHER = prefix("192.0.2.7"), prefix("192.0.2.8")


@pytest.fixture
def clock() -> Clock:
    """Return a clock."""
    return Clock()


@pytest.fixture
def named(clock: Clock) -> NamedAddresses:
    """Return what is known of two names: nothing yet."""
    made = NamedAddresses(clock)
    made.keep({"a.example.com", "*.example.org"})
    return made


@pytest.mark.parametrize(("ttl", "seconds"), [(0, 60), (29, 60), (30, 60), (300, 330), (3600, 3630), (86400, 3630)])
def test_a_ttl_counts_within_limits(ttl: int, seconds: int) -> None:
    """At least half a minute, at most an hour, and half a minute after that."""
    assert lifetime(ttl) == seconds


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "0.0.0.0", "169.254.169.254", "224.0.0.1", "255.255.255.255", "10.1.2.3", "198.51.100.9",
     "::1", "::", "fe80::1", "ff02::1", "::ffff:192.0.2.7", "fd00:1::2", "fd00:ec2::254", "100.100.100.200",
     "64:ff9b::a9fe:a9fe", "64:ff9b::10.1.2.3", "2002:c633:6409::1"],
)  # fmt: skip
def test_no_name_leads_into_the_cluster_or_to_many(address: str) -> None:
    """The owner of a name gives it any address: containers must not reach by it what their policy closes."""
    usable = Usable([prefix("10.1.0.0/16"), prefix("fd00:1::/64")], {"198.51.100.9"})
    assert not usable(prefix(address))
    assert usable(prefix("192.0.2.7"))
    assert usable(prefix("2001:db8::7"))
    assert usable(prefix("64:ff9b::192.0.2.7")), "what a network with IPv6 only reaches IPv4 by"
    assert usable(prefix("10.9.0.7")), "a private address may be a company's own server"


def test_an_address_counts_until_its_time_is_over(named: NamedAddresses, clock: Clock) -> None:
    """After that only flows that were open are judged by it, for a week."""
    assert named.learn("a.example.com", AT, 60) == (60, REMEMBERED)
    assert named.of("a.example.com") == [Named(address="192.0.2.7", seconds=60)]
    assert named.by_address() == {"192.0.2.7": {"a.example.com"}}
    clock.now += 61
    assert named.of("a.example.com") == []
    assert named.by_address() == {}
    assert named.by_address(past=True) == {"192.0.2.7": {"a.example.com"}}
    clock.now += REMEMBERED
    assert named.by_address(past=True) == {}


def test_the_kernel_is_sent_what_is_worth_it(named: NamedAddresses, clock: Clock) -> None:
    """Answers from a cache have a little less time each: none of them changes anything, a new one does."""
    named.learn("a.example.com", AT, 300)
    clock.now += 10
    assert named.learn("a.example.com", AT, 290) == (0, 0)
    clock.now += 280
    assert named.learn("a.example.com", AT, 330) == (330, 0)
    assert named.of("a.example.com") == [Named(address="192.0.2.7", seconds=330)]


def test_a_name_that_no_policy_has_is_forgotten(named: NamedAddresses) -> None:
    """With all that was known of it; and nothing more is learnt of it."""
    named.learn("a.example.com", AT, 60)
    named.keep({"*.example.org"})
    assert named.learn("a.example.com", AT, 60) == (0, 0)
    assert named.by_address(past=True) == {}


def test_a_name_has_so_many_addresses(
    named: NamedAddresses, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner could fill the kernel. Others are not touched, and when time is over there is room again."""
    monkeypatch.setattr(named_addresses, "MOST", 8)
    every = [prefix(f"192.0.2.{number}") for number in range(12)]
    taken = [named.learn("*.example.org", one, 60)[0] for one in every]
    assert taken == [60] * 8 + [0] * 4
    assert named.full == {"*.example.org"}
    assert named.learn("a.example.com", AT, 60) == (60, REMEMBERED)
    clock.now += 61
    assert named.learn("*.example.org", every[11], 60) == (60, 0), "let through, though no week's memory is left"
    assert named.full == set()


def test_a_name_that_is_full_costs_little(
    named: NamedAddresses, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer may have hundreds of new addresses: not each of them looks through all for one whose time is over."""
    monkeypatch.setattr(named_addresses, "MOST", 1)
    named.learn("*.example.org", prefix("192.0.2.1"), 60)
    clock.now += 59.5
    assert named.learn("*.example.org", prefix("192.0.2.2"), 60) == (0, 0)
    clock.now += 0.6
    assert named.learn("*.example.org", prefix("192.0.2.2"), 60) == (0, 0), "that was looked at just now"
    clock.now += 0.5
    assert named.learn("*.example.org", prefix("192.0.2.2"), 60) == (60, 0)


def test_what_an_earlier_agent_has_put_counts(named: NamedAddresses) -> None:
    """A new agent finds it in the kernel, with what is left of its time."""
    named.found("a.example.com", "192.0.2.7", now=17)
    named.found("a.example.com", "192.0.2.7", past=5000)
    named.found("a.example.com", "192.0.2.8", past=4000)
    assert named.of("a.example.com") == [Named(address="192.0.2.7", seconds=17)]
    assert named.by_address(past=True).keys() == {"192.0.2.7", "192.0.2.8"}
    assert sorted(named.left("a.example.com")) == [(AT, 17, 5000), (OTHER, 0, 4000)]
