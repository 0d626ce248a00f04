"""Desired states: equal ones of several sources are one, and a thousand sources take little memory."""

from __future__ import annotations

import tracemalloc

import pytest

from linkspan.core.desired import Change, Desired
from linkspan.core.errors import Conflict
from linkspan.core.states.host import NftTable, Sysctl


def test_a_state_stays_until_its_last_source_drops_it() -> None:
    """It is put by each source, and deleted once; in between the others are its owners."""
    desired, table = Desired(), NftTable("inet", "linkspan")
    a, b = ("network", "a"), ("network", "b")
    assert desired.replace(a, [table]) == desired.replace(b, [table]) == Change((table,), ())
    assert desired.owners(table.key) == (a, b)
    assert desired.is_shared(table.key)
    assert desired.replace(a, []) == Change((), ())
    assert desired.owners(table.key) == (b,)
    assert not desired.is_shared(table.key)
    assert desired.state(table.key) == table
    assert desired.replace(b, []) == Change((), (table,))
    assert desired.state(table.key) is None
    assert desired.owners(table.key) == ()
    assert desired.states() == {}
    assert desired.sources() == {}


def test_a_state_that_a_source_repeats_is_not_shared_with_itself() -> None:
    """Whoever wants it a second time is counted once: two sources stay two, and the last one takes it along."""
    desired, table, other = Desired(), NftTable("inet", "linkspan"), NftTable("bridge", "linkspan")
    a, b, c = (("network", name) for name in "abc")
    desired.replace(a, [table])
    assert desired.replace(a, [table, other]) == Change((other,), ())
    assert not desired.is_shared(table.key)
    desired.replace(b, [table])
    desired.replace(c, [table])
    desired.replace(b, [table])
    assert desired.replace(a, []) == Change((), (other,))
    assert desired.is_shared(table.key)
    assert desired.replace(b, []) == Change((), ())
    assert not desired.is_shared(table.key)
    assert desired.replace(c, []) == Change((), (table,))


def test_a_source_that_disagrees_changes_nothing_and_one_alone_may_change_its_mind() -> None:
    """The error names both sources."""
    desired, on, off = Desired(), Sysctl("net/ipv4/ip_forward", "1"), Sysctl("net/ipv4/ip_forward", "0")
    desired.replace(("network", "a"), [on])
    with pytest.raises(Conflict, match="network b and network a disagree on Sysctl"):
        desired.replace(("network", "b"), [off])
    assert desired.states() == {on.key: on}
    assert desired.replace(("network", "a"), [off]) == Change((off,), ())
    assert desired.states((Sysctl,)) == {off.key: off}
    desired.replace(("network", "b"), [off])
    with pytest.raises(Conflict, match="network a and network b disagree"):
        desired.replace(("network", "a"), [on])


def test_a_state_of_one_of_many_sources_takes_little_memory() -> None:
    """Its key, and the state's place in its source and in all: with a thousand peers there are 5,000."""
    sources = {
        ("peer", "demo", f"h{host}"): [Sysctl(f"net/ipv4/conf/ls-{host}/{name}", "1") for name in "abcde"]
        for host in range(1000)
    }
    desired = Desired()
    tracemalloc.start()
    try:
        for source, states in sources.items():
            desired.replace(source, states)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken / 5000 < 180
