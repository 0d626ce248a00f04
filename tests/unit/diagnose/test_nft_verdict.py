"""nftables: what chains at a hook would do with a packet, from the expressions that nft lists as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from linkspan.core.addresses import prefix
from linkspan.core.errors import KernelError
from linkspan.core.wire import WIREGUARD
from linkspan.diagnose.trace.kernel_view import Chain
from linkspan.diagnose.trace.netfilter_hooks import passed, passed_bridge, passed_link
from linkspan.diagnose.trace.packet import FLOWING, Outer, Packet
from linkspan.diagnose.trace.verdict import Frame
from support.diagnose.nft_rules import (
    ACCEPT,
    DROP,
    SOURCE,
    TARGET,
    Kernel,
    Rule,
    base,
    field,
    mark,
    match,
    meta,
)

PING = Frame(Packet(SOURCE, TARGET), "eth0", "eth1", b"\x02\0\0\0\0\1")
WEB = Frame(Packet(SOURCE, TARGET, "tcp", 80), "eth0", "eth1")
ANSWER = Frame(Packet(TARGET, SOURCE, established=True), "eth1", "eth0")


HOLDS = [
    (match(meta("iifname"), "eth*"), True),
    (match(meta("iif"), "eth1"), False),
    (match(meta("oifname"), "eth0", "!="), True),
    (match(meta("iifgroup"), 3), True),
    (match(meta("l4proto"), {"set": ["tcp", "icmp"]}), True),
    (match(meta("l4proto"), 1), True),
    (match(meta("nfproto"), "ipv6"), False),
    (match(meta("mark"), 0), True),
    (match({"&": [meta("mark"), 255]}, 7), False),
    (match(meta("pkttype"), "broadcast"), False),
    (match(meta("skuid"), 0), False),
    (match(meta("time"), 5, "<"), None),
    (match(field("ip", "saddr"), {"prefix": {"addr": "10.0.0.0", "len": 8}}), True),
    (match(field("ip", "saddr"), {"range": ["10.0.0.3", "10.0.0.9"]}), False),
    (match(field("ip", "saddr"), {"set": ["10.0.0.1", {"elem": {"val": "10.0.0.2", "timeout": 9}}]}), True),
    (match(field("ip", "saddr"), "@known"), True),
    (match(field("ip", "daddr"), "@known", "!="), True),
    (match(field("ip", "daddr"), "@absent"), None),
    (match(field("ip", "dscp"), "cs1"), None),
    (match(field("ip6", "saddr"), "fd00::1", "!="), False),
    (match(field("ip", "ttl"), 5, "<"), False),
    (match(field("ip", "protocol"), "icmp"), True),
    (match(field("icmp", "type"), {"set": ["echo-request", "echo-reply"]}), True),
    (match(field("icmpv6", "type"), "echo-request"), False),
    (match(field("tcp", "dport"), 80), False),
    (match(field("ether", "saddr"), "02:00:00:00:00:01"), True),
    (match(field("ether", "daddr"), "02:00:00:00:00:01"), None),
    (match(field("ether", "saddr"), {"range": ["02:00:00:00:00:00", "02:00:00:00:00:0f"]}), True),
    (match(field("ether", "saddr"), {"range": ["01:80:c2:00:00:00", "01:80:c2:00:00:0f"]}), False),
    (match({"concat": [meta("iifname"), field("ip", "saddr")]}, {"set": [{"concat": ["eth0", "10.0.0.2"]}]}), True),
    (match({"ct": {"key": "state"}}, ["established", "new"], "in"), True),
    (match({"ct": {"key": "state"}}, "untracked", "in"), False),
    (match({"ct": {"key": "direction"}}, "reply"), False),
    (match({"ct": {"key": "ip saddr", "dir": "original"}}, "10.0.0.2"), None),
    (match({"fib": {"result": "type", "flags": ["daddr"]}}, "local"), True),
    (match({"fib": {"result": "oif", "flags": ["saddr", "iif"]}}, False), True),
    (match({"fib": {"result": "oif", "flags": ["saddr"]}}, False), False),
    ({"limit": {"rate": 1, "per": "second"}}, None),
    ({"quota": {"val": 1, "val_unit": "bytes", "inv": True}}, None),
    ({"set": {"op": "add", "elem": field("ip", "saddr"), "set": "@seen"}}, True),
    ({"set": {"op": "add", "elem": field("ip", "saddr"), "set": "@seen", "stmt": [{"limit": {}}]}}, None),
    ({"xt": {"type": "match", "name": "comment"}}, True),
    ({"xt": {"type": "match", "name": "bpf"}}, None),
    ({"log": None}, True),
    ({"counter": {"packets": 1, "bytes": 2}}, True),
]


@pytest.mark.parametrize(("expression", "holds"), HOLDS, ids=[str(e)[:90] for e, _ in HOLDS])
def test_a_match_is_true_false_or_not_known(expression: Mapping[str, Any], holds: bool | None) -> None:
    """A rule that drops by it drops, does not, or is named as one of which nobody knows whether it applies."""
    found = passed(Kernel(base((expression, DROP))), "forward", PING)
    assert found.passes is (holds is not True)
    assert bool(found.unsure) is (holds is None)


@pytest.mark.parametrize(
    ("frame", "flags", "op", "holds"),
    [
        (WEB, {"&": [field("tcp", "flags"), {"|": ["syn", "ack"]}]}, "==", True),
        (WEB, field("tcp", "flags"), "in", True),
        (PING, field("tcp", "flags"), "in", False),
    ],
)
def test_the_flags_of_a_connections_first_segment_are_known(frame: Frame, flags: Any, op: str, holds: bool) -> None:
    """Only SYN."""
    assert passed(Kernel(base((match(flags, "syn", op), DROP))), "forward", frame).passes is not holds


CLIENT = Frame(WEB.packet.sent_by((32768, 60999)), "eth0", "eth1")
SPORT, DPORT = field("tcp", "sport"), field("th", "dport")


@pytest.mark.parametrize(
    ("expression", "holds"),
    [
        (match(SPORT, 40000), None),
        (match(SPORT, 40000, "!="), None),
        (match(SPORT, 53), False),
        (match(SPORT, {"range": [32768, 60999]}), True),
        (match(SPORT, {"range": [1024, 65535]}, "!="), False),
        (match(SPORT, {"set": [53, {"range": [1, 1023]}]}), False),
        (match(SPORT, {"set": [53, {"range": [40000, 40010]}]}), None),
        (match(SPORT, 32768, ">="), True),
        (match(SPORT, 40000, ">"), None),
        (match(SPORT, 32768, "<"), False),
        (match(SPORT, "@ports"), False),
        (match(SPORT, "@some"), None),
        (match(SPORT, "@all"), True),
        (match(SPORT, "@absent"), None),
        (match({"concat": [field("ip", "saddr"), SPORT]}, "@pairs"), False),
        (match({"concat": [field("ip", "daddr"), SPORT]}, "@pairs"), None),
        (match({"concat": [field("ip", "saddr"), SPORT]}, {"set": [{"concat": ["10.0.0.2", 40000]}]}), None),
        (match(DPORT, 80), True),
    ],
    ids=str,
)
def test_which_port_a_client_gets_is_not_known(expression: Mapping[str, Any], holds: bool | None) -> None:
    """The client's kernel chooses one of many, and a rule is certain only if it decides the same for all of them."""
    found = passed(Kernel(base((expression, DROP))), "forward", CLIENT)
    assert found.passes is (holds is not True)
    assert bool(found.unsure) is (holds is None)


