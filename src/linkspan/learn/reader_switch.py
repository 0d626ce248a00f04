"""Switch between a reader's hosts: where its flows send a frame, as Open vSwitch itself answers (`ofproto/trace`)."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping

import msgspec

from linkspan.core.addresses import mac_text
from linkspan.diagnose.trace.hops import show
from linkspan.diagnose.trace.packet import Packet

PORTS = """
[ -S /run/openvswitch/db.sock ] && command -v ovs-appctl >/dev/null || exit 0
for switch in $(ovs-vsctl list-br); do
  for port in $(ovs-vsctl list-ports $switch); do echo $switch $port $(ovs-vsctl get interface $port ofport); done
done
"""
"""Prints a line for each port of each switch: the switch, the port, and its OpenFlow number."""
_FLOW = re.compile(r"^ *\d+\. (.+?)(?:, priority \d+)?(?:, cookie \S+)?$", re.MULTILINE)
_OUT = re.compile(r"^Datapath actions: (.*)$", re.MULTILINE)
_EVERYBODY = b"\xff" * 6
_ECHO = {False: 8, True: 0}
"""ICMP types of a request and of a reply (RFC 792)."""


class Plug(msgspec.Struct, frozen=True):
    """A port of a switch, in the namespace where the switch runs, at which a host's link ends."""

    namespace: str
    switch: str
    port: str
    number: int


class Switches(msgspec.Struct, frozen=True):
    """The switches between the hosts: where a host's link ends, by host and link, and by each address of the link."""

    links: Mapping[tuple[str, str], Plug] = {}
    addresses: Mapping[bytes, Plug] = {}


def ports(printed: str) -> dict[str, tuple[str, int]]:
    """Return switch and number by a port's name, from what PORTS prints; a port that has no number yet has -1."""
    rows = [line.split() for line in printed.splitlines()]
    return {row[1]: (row[0], int(row[2])) for row in rows if len(row) == 3 and re.fullmatch(r"-?\d+", row[2])}


def arp(source: bytes, target: bytes, sender: bytes, receiver: bytes = _EVERYBODY) -> str:
    """Return ARP in the words of flows: the question for everybody, or the answer for one ``receiver``'s MAC."""
    operation = 1 if receiver == _EVERYBODY else 2
    return f"arp,{_macs(sender, receiver)},arp_op={operation},arp_spa={show(source)},arp_tpa={show(target)}"


def ip(packet: Packet, sender: bytes, receiver: bytes) -> str:
    """Return an IPv4 packet in the words of flows."""
    addresses = f"nw_src={show(packet.source)},nw_dst={show(packet.target)}"
    kind = {"icmp": "icmp", "tcp": "tcp", "udp": "udp"}.get(packet.protocol, f"ip,nw_proto={packet.number}")
    inside = f",icmp_type={_ECHO[packet.established]}" if packet.protocol == "icmp" else ""
    if packet.protocol in ("tcp", "udp"):
        inside = f",tp_src={packet.source_port},tp_dst={packet.port}"
    return f"{kind},{_macs(sender, receiver)},{addresses}{inside}"


def _macs(sender: bytes, receiver: bytes) -> str:
    return f"dl_src={mac_text(sender)},dl_dst={mac_text(receiver)}"


def passage(plug: Plug, frame: str) -> tuple[str, set[str]]:
    """Ask a switch where a frame goes that enters by a port; return the last flow that it meets, and the ports."""
    argv = ["ovs-appctl", "ofproto/trace", "--names", plug.switch, f"in_port={plug.number},{frame}"]
    return passed(subprocess.run(argv, check=False, capture_output=True, text=True, timeout=10).stdout)


def passed(printed: str) -> tuple[str, set[str]]:
    """Return the last flow, "no flow" if none matches, and the ports by which the frame leaves."""
    flows, out = _FLOW.findall(printed), _OUT.search(printed)
    last = flows[-1] if flows else ""
    return "no flow" if last in ("", "No match.") else last, set(out[1].split(",")) if out else set()
