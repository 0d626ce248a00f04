"""Hops of a live trace, from what the hosts captured."""

from __future__ import annotations

import msgspec
import pytest

from linkspan.diagnose.trace.hops import Hop, Unknown
from linkspan.diagnose.trace.live import Dropped, Goal, Heard, marked
from linkspan.diagnose.trace.trace import BROKEN, REACHABLE, UNKNOWN, Trace

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
    found = marked(Trace(False, 0, (there, left), ()), {"h1": heard}, "h1")
    assert [hop.seen for hop in found.hops] == [True, seen]


A, B = ("a", "eth0"), ("b", "eth0")
THERE_HOP, BACK_HOP = Hop("h1", "a", "eth0", "sent", "", PLAIN), Hop("h1", "b", "eth0", "sent", "", PLAIN)
GOAL = Goal("h1", B)
WELL = Trace(True, 1500, (THERE_HOP, msgspec.structs.replace(BACK_HOP, action="delivered")), (BACK_HOP, THERE_HOP))
DOUBT = Trace(False, 1500, *(WELL.hops, WELL.reply_hops), None, "", UNKNOWN, (Unknown("h1/host", "a program decides"),))
STOP = Trace(False, 0, WELL.hops[:1], (), "h1/host/up0", "a rule drops it", BROKEN)
EARS = (A, B)
LEFT = Hop("h1", "host", "up0", "left", "", PLAIN)
BACK_IN = Hop("h1", "host", "up0", "received", "", PLAIN)
NOBODY = Unknown("h1/host/up0", "beyond up0 of host h1 nobody was asked", beyond=True)
OUT = Trace(False, 1500, (THERE_HOP, LEFT), (BACK_IN, THERE_HOP), None, NOBODY.why, UNKNOWN, (NOBODY,))
UP0 = ("host", "up0")
BOTH = (A, UP0)
ANSWERED = Heard(there=(A, B), back=(B, A), ears=EARS, answered=True)
RULE, ANSWER_RULE = Dropped("b", "there", "rule `drop`"), Dropped("a", "back", "rule `drop`")
LOST = Dropped("", "there", "IP_RPFILTER (in fib_validate_source)")


@pytest.mark.parametrize(
    ("found", "heard", "verdict", "at", "reason"),
    [
        (WELL, ANSWERED, REACHABLE, None, ""),
        (DOUBT, ANSWERED, REACHABLE, None, "a real packet was answered, though what h1/host does is not known: "),
        (STOP, ANSWERED, REACHABLE, None, "a real packet was answered, though h1/host/up0 looks otherwise"),
        (WELL, Heard((A,), (A,), ears=EARS, answered=True), BROKEN, "h1/a/eth0", "something else answered"),
        (STOP, Heard((A,), (A,), ears=EARS, answered=True), BROKEN, "h1/host/up0", "a rule drops it"),
        (WELL, Heard((A, B), (A,), ears=EARS, answered=True, reset=True, drops=(RULE,)),
         BROKEN, "h1/b", "the packet was dropped by rule `drop`"),
        (WELL, Heard((A, B), (B, A), ears=EARS, answered=True, reset=True), REACHABLE, None, ""),
        (WELL, Heard((A, B), ears=EARS, drops=(RULE,)), BROKEN, "h1/b/eth0", "the packet was dropped by rule `drop`"),
        (WELL, Heard((A, B), (B,), ears=EARS, drops=(RULE, ANSWER_RULE)),
         BROKEN, "h1/a", "the answer was dropped by rule `drop`"),
        (WELL, Heard((), (), ears=EARS, refused=True), BROKEN, "h1/a/eth0", "the rules in a do not let it send"),
        (WELL, Heard((A, B), (B, A), ears=EARS), BROKEN, "h1/a/eth0", "the answer reached eth0, but a itself drops it"),
        (WELL, Heard((A,), ears=EARS), BROKEN, "h1/a/eth0", "every hop looks ok, but no answer came"),
        (WELL, Heard((A,), ears=EARS, lost=(LOST,)), BROKEN, "h1/a/eth0",
         "every hop looks ok, but no answer came; last seen at h1/a/eth0; the kernel's reason: IP_RPFILTER"),
        (DOUBT, Heard((A,), ears=EARS), BROKEN, "h1/a/eth0",
         "no answer came; last seen at h1/a/eth0; unknown: at h1/host: a program decides"),
        (STOP, Heard((A,), ears=EARS), BROKEN, "h1/host/up0", "a rule drops it"),
    ],
)  # fmt: skip
def test_the_packet_decides(found: Trace, heard: Heard, verdict: str, at: str | None, reason: str) -> None:
    """Over what the walk says, in both directions; a rule that dropped the packet is the best reason."""
    told = marked(found, {"h1": heard}, "h1", GOAL)
    assert (told.verdict, told.broken_at) == (verdict, at)
    assert told.reachable is (verdict == REACHABLE)
    assert told.reason.startswith(reason)
    assert bool(told.reason) is bool(reason)


