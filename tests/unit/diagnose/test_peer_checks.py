"""Findings of all hosts about the underlay, as checks; and the packets that find them."""

from __future__ import annotations

import msgspec
import pytest

from linkspan.backends import host_gw, ipip, vxlan
from linkspan.core.needs import Need
from linkspan.diagnose.doctor import peer_probe
from linkspan.diagnose.doctor.peer_checks import checks
from linkspan.diagnose.doctor.peer_probe import TOLD, Carried, Gap, Probed, Refusal, Wanted, largest, sizes
from linkspan.diagnose.trace.kernel_view import Device
from linkspan.kernel.io import packets
from support.diagnose.empty_host import EmptyHost
from support.diagnose.nft_rules import ACCEPT, DROP, Kernel, Rule, base, field, match
from support.records.peers import network, peer, view

NAMES = {"1": "h1", "2": "h2", "3": "h3"}
WHAT = "UDP port 4789 (VXLAN)"
TAIL = bytes(range(packets.TAIL))
VXLAN = network("vxlan", mtu=1450, vni="100", direct="true")
OFFER = {"mac": "02:00:00:00:00:02", "address": "192.0.2.2"}


def gap(peer: str, heard: int = 0, dropped: str = "") -> Gap:
    """Return what is missed from a peer."""
    return Gap(peer, WHAT, 1500, heard, "let it pass", dropped)


def refusal(peer: str, sent: int = 0, *, spare: bool = False) -> Refusal:
    """Return what cannot be sent to a peer."""
    return Refusal(peer, WHAT, "its link is small", "a larger one", sent, spare)


@pytest.mark.parametrize(
    ("mine", "theirs", "expected"),
    [
        (Probed(), Probed((gap("1"),)), [("fail", "underlay h1 to h2", "blocked: no packet from h1")]),
        (Probed(), Probed((gap("1", 1400),)), [("fail", "underlay h1 to h2", "those of 1400 do")]),
        (
            Probed(),
            Probed((gap("1", 1500, "x drops it"),)),
            [("fail", "underlay h1 to h2", "arrives at h2, where x")],
        ),
        (
            Probed((), (refusal("2", 1400),)),
            Probed((gap("1", 1400),)),
            [("fail", "underlay h1 to h2", "h1 cannot send")],
        ),
        (
            Probed((), (refusal("2", 1400),)),
            Probed((gap("1", 200),)),
            [
                ("fail", "underlay h1 to h2", "h1 cannot send"),
                ("fail", "underlay h1 to h2", "those of 200 do"),
            ],
        ),
        (
            Probed((), (refusal("2", spare=True),)),
            Probed((gap("1"),)),
            [("warn", "underlay h1 to h2", "not used; the tunnel is used instead")],
        ),
        (
            Probed((), (), (Carried(WHAT, 1500, 1),)),
            Probed((), (), (Carried(WHAT, 1450, 1),)),
            [("ok", f"underlay: {WHAT}", "2 directions, with packets of up to 1500")],
        ),
        (Probed((gap("2"),)), "it is silent", [("fail", "underlay: host h2", "not take part: it is silent")]),
        (
            Probed((), (refusal("2"),)),
            "it is silent",
            [("fail", "underlay: host h2", "not take part: it is silent")],
        ),
        (
            Probed((gap("2"),)),
            Probed((gap("1"),), (refusal("1"),), down="eth0"),
            [("fail", "underlay: host h2", "its link eth0 to the other hosts is down")],
        ),
        (Probed(left_out=7), Probed(), [("fail", "underlay", "7 more faults")]),
    ],
)
def test_each_fault_is_one_check_by_hosts_and_direction(
    mine: Probed, theirs: Probed | str, expected: list[tuple[str, str, str]]
) -> None:
    """The receiver does not miss once more what a sender could not send; a silent host's pairs are left out."""
    found = checks({"1": mine, "2": theirs}, NAMES)
    assert len(found) == len(expected)
    for one, (status, name, words) in zip(found, expected, strict=True):
        assert (one.status, one.check.startswith(name), words in one.detail) == (status, True, True), one


class Linked(EmptyHost):
    """A host that has this link only, or none."""

    def __init__(self, link: Device | None) -> None:
        self._link = link

    def device(self, netns: int, name: str) -> Device | None:
        """Return the link."""
        return self._link


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        (Device("eth0", "", True, True, 1500, b""), True),
        (Device("eth0", "", False, False, 1500, b""), False),
        (Device("eth0", "", True, False, 1500, b""), False),
        (Device("br0", "bridge", True, False, 1500, b""), True),
        (None, False),
    ],
    ids=["up", "down", "no carrier", "bridge", "gone"],
)
def test_a_host_knows_that_its_own_link_is_down(link: Device | None, expected: bool) -> None:
    """Then a firewall on the path is not the reason."""
    assert peer_probe.passes(Linked(link), "eth0") is expected


def test_a_thousand_hosts_that_are_all_cut_off_tell_a_bounded_number_of_faults() -> None:
    """An answer goes through the store to every host."""
    assert TOLD * len(msgspec.json.encode(gap("0" * 16))) < 16_000