@pytest.mark.parametrize(("flags", "op", "there", "back"), [
    ("seen-reply", "in", False, True),
    ("seen-reply", "!", True, False),
    (["dnat", "confirmed"], "in", False, True),
    ("dnat", "in", False, False),
    ("assured", "in", False, None),
])  # fmt: skip
def test_the_status_of_a_connection_follows_from_what_was_seen_of_it(
    flags: Any, op: str, there: bool | None, back: bool | None
) -> None:
    """A first packet has no answer yet, and an answer is one."""
    rule = (match({"ct": {"key": "status"}}, flags, op), DROP)
    for frame, holds in ((PING, there), (ANSWER, back)):
        found = passed(Kernel(base(rule)), "forward", frame)
        assert (found.passes, bool(found.unsure)) == (holds is not True, holds is None)


def test_a_rule_may_forward_a_packet_itself() -> None:
    """To the next hop and the link that maps lead to; a packet that is in no map goes on to the next rule."""
    to = {"map": {"key": field("ip", "saddr"), "data": {"set": [["10.0.0.2", "10.9.0.1"]]}}}
    link = {"map": {"key": field("ip", "saddr"), "data": {"set": [["10.0.0.2", "lsx64"]]}}}
    plain = (match(field("ip", "hdrlength"), 5), match({"&": [field("ip", "frag-off"), 16383]}, 0))
    rule = (*plain, {"fwd": {"dev": link, "family": "ip", "addr": to}})
    nowhere = {"map": {"key": field("ip", "daddr"), "data": {"set": []}}}
    other = ({"fwd": {"dev": "lsx64", "family": "ip", "addr": nowhere}},)
    chain = Chain("netdev", "linkspan", "lsr1", "filter", "ingress", rules=(other, rule, (DROP,)), devices=("eth0",))
    found = passed_link(Kernel(chain), "ingress", PING)
    assert (found.passes, found.forwarded, found.unsure) == (True, ("lsx64", "10.9.0.1"), ())
    back = Frame(Packet(TARGET, SOURCE), "eth0", "eth1", b"\x02\0\0\0\0\1")
    assert not passed_link(Kernel(chain), "ingress", back).passes, "its source is in no map"