@pytest.mark.parametrize(
    ("heard", "verdict", "reason"),
    [
        (Heard((A, UP0), (UP0, A), ears=BOTH, answered=True), REACHABLE, ""),
        (Heard((A, UP0), ears=BOTH), UNKNOWN, f"{NOBODY.why}; a packet left there, and no answer came"),
        (Heard((A, UP0), ears=BOTH, drops=(RULE,)), BROKEN, "the packet was dropped by rule"),
        (Heard((A,), ears=BOTH), BROKEN, "no answer came; last seen at h1/a/eth0"),
        (Heard((A, UP0), (UP0,), ears=BOTH), BROKEN, "no answer came; last seen at h1/host/up0"),
        (Heard((A, UP0), ears=BOTH, refused=True), BROKEN, "the rules in a do not let it send"),
    ],
    ids=["answered", "silent", "dropped", "never left", "answer lost here", "refused"],
)
def test_the_silence_of_the_outside_proves_nothing(heard: Heard, verdict: str, reason: str) -> None:
    """A host there need not answer; a packet that ends on a linkspan host is still broken."""
    told = marked(OUT, {"h1": heard}, "h1")
    assert told.verdict == verdict
    assert told.reachable is (verdict == REACHABLE)
    assert told.reason.startswith(reason)
    assert bool(told.reason) is bool(reason)
    expected = {REACHABLE: [], UNKNOWN: [reason], BROKEN: [NOBODY.why]}
    assert [one.why for one in told.unknown] == expected[verdict]


LATER = Unknown("h1/b", "its later segments are dropped", later=True)
AFTER = msgspec.structs.replace(DOUBT, unknown=(*DOUBT.unknown, LATER))
LISTENS = msgspec.structs.replace(WELL, listens=True)
PROVEN = msgspec.structs.replace(ANSWERED, proven=84)
RESET = Heard((A, B), (B, A), ears=EARS, answered=True, reset=True, proven=60)


@pytest.mark.parametrize(("found", "size"), [(WELL, 1500), (DOUBT, 84), (STOP, 84)])
def test_a_packet_proves_no_larger_one(found: Trace, size: int) -> None:
    """If the walk is certain, the MTU of its links counts, else the size that was answered."""
    assert marked(found, {"h1": PROVEN}, "h1", GOAL).path_mtu == size


def test_a_packet_does_not_prove_what_follows_it() -> None:
    """Doubts of the packet itself are settled, those of later segments stay."""
    told = marked(AFTER, {"h1": PROVEN}, "h1", GOAL)
    assert (told.verdict, told.reachable, told.unknown, told.path_mtu) == (UNKNOWN, False, (LATER,), 84)
    assert "does not show what follows it: at h1/b: its later segments are dropped" in told.reason


def test_a_refusal_is_no_answer_where_a_socket_listens() -> None:
    """Something else has refused the connection; without a listener a refusal shows that packets pass."""
    told = marked(LISTENS, {"h1": RESET}, "h1", GOAL)
    assert (told.verdict, told.broken_at) == (BROKEN, "h1/a/eth0")
    assert "refused, though a socket listens there" in told.reason
    closed = msgspec.structs.replace(WELL, listens=False)
    assert marked(closed, {"h1": RESET}, "h1", GOAL).verdict == REACHABLE
