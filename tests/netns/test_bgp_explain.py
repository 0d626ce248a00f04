"""Reasons of sessions that are not established, with real peers: BIRD or FRR in a namespace, each with one fault."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import pytest

from linkspan.backends.bgp import bird_config as configuration
from linkspan.backends.bgp.bird_config import Serving
from linkspan.backends.bgp.settings import Speaker
from linkspan.core.errors import Unavailable
from linkspan.core.states.bgp import Session
from linkspan.core.states.programs import SECRET
from linkspan.diagnose.doctor import bgp_evidence
from linkspan.diagnose.doctor.bgp_reasons import Why, explain
from linkspan.diagnose.trace.kernel_answers import KernelAnswers
from linkspan.kernel.io.namespaces import Namespaces
from linkspan.kernel.probe import bird_control
from linkspan.kernel.probe.bird_control import Protocol
from linkspan.kernel.probe.tcp_connect import md5_refusals
from support.netns.world import World
from support.polling import explained, until
from support.routers.bgp_speakers import Bird, Frr, needs

BIRD = """
log stderr all;
router id 192.0.2.2;
protocol device {{ scan time 10; }}
protocol bgp host {{
  local 192.0.2.2 as {own};
  neighbor 192.0.2.1 as {remote};
  connect delay time 1; connect retry time 2; error wait time 1, 2; hold time 9;
  {more}
  {family} {{ import all; export none; }};
}}
"""
FRR = """
router bgp {own}
 bgp router-id 192.0.2.2
 no bgp ebgp-requires-policy
 no bgp default ipv4-unicast
 timers bgp 1 3
 neighbor 192.0.2.1 remote-as {remote}
 neighbor 192.0.2.1 timers connect 1
 {more}
 address-family {family} unicast
  neighbor 192.0.2.1 activate
 exit-address-family
"""


class Pair:
    """A host with our speaker, and the peer that it is to talk to, on one link."""

    def __init__(self) -> None:
        self.world = World("host", "peer", tag="lkb")
        there = self.world.named("peer")
        self.world.sh("host", f"ip link add eth0 type veth peer name eth0 netns {there}")
        for name, own, other in (("host", 1, 2), ("peer", 2, 1)):
            # They know each other's MACs: the kernel's table of neighbours is one for all namespaces, and may be full.
            self.world.sh(
                name,
                f"ip link set lo up; ip link set eth0 address 02:00:00:00:00:0{own} up;"
                f" ip addr add 192.0.2.{own}/24 dev eth0;"
                f" ip addr add 2001:db8::{own}/64 dev eth0 nodad;"
                f" ip neigh add 192.0.2.{other} dev eth0 lladdr 02:00:00:00:00:0{other} nud permanent;"
                f" ip neigh add 2001:db8::{other} dev eth0 lladdr 02:00:00:00:00:0{other} nud permanent",
            )
        self.speakers: list[Bird | Frr] = []
        self.session = Session(
            name="tor", protocol="peer_tor", mesh=False, address="192.0.2.2", source="192.0.2.1",
            local_as=64512, remote_as=64600,
        )  # fmt: skip

    def close(self) -> None:
        """End it all."""
        for speaker in self.speakers:
            speaker.close()
        self.world.close()

    def peer(
        self, kind: str, own: int = 64600, remote: int = 64512, family: str = "ipv4", more: str = ""
    ) -> None:
        """Start the peer's speaker."""
        text = {"bird": BIRD, "frr": FRR}[kind].format(own=own, remote=remote, family=family, more=more)
        netns = self.world.named("peer")
        self._start(Bird(netns, text) if kind == "bird" else Frr(netns, text, kernel=False))

    def ours(self, *others: Session) -> None:
        """Start our speaker with the configuration that linkspan writes for the session, and for others."""
        speaker = Speaker(
            asn=64512, router_id="192.0.2.1", mesh=False, communities=(), med=None, any_next_hop=False,
            hold=90, restart_time=120, prefixes=None, sessions=(self.session, *others),
        )  # fmt: skip
        serving = Serving(pools=(), own=(), announced=(), next_hops={4: "192.0.2.1"})
        self.bird = Bird(self.world.named("host"), "")
        self.bird.write(configuration.main(speaker, serving, str(self.bird.folder)))
        peers = self.bird.folder / "peers"
        peers.mkdir()
        for session in speaker.sessions:
            text = configuration.session(session, (), (4,), 0)
            secret = Path(session.password_file).read_text() if session.password_file else ""
            (peers / f"{session.protocol}.conf").write_text(text.replace(SECRET, f'"{secret}"'))
        self._start(self.bird)

    def _start(self, speaker: Bird | Frr) -> None:
        self.speakers.append(speaker)
        speaker.start()

    def seen(self) -> Protocol:
        """Return what our speaker says of the session."""
        lines = bird_control.ask(self.bird.socket, "show protocols all")[0]
        return next(p for p in bird_control.protocols(lines) if p.name == "peer_tor")

    def why(self, refusals: Mapping[str, int] | None = None) -> Why | None:
        """Explain the session as the agent does."""
        with self.world.entered("host"), contextlib.closing(KernelAnswers(Namespaces())) as asked:
            seen = self.seen()
            said = bgp_evidence.recent(self.bird.folder / configuration.LOG)
            refusals = refusals if refusals is not None else md5_refusals()
            return explain(self.session, seen, bgp_evidence.gather(self.session, seen, asked, said, refusals))

    def told(self, *words: str, seconds: float = 60.0) -> Why:
        """Wait until the reason has all of the words, and return it."""
        found: list[Why] = []

        def fits() -> bool:
            found[:] = filter(None, [self.why()])
            return bool(found) and all(word in found[0].reason for word in words)

        with explained(lambda: f"{found}\n{self.seen()}\n{self.bird.log()}"):
            until(fits, f"the reason has {words}", seconds)
        return found[0]

    def established(self, seconds: float = 60.0) -> None:
        """Wait for the session to be up."""
        with explained(self.bird.log):
            until(lambda: self.seen().established, "the session is up", seconds)


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two ends of a link."""
    needs("bird", "frr")
    made = Pair()
    try:
        yield made
    finally:
        made.close()


def change(pair: Pair, **fields: object) -> None:
    """Let the session be another one."""
    pair.session = msgspec.structs.replace(pair.session, **fields)


def test_session_that_is_up_needs_no_reason(pair: Pair) -> None:
    """An established session has no reason, whatever its state was before."""
    pair.ours()
    pair.told("TCP refused")
    pair.peer("frr")
    pair.established()
    assert pair.why() is None


def test_another_speaker_is_another_process(pair: Pair) -> None:
    """Its control socket tells which one listens, so that a start is counted, and nothing else is."""
    pair.ours()
    (first,) = pair.bird.processes
    assert bird_control.speaker(pair.bird.socket) == first.pid
    pair.bird.kill()
    with pytest.raises(Unavailable, match="does not answer: connection refused"):
        bird_control.speaker(pair.bird.socket)
    pair.bird.start()
    (second,) = pair.bird.processes
    assert bird_control.speaker(pair.bird.socket) == second.pid != first.pid


def test_refused_by_a_host_without_a_speaker(pair: Pair) -> None:
    """If nobody listens on 179 the reason is TCP's refusal, with the address and the port."""
    pair.ours()
    why = pair.told("TCP refused", "192.0.2.2 port 179")
    assert "running" in why.fix


