"""What a live trace says of each hop, by what was heard on the hosts."""

from __future__ import annotations

import pytest

from linkspan.tell.hops import Hop
from linkspan.tell.live import Heard, marked
from linkspan.tell.trace import Trace

PLAIN = ("eth", "ip 10.244.1.2>10.244.2.2", "icmp")


@pytest.mark.parametrize(
    ("around", "seen"),
    [
        (("eth", "ip 192.0.2.1>192.0.2.2", "udp 4789", "vxlan 7"), False),
        (("eth", "ip 192.0.2.1>192.0.2.2", "udp 51820", "wireguard"), None),
        (("eth", "ip 192.0.2.1>192.0.2.2", "udp 4500", "esp 96b620ea"), None),
    ],
)
def test_an_encrypted_packet_is_not_called_unseen(around: tuple[str, ...], seen: bool | None) -> None:
    """Nobody who listens can know it again; one that is only wrapped would have been known."""
    there = Hop("h1", "host", "lswg", "encrypted", "", (*around, *PLAIN))
    left = Hop("h1", "host", "eth0", "left", "", (*around, *PLAIN))
    heard = Heard(there=(("host", "lswg"),), ears=(("host", "lswg"), ("host", "eth0")))
    found = marked(Trace(False, 0, (there, left), ()), {"h1": heard})
    assert [hop.seen for hop in found.hops] == [True, seen]
