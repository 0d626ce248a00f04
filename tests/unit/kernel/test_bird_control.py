"""Output of BIRD, as 2.17 and 3.1 have printed it (except blanks at the ends of lines), parsed into values."""

from __future__ import annotations

import time

import pytest

from linkspan.kernel.probe import bird_control
from linkspan.kernel.probe.bird_control import Channel, Protocol, Route, Said

SHORT = """\
2002-Name       Proto      Table      State  Since         Info
1002-device1    Device     ---        up     2026-11-24 11:16:51.954
 s4         Static     master4    up     2026-11-24 11:16:51.954
 mesh_h2    BGP        ---        up     2026-11-24 11:16:52.809  Established
 kernel1    Kernel     master4    up     2026-11-24 11:16:51.954
 peer_tor   BGP        ---        start  2026-11-24 11:16:52.001  Active        Socket: Connection refused
0000
"""
BIRD2 = """\
2002-Name       Proto      Table      State  Since         Info
1002-s4         Static     master4    up     2026-11-24 11:16:51
1006-  Channel ipv4
     State:          UP
     Table:          master4
     Routes:         1 imported, 0 exported, 1 preferred
     Route change stats:     received   rejected   filtered    ignored   accepted
       Import updates:              1          0          0          0          1

1002-mesh_h2    BGP        ---        up     2026-11-24 11:16:52  Established
1006-  BGP state:          Established
     Neighbor address: 192.0.2.2
     Neighbor AS:      64600
     Local AS:         64512
     Neighbor ID:      192.0.2.2
     Local capabilities
       Multiprotocol
         AF announced: ipv4
       Route refresh
     Neighbor capabilities
       Multiprotocol
         AF announced: ipv4 ipv6
       Graceful restart
       Long-lived graceful restart
         LL stale time: 0
         AF supported:
         AF preserved: ipv4 ipv6
       Hostname: vm
     Session:          external AS4
     Source address:   192.0.2.1
     Hold timer:       7.402/9
     Keepalive timer:  1.433/3
   Channel ipv4
     State:          UP
     Table:          master4
     Preference:     100
     Input filter:   (unnamed)
     Output filter:  (unnamed)
     Routes:         1 imported, 2 filtered, 3 exported, 1 preferred
     Route change stats:     received   rejected   filtered    ignored   accepted
       Import updates:              2          0          1          0          1
       Import withdraws:            0          0        ---          1          0
     BGP Next hop:   192.0.2.1
   Channel ipv6
     State:          DOWN
     Table:          master6

1002-peer_tor   BGP        ---        start  2026-11-24 11:12:38  Idle          Received: Bad peer AS
1006-  BGP state:          Idle
     Neighbor address: 192.0.2.9
     Neighbor AS:      64601
     Local AS:         64512
     Error wait:       0.578/2
     Last error:       Received: Bad peer AS
   Channel ipv4
     State:          DOWN
     Table:          master4
     Input filter:   REJECT

0000
"""
BIRD3 = """\
2002-Name       Proto      Table      State  Since         Info
1002-mesh_h2    BGP        ---        up     2026-11-24 11:10:20  Established
1006-  Created:            2026-11-24 11:10:19
   BGP state:          Established
     Neighbor address: 2001:db8::2
     Neighbor AS:      4200000000
     Local AS:         64512
     Neighbor ID:      192.0.2.2
     Local capabilities
         AF announced: ipv4 ipv6
     Neighbor capabilities
         AF announced: ipv6
     Session:          external AS4
     Source address:   2001:db8::1
     TX pending:       0 bytes
   Channel ipv6
     State:          UP
     Import state:   UP
     Export state:   READY
     Table:          master6
     Routes:         0 imported, 0 exported, 0 preferred
     Route change stats:     received   rejected   filtered    ignored   RX limit      limit   accepted
       Import updates:              3          0          2          0          0          0          1
     Pending 0 attribute sets with total 0 prefixes to send

0000
"""
ROUTES2 = """\
1007-Table master4:
 10.244.1.0/24        unreachable [s4 11:16:51.954] * (200)
1008-\tType: static univ
1007-10.244.2.0/24        unicast [peer_b 11:16:52.809] * (100) [AS64600i]
 \tvia 192.0.2.2 on br0
1008-\tType: BGP univ
1012-\tBGP.origin: IGP
 \tBGP.as_path: 64601 64600
 \tBGP.next_hop: 192.0.2.2
 \tBGP.med: 20
 \tBGP.local_pref: 100
 \tBGP.community: (64512,77) (65535,0)
 \tBGP.large_community: (64512, 1, 2)
1007-                     unicast [peer_c 11:16:52.696] (100) [AS64600i]
 \tvia 192.0.2.3 on br0 weight 1
 \tvia 192.0.2.4 on br0 weight 1
1008-\tType: BGP univ
1012-\tBGP.origin: IGP
 \tBGP.as_path: 64600
0000
"""
FAR2 = """\
1007-Table master4:
 10.244.3.0/24        unreachable [mesh_h3 11:16:52.809] * (100/-) [i]
1008-\tType: BGP univ
1012-\tBGP.origin: IGP
 \tBGP.as_path:
 \tBGP.next_hop: 198.51.100.3
 \tBGP.local_pref: 100
0000
"""
ROUTES3 = """\
1007-Table master6:
 2001:db8:1::/64      unicast [peer_b 11:10:21.477] (100) [AS64600i]
 \tvia fe80::1 on eth0
1012-\tpreference: 100
 \tigp_metric: 0
 \tfrom: 2001:db8::2
 \tsource: BGP
 \tbgp_origin: IGP
 \tbgp_path: 64600
 \tbgp_next_hop: 2001:db8::2
 \tbgp_med: 0
 \tbgp_local_pref: 100
 \tbgp_community: (64512,77)
 \tls_refused: outside the pools
1008-\tInternal route handling values: 0L 4G 0S id 3
0000
"""