@pytest.mark.parametrize(("priority", "passes", "sure"), [(-1, False, True), (0, True, False), (1, True, True)])
def test_the_order_of_chains_of_equal_priority_is_not_known(priority: int, passes: bool, sure: bool) -> None:
    """A packet is forwarded for certain only if nothing that drops it may be called before."""
    to = {"fwd": {"dev": "lsx64", "family": "ip", "addr": "10.9.0.1"}}
    path = base((to,), hook="ingress", family="netdev", devices=("eth0",))
    drops = base((DROP,), hook="ingress", family="netdev", priority=priority, name="evil", devices=("eth0",))
    for listed in ((path, drops), (drops, path)):
        found = passed_link(Kernel(*listed), "ingress", PING)
        assert (found.passes, not found.unsure) == (passes, sure)
        assert bool(found.unless) == (passes and not sure)


def test_chains_of_equal_priority_that_agree_leave_no_doubt() -> None:
    """Two drops are a drop, and two chains that let it pass leave it as it is."""
    for rules, passes in (((DROP,), False), ((ACCEPT,), True)):
        found = passed(Kernel(base(rules), base(rules, name="other")), "forward", PING)
        assert (found.passes, found.unsure) == (passes, ())


@pytest.mark.parametrize(("states", "passes", "unsure"), [
    ("new", True, 1), ("established", True, 1), (["established", "new"], False, 0), ("invalid", True, 0),
])  # fmt: skip
def test_a_tunnel_s_flow_is_new_or_established(states: Any, passes: bool, unsure: int) -> None:
    """A flow with the same ports both ways is older than the packet; its source port is the sender's own."""
    wire = Outer(WIREGUARD, SOURCE, TARGET, 51820, ports=(51821, 51821)).packet()
    assert (wire.ct, wire.source_ports, wire.target_ports) == (FLOWING, (51821, 51821), (51820, 51820))
    rule = (match({"ct": {"key": "state"}}, states, "in"), DROP)
    found = passed(Kernel(base(rule)), "forward", Frame(wire, "eth0", "eth1"))
    assert (found.passes, len(found.unsure)) == (passes, unsure)


FLAGS = field("tcp", "flags")
DATA_ONLY = match({"&": [FLAGS, {"|": ["syn", "psh"]}]}, "psh")
ACK_ONLY = match(FLAGS, "ack")


@pytest.mark.parametrize("frame", [WEB, Frame(Packet(TARGET, SOURCE, "tcp", 40000, 80, established=True))])
@pytest.mark.parametrize("expression", [DATA_ONLY, ACK_ONLY, match(FLAGS, "psh", "in")])
def test_what_drops_the_segments_after_the_handshake_is_told(frame: Frame, expression: Mapping[str, Any]) -> None:
    """Both ways: the first ones pass, and the connection is of no use."""
    found = passed(Kernel(base((expression, DROP))), "forward", frame)
    assert (found.passes, found.unsure) == (True, ())
    assert [told.partition(":")[0] for told in found.later] == ["a later one is dropped (inet t c"]


def test_segments_that_follow_pass_as_an_established_connection() -> None:
    """They are translated as the first one was, though no rule of translation is asked for them."""
    state = match({"ct": {"key": "state"}}, "established", "in")
    assert passed(Kernel(base((state, ACCEPT), (match(DPORT, 80), ACCEPT), policy="drop")), "forward", WEB).later == ()
    nat = base(({"dnat": {"addr": "10.9.9.9", "port": 8080}},), hook="prerouting", priority=-100, kind="nat")
    drop = base((match(DPORT, 80), DROP), hook="prerouting", priority=0, name="after")
    found = passed(Kernel(nat, drop), "prerouting", WEB)
    assert (found.passes, found.later) == (True, ())


def test_who_answers_in_the_target_s_place_is_told() -> None:
    """A SYN that synproxy answers shows nothing of the target."""
    found = passed(Kernel(base(({"synproxy": {"mss": 1400}},))), "forward", WEB)
    assert found.unsure
    assert found.later == ("something else answers for the destination: inet t c: synproxy",)