def test_no_route(pair: Pair) -> None:
    """A peer to which the kernel has no route is named as that, whether it may be hops away or not."""
    change(pair, address="203.0.113.9")
    pair.ours()
    assert "route" in pair.told("no route to 203.0.113.9").fix


def test_peer_behind_a_router_needs_multihop(pair: Pair) -> None:
    """A peer behind a router, set without multihop, gets another reason than one without a route."""
    pair.world.sh("host", "ip route add 203.0.113.0/24 via 192.0.2.2")
    change(pair, address="203.0.113.9")
    pair.ours()
    assert "bgp.peer.tor.multihop" in pair.told("on no network of this host", "192.0.2.2").fix


def test_nobody_on_the_link(pair: Pair) -> None:
    """An address of the link that nobody has is reported by the missing ARP answer."""
    change(pair, address="192.0.2.77")
    pair.ours()
    pair.told("nobody answers for 192.0.2.77 on eth0")


@pytest.mark.parametrize(("last", "words"), [("2", "TCP refused"), ("77", "nobody answers for 2001:db8::77")])
def test_session_by_ipv6(pair: Pair, last: str, words: str) -> None:
    """By IPv6 the same is seen: who listens, and who is on the link."""
    change(pair, source="2001:db8::1", address=f"2001:db8::{last}")
    pair.ours()
    pair.told(words)


def test_filtered(pair: Pair) -> None:
    """A peer that answers pings, while a firewall drops its port 179, is reported as filtered."""
    pair.world.sh(
        "peer",
        "nft 'add table inet x; add chain inet x i { type filter hook input priority 0; };"
        " add rule inet x i tcp dport 179 drop'",
    )
    pair.peer("frr", more="neighbor 192.0.2.1 passive")
    pair.ours()
    assert "firewall" in pair.told("filtered", "it answers pings").fix


@pytest.mark.parametrize("kind", ["bird", "frr"])
def test_as_number_that_we_do_not_expect(pair: Pair, kind: str) -> None:
    """A peer with another AS number than is set is named with the number it has."""
    pair.peer(kind, own=64601)
    pair.ours()
    assert pair.told("AS number mismatch", "is AS 64601", "64600 is expected").fix.endswith(
        "bgp.peer.tor.as=64601"
    )


@pytest.mark.parametrize("kind", ["bird", "frr"])
def test_as_number_that_the_peer_does_not_expect(pair: Pair, kind: str) -> None:
    """If the peer refuses this host's AS number, the reason says so."""
    pair.peer(kind, remote=64999)
    pair.ours()
    pair.told("AS number mismatch", "peer expects another AS number than 64512")


def with_password(pair: Pair, folder: Path) -> None:
    file = folder / "password"
    file.write_text("one")
    change(pair, password_file=str(file))
    pair.ours()


