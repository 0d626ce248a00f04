"""A switch that a reader programs: what Open vSwitch prints of a frame's way, and frames in the words of flows."""

from __future__ import annotations

import pytest

from linkspan.diagnose.trace.packet import Packet
from linkspan.learn.reader_switch import arp, ip, passed, ports

A, B = bytes([192, 0, 2, 1]), bytes([192, 0, 2, 2])
MAC, OTHER = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
TRACED = """Flow: arp,in_port=1,vlan_tci=0x0000,dl_src=02:00:00:00:00:01,dl_dst=ff:ff:ff:ff:ff:ff,arp_op=1

bridge("sw")
------------
{steps}

Final flow: unchanged
Megaflow: recirc_id=0,eth,arp,in_port=p1,dl_src=02:00:00:00:00:01
Datapath actions: {actions}
"""


@pytest.mark.parametrize(
    ("steps", "actions", "flow", "out"),
    [
        (" 0. No match.\n    drop", "drop", "no flow", {"drop"}),
        (" 0. ip,nw_dst=172.18.2.0/24, priority 32768\n    output:p2", "p2", "ip,nw_dst=172.18.2.0/24", {"p2"}),
        (" 0. arp, priority 32768, cookie 0x7\n    FLOOD", "sw,p2", "arp", {"sw", "p2"}),
        (" 0. ip, priority 5\n    goto_table:1\n 1. No match.\n    drop", "drop", "no flow", {"drop"}),
        (" 0. priority 32768\n    NORMAL\n     -> no learned MAC, flooding", "sw,p2", "priority 32768", {"sw", "p2"}),
    ],
)
def test_the_last_flow_and_the_ports_are_read(steps: str, actions: str, flow: str, out: set[str]) -> None:
    """Of every form that a trace has; the one without a match says so."""
    assert passed(TRACED.format(steps=steps, actions=actions)) == (flow, out)


def test_a_switch_that_does_not_answer_sends_a_frame_nowhere() -> None:
    """It may have ended meanwhile."""
    assert passed("") == ("no flow", set())


def test_ports_are_read_by_their_names() -> None:
    """The reader of ports leaves out what is none."""
    assert ports("sw p1 1\nsw p2 2\nsw p3 []\nsw p4 -1\novs-vsctl: no\n") == {
        "p1": ("sw", 1),
        "p2": ("sw", 2),
        "p4": ("sw", -1),
    }


def test_frames_are_written_in_the_words_of_flows() -> None:
    """A question for everybody, its answer, and the packet of each protocol, both ways."""
    macs = "dl_src=02:00:00:00:00:01,dl_dst="
    assert arp(A, B, MAC) == f"arp,{macs}ff:ff:ff:ff:ff:ff,arp_op=1,arp_spa=192.0.2.1,arp_tpa=192.0.2.2"
    assert arp(A, B, MAC, OTHER) == f"arp,{macs}02:00:00:00:00:02,arp_op=2,arp_spa=192.0.2.1,arp_tpa=192.0.2.2"
    there = f"{macs}02:00:00:00:00:02,nw_src=192.0.2.1,nw_dst=192.0.2.2"
    assert ip(Packet(A, B), MAC, OTHER) == f"icmp,{there},icmp_type=8"
    assert ip(Packet(A, B, established=True), MAC, OTHER) == f"icmp,{there},icmp_type=0"
    assert ip(Packet(A, B, "tcp", 80), MAC, OTHER) == f"tcp,{there},tp_src=40000,tp_dst=80"
    assert ip(Packet(A, B, "esp"), MAC, OTHER) == f"ip,nw_proto=50,{there}"
