"""Entries by which a lab tells its hosts of each other."""

from __future__ import annotations

from linkspan.lab import topology, underlay


def test_hosts_of_a_large_lab_know_the_macs_of_their_segment() -> None:
    """40 hosts on two segments: each gets the 19 others of its own, and no entry that the kernel's limit counts."""
    lab = topology.planned(topology.Wishes(hosts=40, segments=2))
    first = lab.hosts[0]
    lines = underlay.neighbours(lab, first)
    near = [one for one in lab.hosts if one.segment == first.segment and one.name != first.name]
    assert len(lines) == 19
    assert {line.split()[2] for line in lines} == {one.addresses[0].partition("/")[0] for one in near}
    assert all(line.endswith(" dev eth0 nud permanent") for line in lines)
    assert len({line.split()[4] for line in lines}) == 19


def test_hosts_of_a_small_lab_learn_them() -> None:
    """A lab of three hosts shows how neighbours are found."""
    lab = topology.planned(topology.Wishes(hosts=3))
    assert underlay.neighbours(lab, lab.hosts[0]) == []
