"""Links as netlink reports them: which attribute means what."""

from __future__ import annotations

import struct

from linkspan.kernel.io.link_messages import (
    ALT_IFNAME,
    BRPORT_HAIRPIN,
    INFO_DATA,
    INFO_KIND,
    INFO_SLAVE_DATA,
    INFO_SLAVE_KIND,
    LINK_NETNSID,
    LINKINFO,
    NESTED,
    PROP_LIST,
    link,
    names_of,
    own_of,
)
from linkspan.kernel.io.netlink import attr, text, u32
from support.links import made, message

MAC = b"\2\0\0\0\0\1"


def test_a_link_has_what_its_message_says() -> None:
    """An attribute that is missing is 0 or empty."""
    full, bare = made(7, "br0.5", "vlan", MAC, master=3, lower=2), made(1, "lo")
    assert (full.number, full.name, full.kind, full.mac) == (7, "br0.5", "vlan", MAC)
    assert (full.master, full.lower) == (3, 2)
    assert (bare.kind, bare.mac, bare.mtu, bare.master, bare.lower, bare.group) == ("", b"", 0, 0, 0, 0)
    assert not bare.up


def test_a_lower_link_in_another_namespace_is_none_here() -> None:
    """Its index is that of another link in this namespace."""
    assert link(message(7, "eth0.5", "vlan", lower=2) + u32(LINK_NETNSID, 0)).lower == 0


def test_an_alternative_name_says_whose_a_link_is() -> None:
    """The link's own name does not matter."""
    names = attr(PROP_LIST | NESTED, text(ALT_IFNAME, "uplink") + text(ALT_IFNAME, "linkspan:ls-demo"))
    ours, foreign = link(message(4, "renamed") + names), made(5, "ls-demo")
    assert ours.altnames == ["uplink", "linkspan:ls-demo"]
    assert (ours.ours, foreign.ours) == (True, False)
    assert own_of([ours, foreign]) == {4: "renamed"}
    assert names_of([ours, foreign]) == {4: "renamed", 5: "ls-demo"}


def test_only_a_bridges_port_has_its_settings() -> None:
    """The numbers of a bond's port mean something else."""
    for master, found in (("bridge", {BRPORT_HAIRPIN: b"\1"}), ("bond", {})):
        port = text(INFO_SLAVE_KIND, master) + attr(INFO_SLAVE_DATA | NESTED, attr(BRPORT_HAIRPIN, b"\1"))
        assert link(message(5, "eth1", master=3) + attr(LINKINFO | NESTED, port)).bridge_port == found


def test_a_macvlan_takes_everything_in_mode_passthru_alone() -> None:
    """Other modes, and other kinds of link with that number, leave the link's packets to it."""
    for kind, mode, takes in (("macvtap", 8, True), ("macvlan", 8, True), ("macvlan", 4, False), ("vxlan", 8, False)):
        info = text(INFO_KIND, kind) + attr(INFO_DATA | NESTED, attr(1, struct.pack("=I", mode)))
        assert link(message(5, "above", lower=2) + attr(LINKINFO | NESTED, info)).takes_all == takes
