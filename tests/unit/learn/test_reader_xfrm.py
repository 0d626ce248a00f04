"""IPsec by hand: what `ip xfrm` prints, and which policy and state a packet meets."""

from __future__ import annotations

import pytest

from linkspan.diagnose.trace.kernel_view import FORWARD, IN, OUT
from linkspan.diagnose.trace.packet import Packet
from linkspan.learn.reader_xfrm import Policy, Xfrm, parsed

STATES = """src 192.0.2.5 dst 192.0.2.14
\tproto esp spi 0x00000103 reqid 0 mode tunnel
\treplay-window 0 \n\taead rfc4106(gcm(aes)) 0x1111 128
\tanti-replay context: seq 0x0, oseq 0x0, bitmap 0x00000000
\tsel src 0.0.0.0/0 dst 0.0.0.0/0 \nsrc 192.0.2.14 dst 192.0.2.5
\tproto esp spi 0x00000301 reqid 7(0x00000007) mode tunnel
\treplay-window 0 \n\taead rfc4106(gcm(aes)) 0x3333 128
\tif_id 0x7
"""
POLICIES = """src 172.18.1.0/24 dst 172.18.3.0/24 \n\tdir out priority 0 \n\ttmpl src 192.0.2.5 dst 192.0.2.14
\t\tproto esp reqid 0 mode tunnel
src 172.18.1.9/32 dst 172.18.3.0/24 proto icmp \n\tdir out action block priority 5 \n\
src 0.0.0.0/0 dst 0.0.0.0/0 \n\tdir fwd priority 0 ptype main \n\ttmpl src 192.0.2.14 dst 192.0.2.5
\t\tproto esp spi 0x00000301 reqid 7 mode tunnel
\tif_id 0x7
"""
A, E, OWN = bytes([172, 18, 1, 2]), bytes([172, 18, 3, 2]), bytes([192, 0, 2, 5])


@pytest.fixture
def found() -> Xfrm:
    """Give what both texts say, on a host with one XFRM interface."""
    return parsed(STATES, POLICIES, {"ipsec0": 7})


def chosen(found: Xfrm, direction: int, device: str, packet: Packet) -> Policy:
    """Return the policy, which there must be."""
    policy = found.policy(direction, device, packet)
    assert policy is not None
    return policy


def test_a_policy_finds_its_state(found: Xfrm) -> None:
    """By both addresses, and by reqid and if_id, if it names them."""
    out, back = chosen(found, OUT, "wire3", Packet(A, E)), chosen(found, FORWARD, "ipsec0", Packet(E, A))
    first, second = found.states
    assert found.sending(out) is first
    assert (back.wants(second), back.wants(first), out.wants(second)) == (True, False, False)
    assert found.receiving(OWN, "0x00000301") is second
    assert found.receiving(OWN, "0x00000103") is None
    assert first.secret != second.secret
    assert first.ciphers == "rfc4106(gcm(aes))"
    assert str(out) == "out policy 172.18.1.0/24 > 172.18.3.0/24"


def test_a_policy_is_for_one_direction_and_one_interface(found: Xfrm) -> None:
    """No other one is asked."""
    assert found.policy(FORWARD, "wire3", Packet(E, A)) is None
    assert found.policy(IN, "ipsec0", Packet(E, A)) is None
    assert found.policy(OUT, "wire3", Packet(E, A)) is None


def test_a_kernel_without_ipsec_has_nothing() -> None:
    """`ip` prints an error there."""
    assert parsed("", "", {}) == Xfrm()