def test_other_password(pair: Pair, tmp_path: Path) -> None:
    """Two passwords that differ are reported by the signatures that the kernel refused, and none is shown."""
    pair.peer("frr", more="neighbor 192.0.2.1 password two")
    with_password(pair, tmp_path)
    why = pair.told("password mismatch", str(tmp_path / "password"), "TCPMD5Failure")
    assert "same password" in why.fix
    assert "two" not in why.reason.split()


def test_password_that_the_peer_lacks(pair: Pair, tmp_path: Path) -> None:
    """A peer without a password takes plain connections, which says that it is the one without."""
    pair.peer("frr")
    with_password(pair, tmp_path)
    pair.told("password mismatch", "accepts connections without a password")


def test_password_that_we_lack(pair: Pair) -> None:
    """A peer that signs, without a password here, is distinguished from a firewall."""
    pair.peer("frr", more="neighbor 192.0.2.1 password two")
    pair.ours()
    assert "password-file" in pair.told("password mismatch", "none is set here").fix


def test_hold_timer(pair: Pair) -> None:
    """A session that fell silent is reported with its hold timer, and that nothing answers now."""
    change(pair, hold=3)
    pair.peer("bird")
    pair.ours()
    pair.established()
    pair.world.sh(
        "peer",
        "nft 'add table inet x; add chain inet x i { type filter hook input priority 0; policy drop; };"
        " add chain inet x o { type filter hook output priority 0; policy drop; }'",
    )
    pair.told("the hold timer ran out", "nothing answers there now")


def test_source_address_that_the_host_lacks(pair: Pair) -> None:
    """A source address that is on no link is found here, and nobody else is asked."""
    change(pair, source="192.0.2.99")
    pair.peer("frr")
    pair.ours()
    assert "bgp.peer.tor.source" in pair.told("source address 192.0.2.99 is on no link").fix


@pytest.mark.parametrize("kind", ["bird", "frr"])
def test_source_address_that_the_peer_does_not_expect(pair: Pair, kind: str) -> None:
    """A peer that knows this host by another address gives itself away: it connects to that one, if we listen there."""
    pair.world.sh("host", "ip addr add 192.0.2.11/24 dev eth0")
    other = msgspec.structs.replace(pair.session, name="h2", protocol="mesh_h2", address="192.0.2.3")
    change(pair, source="192.0.2.11")
    pair.peer(kind)
    pair.ours(other)
    assert "192.0.2.11" in pair.told("another address of this host than 192.0.2.11").fix


def test_source_address_of_which_a_passive_peer_knows_nothing(pair: Pair) -> None:
    """A peer that never connects by itself ends our connection at once, and the reason says which address it met."""
    pair.world.sh("host", "ip addr add 192.0.2.11/24 dev eth0")
    change(pair, source="192.0.2.11")
    pair.peer("frr", more="neighbor 192.0.2.1 passive")
    pair.ours()
    assert "neighbor" in pair.told("ends each connection from 192.0.2.11 at once").fix


@pytest.mark.parametrize("kind", ["bird", "frr"])
def test_no_address_family_in_common(pair: Pair, kind: str) -> None:
    """A peer has only IPv6 and we only IPv4: the session fails for its capabilities, and that is the reason."""
    pair.peer(kind, family="ipv6")
    pair.ours()
    assert "unicast" in pair.told("no address family in common", "capability").fix


def test_port_held_by_another_speaker(pair: Pair) -> None:
    """If another speaker of this host has port 179, the reason names it with its pid."""
    other = Frr(pair.world.named("host"), "router bgp 65000\n bgp router-id 198.51.100.1\n", kernel=False)
    pair._start(other)
    pair.ours()
    pair.told("port 179 of this host is in use by process", str(other.processes[-1].pid), "bgpd")


def test_session_shut_down_by_the_peer(pair: Pair) -> None:
    """A peer that shuts the session down says so, and the reason repeats its last word."""
    pair.peer("frr")
    pair.ours()
    pair.established()
    peer = pair.speakers[0]
    assert isinstance(peer, Frr)
    peer.ask("configure terminal", "router bgp 64600", "neighbor 192.0.2.1 shutdown")
    pair.told("Administrative shutdown")


def test_disabled_here(pair: Pair) -> None:
    """A session that somebody disabled in our BIRD is reported as disabled."""
    pair.ours()
    pair.bird.ask("disable", "peer_tor")
    pair.told("disabled in BIRD")


def test_ttl_security_on_one_side(pair: Pair) -> None:
    """A TCP connection is up while the peer's OPEN is dropped for its TTL: the reason is TTL security."""
    change(pair, ttl_security=True)
    pair.peer("bird", more="passive;")
    pair.ours()
    why = pair.told("TCP")  # BIRD 2 waits long for an OPEN, BIRD 3 lets its hold timer run out
    assert "does not answer" in why.reason or "hold timer" in why.reason
    assert "ttl-security" in why.fix


def test_speaker_that_does_not_run(pair: Pair) -> None:
    """If our BIRD is down the reason says so, and the request ends at once."""
    pair.ours()
    pair.bird.kill()
    with pytest.raises(Exception, match=r"does not answer"):
        pair.seen()