def lines(text: str) -> list[tuple[int, str]]:
    return list(bird_control.coded(text.splitlines()))


def at(text: str) -> float:
    return time.mktime(time.strptime(text, "%Y-%m-%d %H:%M:%S"))


def test_sessions_of_the_short_list() -> None:
    """``show protocols`` has each session's state, its time, and its last error; other protocols are skipped."""
    up, down = bird_control.protocols(lines(SHORT))
    assert (up.name, up.established, up.info) == ("mesh_h2", True, "Established")
    assert up.since == pytest.approx(at("2026-11-24 11:16:52") + 0.809)
    assert (down.name, down.established) == ("peer_tor", False)
    assert down.info.endswith("Socket: Connection refused")


def test_details_of_bird_2() -> None:
    """Of a session that is up all is read: the ends, what the peer can do, and counts by family."""
    up, _ = bird_control.protocols(lines(BIRD2))
    assert up == Protocol(
        name="mesh_h2", state="up", since=at("2026-11-24 11:16:52"), info="Established",
        bgp_state="Established", address="192.0.2.2", remote_as=64600, local_as=64512,
        router_id="192.0.2.2", source="192.0.2.1", families=(4, 6),
        channels=(Channel(4, up=True, accepted=1, filtered=2, sent=3), Channel(6)),
    )  # fmt: skip
    assert [up.count(what) for what in ("received", "accepted", "filtered", "sent")] == [3, 1, 2, 3]


def test_a_limit_and_whether_it_is_reached() -> None:
    """Of a session that is cut off the limit is read, in the channel that has it."""
    limit = "    Import limit:   1024 [HIT]\n      Action:       block\n"
    reached = BIRD2.replace("    Routes:         1 imported, 2", f"{limit}    Routes:         1024 imported, 2")
    up, _ = bird_control.protocols(lines(reached))
    assert up.channels == (Channel(4, up=True, accepted=1024, filtered=2, sent=3, limit=1024, full=True), Channel(6))


def test_details_of_a_session_that_is_down() -> None:
    """Of one that is down the last error is read, and when it is tried again."""
    _, down = bird_control.protocols(lines(BIRD2))
    assert (down.bgp_state, down.last_error, down.wait) == ("Idle", "Received: Bad peer AS", 0.578)
    assert down.channels == (Channel(4),)


def test_details_of_bird_3() -> None:
    """BIRD 3, which prints more, is read like BIRD 2."""
    (up,) = bird_control.protocols(lines(BIRD3))
    assert (up.address, up.remote_as, up.families) == ("2001:db8::2", 4200000000, (6,))
    assert up.channels == (Channel(6, up=True),)


def test_routes_of_bird_2() -> None:
    """Several routes of one destination are separate, with all their next hops and attributes."""
    static, best, other = bird_control.routes(lines(ROUTES2))
    assert static == Route("10.244.1.0/24", "s4", best=True)
    assert best == Route(
        "10.244.2.0/24", "peer_b", True, (("192.0.2.2", "br0"),), "192.0.2.2", "64601 64600", "IGP", 20, 100,
        ("64512:77", "65535:0", "64512:1:2"),
    )  # fmt: skip
    assert (other.prefix, other.best, len(other.next_hops)) == ("10.244.2.0/24", False, 2)


def test_route_whose_next_hop_is_not_on_a_link() -> None:
    """A route that the kernel does not get has no next hop there, but the announced one."""
    (far,) = bird_control.routes(lines(FAR2))
    assert (far.next_hops, far.next_hop, far.as_path) == ((), "198.51.100.3", "")


def test_routes_of_bird_3() -> None:
    """BIRD 3's names of attributes are the same values; a filtered route has the rule that refused it."""
    (found,) = bird_control.routes(lines(ROUTES3))
    assert found == Route(
        "2001:db8:1::/64", "peer_b", False, (("fe80::1", "eth0"),), "2001:db8::2", "64600", "IGP", 0, 100,
        ("64512:77",), "outside the pools",
    )  # fmt: skip


def test_no_routes() -> None:
    """An answer that no network was found gives no route, and no error."""
    assert bird_control.routes(lines("8001 Network not found\n")) == []


def test_count() -> None:
    """Counts of several tables are added, and their sum is not."""
    text = (
        "1007-1 of 4 routes for 1 networks in table master4\n 2 of 2 routes for 1 networks in table master6\n"
    )
    assert bird_control.count(lines(text + "0014 Total: 3 of 6 routes for 2 networks in 2 tables\n")) == 3


def test_log() -> None:
    """The log has a session's messages, and unknown peers that connected; other lines are not kept."""
    text = (
        "2026-11-24 11:13:16.786 <WARN> BGP: Unexpected connect from unknown address 192.0.2.2 (port 42962)\n"
        "bird: 2026-11-24 11:13:17.000 [0002] <RMT> peer_tor: Received: Bad peer AS: 64512\n"
        "2026-11-24 11:13:18.000 <INFO> Started\n"
    )
    stranger, word = bird_control.said(text)
    assert (stranger.protocol, stranger.stranger) == ("BGP", "192.0.2.2")
    assert word == Said(at("2026-11-24 11:13:17"), "peer_tor", "Received: Bad peer AS: 64512")