LIMIT: Mapping[str, Any] = {"limit": {"rate": 1, "per": "second"}}
DOUBTS: list[tuple[str, Sequence[Rule], str, bool]] = [
    ("an accept before an accept", [(LIMIT, ACCEPT)], "accept", False),
    ("a drop before an accept", [(LIMIT, DROP)], "accept", True),
    ("an accept before a drop", [(LIMIT, ACCEPT), (DROP,)], "accept", True),
    ("a drop before a drop", [(LIMIT, DROP), (DROP,)], "accept", False),
    ("an accept before a policy of drop", [(LIMIT, ACCEPT)], "drop", True),
    ("a mark of which nothing depends", [(LIMIT, mark(7))], "accept", False),
    ("a mark on which a drop depends", [(LIMIT, mark(7)), (match(meta("mark"), 7), DROP)], "accept", True),
    ("a log", [(LIMIT, {"log": None})], "accept", False),
    ("a match that is false anyway", [(LIMIT, match(meta("iifname"), "x"), DROP)], "accept", False),
    ("a queue to a program", [({"queue": {"num": 1}},)], "accept", True),
    ("a statement of a later nft", [({"novelty": None},)], "accept", True),
    ("another address", [({"mangle": {"key": field("ip", "daddr"), "value": "10.9.9.9"}},)], "accept", True),
    ("a redirect to another device", [({"fwd": {"dev": "x"}},)], "accept", True),
    ("its own priority", [({"mangle": {"key": meta("priority"), "value": 1}},)], "accept", False),
]


@pytest.mark.parametrize(("rules", "policy", "told"), [d[1:] for d in DOUBTS], ids=[d[0] for d in DOUBTS])
def test_a_doubt_is_told_where_the_packets_fate_depends_on_it(
    rules: Sequence[Rule], policy: str, told: bool
) -> None:
    """If the unknown rule cannot change what happens to the packet, the verdict is certain."""
    found = passed(Kernel(base(*rules, policy=policy)), "forward", PING)
    assert bool(found.unsure) is told
    assert not told or found.passes


def test_chains_are_called_by_priority_and_see_what_those_before_them_did() -> None:
    """A mark of the raw chain drops in the security chain; a TTL and who has set it stays on the packet."""
    ttl: Mapping[str, Any] = {"mangle": {"key": field("ip", "ttl"), "value": 1}}
    last = base((match(meta("mark"), 9), match(field("ip", "ttl"), 1), DROP), priority=50, name="late")
    first = base((mark(9), ttl), priority=-300, name="early")
    found = passed(Kernel(last, first), "forward", PING)
    assert (found.passes, found.where) == (False, "inet t late")
    assert found.packet is not None
    assert (found.packet.mark, found.packet.ttl, found.packet.ttl_by.split(":")[0]) == (9, 1, "inet t early")


def test_what_is_not_tracked_is_neither_translated_nor_established() -> None:
    """``notrack`` counts before connection tracking only, and then for every chain after it."""
    late = base(({"notrack": None},), hook="prerouting", priority=-100, name="late")
    nat = base(({"dnat": {"addr": "10.9.9.9"}},), hook="prerouting", priority=-110, kind="nat")
    drop = base((match({"ct": {"key": "state"}}, "untracked", "in"), DROP), hook="prerouting", priority=0, name="d")
    found = passed(Kernel(late, nat, drop), "prerouting", PING)
    assert found.packet is not None
    assert (found.passes, found.packet.target) == (True, prefix("10.9.9.9").packed)
    raw = base(({"notrack": None},), hook="prerouting", priority=-300, name="raw")
    assert passed(Kernel(raw, nat, drop), "prerouting", PING).where == "inet t d"


def test_only_the_first_translation_at_a_hook_counts_and_none_for_an_answer() -> None:
    """As the kernel has it, whatever the chains' own priorities."""
    first = base(({"dnat": {"addr": "10.9.9.1", "port": 8080}},), hook="prerouting", priority=-200, kind="nat")
    second = base(({"dnat": {"addr": "10.9.9.2"}},), hook="prerouting", priority=-100, kind="nat", name="s")
    found = passed(Kernel(second, first), "prerouting", WEB)
    assert found.packet is not None
    assert (found.packet.target, found.packet.port) == (prefix("10.9.9.1").packed, 8080)
    answer = passed(Kernel(second, first), "prerouting", ANSWER)
    assert answer.packet == ANSWER.packet