def needs() -> list[Need]:
    """Return needs of each kind."""
    plain, wrapped = network("host-gw", (4, 6)), network("ipip", mtu=1480)
    return [
        *vxlan.BACKEND.needs(view(VXLAN), VXLAN, peer(VXLAN, OFFER)),
        *host_gw.BACKEND.needs(view(plain), plain, peer(plain, {})),
        *ipip.BACKEND.needs(view(wrapped), wrapped, peer(wrapped, {"address": "192.0.2.2"})),
        Need("TCP port 179", "tcp", bytes([192, 0, 2, 1]), bytes([192, 0, 2, 2]), 300, "", 179),
    ]


@pytest.mark.parametrize("need", needs(), ids=lambda need: need.what)
def test_a_probe_has_exactly_the_size_and_sums_that_add_up(need: Need) -> None:
    """In every size; lengths and checksums are right, the tail is at the end, and no router may fragment it."""
    for size in sizes(need):
        packet = packets.packet(need, size, TAIL)
        assert len(packet) == size
        assert packet.endswith(TAIL)
        family = 4 if len(need.target) == 4 else 6
        head = 20 if family == 4 else 40
        if family == 4:
            assert (int.from_bytes(packet[2:4], "big"), packet[6] & 0x40, packet[9]) == (
                size, 0x40, packets.NUMBERS[need.protocol],
            )  # fmt: skip
            assert packets.checksum(packet[:20]) == 0
        if need.port:
            rest = packet[head:]
            pseudo = (
                need.source
                + need.target
                + len(rest).to_bytes(4, "big")
                + bytes([0, 0, 0, packets.NUMBERS[need.protocol]])
            )
            assert packets.checksum(pseudo + rest) == 0
            assert int.from_bytes(rest[2:4], "big") == need.port


class Receiver(Kernel):
    """A host with rules, whose clients have Linux's own range of ports."""

    def setting(self, netns: int, path: str) -> str:
        """Return the range."""
        return "32768\t60999"


SOME = "a rule drops it from some of the source ports 32768 to 60999: "
SPORT, DPORT = field("udp", "sport"), field("udp", "dport")
FROM_40000 = (match(SPORT, 40000), DROP)
FROM_LOW = (match(SPORT, {"range": [1024, 30000]}), DROP)
FROM_HALF = (match(SPORT, {"range": [1024, 45000]}), DROP)
FROM_ALL = (match(SPORT, {"range": [32768, 60999]}), DROP)
BUT_51820 = (match(SPORT, 51820, "!="), DROP)
TO_PORT = (match(DPORT, 51820), DROP)


@pytest.mark.parametrize(
    ("rule", "chosen", "same"),
    [
        (FROM_40000, SOME + "inet t c: udp sport 40000 drop", ""),
        (FROM_LOW, "", ""),
        (FROM_HALF, SOME + "inet t c: udp sport 1024-45000 drop", ""),
        (FROM_ALL, "inet t c drops it: udp sport 32768-60999 drop", "inet t c drops it: udp sport 32768-60999 drop"),
        (BUT_51820, SOME + "inet t c: udp sport != 51820 drop", ""),
        (TO_PORT, "inet t c drops it: udp dport 51820 drop", "inet t c drops it: udp dport 51820 drop"),
        ((ACCEPT,), "", ""),
    ],
    ids=["40000", "low", "half", "all", "but-51820", "to-port", "accept"],
)
def test_a_rule_is_judged_by_the_ports_that_the_tunnel_sends_from(rule: Rule, chosen: str, same: str) -> None:
    """VXLAN takes any that the kernel gives to clients, WireGuard and IKE the one at which they listen."""
    asked = Receiver(base(rule, hook="input"))
    for from_port, words in ((False, chosen), (True, same)):
        need = Need("it", "udp", b"\xc0\0\2\1", b"\xc0\0\2\2", 1500, "", 51820, from_port=from_port)
        came = packets.Arrival(b"", need.target, need.source, packets.NUMBERS["udp"], 1500, "eth0", b"\2\0\0\0\0\2")
        assert peer_probe._dropped(asked, need, came) == words


def merged(*mtus: int) -> Wanted:
    """Return the one need of networks n0, n1, .. by VXLAN with these MTUs."""
    found = []
    for number, mtu in enumerate(mtus):
        one = network("vxlan", mtu=mtu, vni=str(number + 1))
        other = peer(one, OFFER)
        found += [Wanted(other, need, f"n{number}", mtu) for need in vxlan.BACKEND.needs(view(one), one, other)]
    (kept,) = largest(found)
    return kept


def test_the_fix_for_an_mtu_is_for_each_network_that_is_too_large() -> None:
    """Three networks share a probe: those two whose packets do not pass are named, each with its own command."""
    assert merged(1450, 1200, 1400).smaller(1400) == (
        "linkspan network update n2 --mtu 1350; linkspan network update n0 --mtu 1350"
    )


def test_networks_with_the_same_need_are_probed_once_in_the_largest_size() -> None:
    """Sixteen networks by VXLAN are one probe to a peer."""
    kept = merged(*(1300 + number for number in range(16)))
    assert (kept.need.size, kept.network) == (1365, "n15")
    assert sizes(kept.need) == (200, 1280, 1365)
