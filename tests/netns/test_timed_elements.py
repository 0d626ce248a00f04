"""Elements that end by themselves, on the kernel: put, moved, read, and gone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from linkspan.core.addresses import prefix
from linkspan.core.errors import KernelError
from linkspan.core.host_view import Facts
from linkspan.core.ruleset import TABLE, skeleton
from linkspan.core.states.host import NftSet
from linkspan.kernel.drivers import timed_elements
from linkspan.kernel.drivers.nftables_objects import FirewallDriver
from linkspan.kernel.drivers.timed_elements import Timed
from linkspan.kernel.io.netlink import Socket
from linkspan.kernel.io.nftables import netfilter_socket
from linkspan.kernel.kinds import kinds
from linkspan.policy import name_rules
from support.netns.machine_fixtures import fresh_namespace, inside
from support.polling import until

NAME = "api.example.com"
FOUR, SIX = name_rules.named(NAME, 4), name_rules.named(NAME, 6)


@pytest.fixture
def kernel() -> Iterator[tuple[FirewallDriver, Socket]]:
    """Return the driver in a namespace with the sets of a name, and a socket there."""
    with fresh_namespace() as netns, inside(netns):
        driver, netlink = FirewallDriver(), netfilter_socket()
        try:
            assert driver.apply([*skeleton(Facts(), kinds()), *name_rules.sets([NAME], [4, 6])], ()) == {}
            yield driver, netlink
        finally:
            netlink.close()
            driver.close()


def left(netlink: Socket, name: str) -> dict[str, float]:
    """Return the seconds that each address of a set has."""
    return {one.address.address: one.seconds for one in timed_elements.read(netlink, TABLE, name)}


def test_the_last_of_several_ends_counts(kernel: tuple[FirewallDriver, Socket]) -> None:
    """Two answers may say something else of an address before it is put; 0 seconds take it out."""
    _, netlink = kernel
    at, other = prefix("192.0.2.7"), prefix("192.0.2.8")
    timed_elements.put(netlink, TABLE, [Timed(FOUR, at, 60), Timed(FOUR, other, 60), Timed(FOUR, at, 900)])
    assert 800 < left(netlink, FOUR)["192.0.2.7"] <= 900
    timed_elements.put(netlink, TABLE, [Timed(FOUR, at, 60), Timed(FOUR, at, 0)])
    until(lambda: left(netlink, FOUR).keys() == {"192.0.2.8"}, "it is taken out")


def test_an_element_has_its_own_end_which_moves(kernel: tuple[FirewallDriver, Socket]) -> None:
    """Put again it has the new end, later or sooner; others keep theirs; both families, and many in one transaction."""
    _, netlink = kernel
    many = [Timed(FOUR, prefix(f"192.0.{number >> 8}.{number & 255}"), 100) for number in range(2500)]
    timed_elements.put(netlink, TABLE, [*many, Timed(SIX, prefix("2001:db8::7"), 100)])
    found = left(netlink, FOUR)
    assert len(found) == 2500
    assert all(0 < seconds <= 100 for seconds in found.values())
    assert left(netlink, SIX).keys() == {"2001:db8::7"}
    timed_elements.put(netlink, TABLE, [Timed(FOUR, prefix("192.0.0.1"), 900), Timed(FOUR, prefix("192.0.0.2"), 20)])
    found = left(netlink, FOUR)
    assert 800 < found["192.0.0.1"] <= 900
    assert found["192.0.0.2"] <= 20
    assert 20 < found["192.0.0.3"] <= 100
    assert len(found) == 2500


def test_an_element_is_gone_when_its_time_is_over(kernel: tuple[FirewallDriver, Socket]) -> None:
    """Nobody deletes it."""
    _, netlink = kernel
    timed_elements.put(netlink, TABLE, [Timed(FOUR, prefix("192.0.2.7"), 0.2), Timed(FOUR, prefix("192.0.2.8"), 100)])
    until(lambda: left(netlink, FOUR).keys() == {"192.0.2.8"}, "its time is over")
    timed_elements.put(netlink, TABLE, [Timed(FOUR, prefix("192.0.2.7"), 100)])
    assert left(netlink, FOUR).keys() == {"192.0.2.7", "192.0.2.8"}


def test_elements_that_end_are_no_states(kernel: tuple[FirewallDriver, Socket]) -> None:
    """An observation does not have them, so nobody removes them as foreign, and their set is as it was put."""
    driver, netlink = kernel
    timed_elements.put(netlink, TABLE, [Timed(FOUR, prefix("192.0.2.7"), 100)])
    seen = list(driver.observe(0))
    assert not [one for one in seen if getattr(one, "set", "") == FOUR]
    wanted = {one.key: one for one in name_rules.sets([NAME], [4, 6])}
    assert {one.key: one for one in seen if isinstance(one, NftSet) and one.key in wanted} == wanted
    assert driver.apply((), list(wanted.values())) == {}
    assert left(netlink, FOUR) == {}


def test_a_set_that_is_not_there_takes_nothing(kernel: tuple[FirewallDriver, Socket]) -> None:
    """The error says which set, and nothing of the transaction is there."""
    _, netlink = kernel
    with pytest.raises(KernelError, match="named4_other"):
        timed_elements.put(
            netlink, TABLE, [Timed(FOUR, prefix("192.0.2.7"), 9), Timed("named4_other", prefix("192.0.2.7"), 9)]
        )
    assert left(netlink, FOUR) == {}
    assert timed_elements.read(netlink, TABLE, "named4_other") == []