def test_masquerade_takes_the_hosts_own_address_towards_the_target() -> None:
    """Masquerade uses the address of the route to the target, and SNAT the address of its rule."""
    for statement, source in (({"masquerade": None}, "192.0.2.9"), ({"snat": {"addr": "192.0.2.7"}}, "192.0.2.7")):
        chain = base((statement,), hook="postrouting", priority=100, kind="nat")
        found = passed(Kernel(chain), "postrouting", PING)
        assert found.packet is not None
        assert (found.masked, found.packet.source) == (True, prefix(source).packed)


def test_a_devices_hook_is_for_that_device_alone() -> None:
    """A chain at another device is not evaluated, in family netdev and in inet with hook ingress."""
    for family in ("netdev", "inet"):
        chain = base((DROP,), family=family, hook="ingress", devices=("eth0",))
        assert not passed_link(Kernel(chain), "ingress", PING).passes
        assert passed_link(Kernel(chain), "ingress", ANSWER).passes


def test_a_bridges_chains_tell_arp_from_ip_and_have_no_connections() -> None:
    """The state of a connection is unknown there."""
    arp = base((match(field("ether", "type"), "arp"), DROP), family="bridge")
    assert passed_bridge(Kernel(arp), "forward", PING).passes
    assert not passed_bridge(Kernel(arp), "forward", Frame(Packet(SOURCE, TARGET, "arp"))).passes
    state = base((match({"ct": {"key": "state"}}, "new", "in"), DROP), family="bridge")
    assert passed_bridge(Kernel(state), "forward", PING).unsure


def test_jumps_and_maps_lead_to_chains_and_back() -> None:
    """A return continues after the jump, a goto does not; a map's verdict is one as any other."""
    there = Chain("inet", "t", "there", rules=((match(meta("iifname"), "eth0"), {"return": None}), (DROP,)))
    jump, goto = ({"jump": {"target": "there"}},), ({"goto": {"target": "there"}},)
    assert not passed(Kernel(base(jump, (DROP,)), there), "forward", PING).passes
    assert passed(Kernel(base(goto, (DROP,)), there), "forward", PING).passes
    assert not passed(Kernel(base(jump), there), "forward", ANSWER).passes
    data = {"set": [["10.0.0.2", {"jump": {"target": "there"}}], [{"prefix": {"addr": "192.0.2.0", "len": 24}}, DROP]]}
    chain = base(({"vmap": {"key": field("ip", "saddr"), "data": data}},))
    assert passed(Kernel(chain, there), "forward", PING).passes
    assert not passed(Kernel(chain, there), "forward", ANSWER).passes


def test_the_last_comment_on_the_way_to_a_refusal_names_the_rule() -> None:
    """A chain in which all refused packets end says nothing about them."""
    end = Chain("inet", "t", "end", rules=((DROP,),))
    led = ({"goto": {"target": "end"}}, {"comment": "policy web line 3"})
    of_web = Chain("inet", "t", "of_web", rules=(led,))
    jump = ({"jump": {"target": "of_web"}}, {"comment": "policy web"})
    found = passed(Kernel(base(jump), of_web, end), "forward", PING)
    assert not found.passes
    assert found.by is not None
    assert (found.where, found.by.comment) == ("inet t of_web", "policy web line 3")
    bare = base(({"jump": {"target": "end"}},))
    assert passed(Kernel(bare, end), "forward", PING).where == "inet t end"


def test_a_named_map_is_asked_for_the_key_first() -> None:
    """A missing key decides nothing; a key that cannot be asked leaves a doubt."""
    cases = (PING, "@known", False, 0), (ANSWER, "@known", True, 0), (PING, "@no", True, 1)
    for frame, name, passes, unsure in cases:
        chain = base(({"vmap": {"key": field("ip", "saddr"), "data": name}},))
        found = passed(Kernel(chain), "forward", frame)
        assert (found.passes, len(found.unsure)) == (passes, unsure)


@pytest.mark.parametrize(("device", "unsure"), [("tun0", 0), ("eth0", 1)])
def test_a_device_without_macs_matches_none(device: str, unsure: int) -> None:
    """The MAC of a frame from another device is unknown if nobody reported it."""
    rule = (match(field("ether", "saddr"), "02:00:00:00:00:01"), ACCEPT)
    found = passed(Kernel(base(rule, (DROP,))), "forward", Frame(PING.packet, device, "eth1"))
    assert (found.passes, len(found.unsure)) == (bool(unsure), unsure)


def test_rules_that_cannot_be_read_make_nobody_sure() -> None:
    """Neither "passes" nor "drops" is claimed."""

    class Mute(Kernel):
        def chains(self, netns: int) -> tuple[Chain, ...]:
            raise KernelError("libnftables says no")

    found = passed(Mute(), "forward", PING)
    assert found.passes
    assert "libnftables says no" in found.unsure[0]
