"""IPsec's pure parts: settings, what a peer costs, what is begun and ended, and reasons for people."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from linkspan.agent.ipsec_sessions import (
    BURST,
    GRACE,
    RATE,
    IpsecPeer,
    IpsecSessions,
    Memory,
    Try,
    Wanted,
    hurries,
    missing,
    stepped,
    superfluous,
    under_way,
)
from linkspan.backends.ipsec.backend import BACKEND
from linkspan.backends.ipsec.settings import identity, settings
from linkspan.core.addresses import prefix
from linkspan.core.errors import Invalid, Unavailable
from linkspan.core.event_log import EventLog
from linkspan.core.host_view import Facts, HostView, Peer
from linkspan.core.model import Host, Lease, Network, Offer, Underlay
from linkspan.core.ruleset import element
from linkspan.core.states.host import HOST, NftElement, Route
from linkspan.core.states.ipsec import (
    ANYWHERE,
    IpsecChild,
    IpsecConnection,
    IpsecCredential,
    IpsecLink,
    Strongswan,
)
from linkspan.core.states.programs import Process
from linkspan.diagnose.doctor.ipsec_reasons import reasons, said
from linkspan.diagnose.plan.plan import commands, endings
from linkspan.kernel.drivers.ipsec import LISTED, CharonDriver, _Batch, configuration
from linkspan.kernel.io import vici
from linkspan.kernel.io.vici import Association, Child
from support.memory_machine import MemoryMachine, worker_of
from support.polling import eventually

KERNEL = Strongswan("/usr/sbin/charon-systemd", "/state/ipsec", kernel=True, plugin=True)
USER = msgspec.structs.replace(KERNEL, kernel=False)
DEMO = Network(
    name="demo", pools=("10.77.0.0/16", "fd77::/48"), subnet_len={"4": 24, "6": 64}, backend="ipsec",
    mtu=1400, gateways=("10.77.0.1/32", "fd77::1/128"),
)  # fmt: skip
PSK = {"ipsec.psk-file": "/etc/psk"}


def host(number: int, **more: str) -> Host:
    """Return a host with these settings."""
    return Host(id=f"h{number}", name=f"h{number}", underlay=Underlay("eth0", (f"192.0.2.{number}/24",)), settings=more)


def lease(number: int, by: str = "kernel") -> Lease:
    """Return a host's lease, with what it offers."""
    return Lease(
        network="demo", host=f"h{number}", prefixes=(f"10.77.{number}.0/24", f"fd77:0:0:{number}::/64"),
        addresses=(f"10.77.{number}.1", f"fd77:0:0:{number}::1"),
        endpoints={"ipsec": Offer({"address": f"192.0.2.{number}", "by": by})},
    )  # fmt: skip


def view(found: Strongswan | None = KERNEL, **more: str) -> HostView:
    """Return what host 1 sees."""
    facts = Facts(programs=(found,) if found else ())
    return HostView((DEMO,), facts=facts, host=host(1, **(more or PSK)), leases=(lease(1),))


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"ipsec.pks-file": "/x"}, "ipsec.pks-file is unknown"),
        ({"ipsec.psk-file": "x"}, "is no path"),
        ({"ipsec.psk-file": "/x", "ipsec.ca": "/y"}, "exclude each other"),
        ({"ipsec.rekey": "5"}, "out of range"),
        ({"ipsec.probe": "soon"}, "out of range"),
    ],
)
def test_settings_that_mean_nothing_are_named(given: dict[str, str], word: str) -> None:
    """With the allowed values."""
    with pytest.raises(Invalid) as refusal:
        settings(host(1, **given))
    assert word in refusal.value.message
    assert refusal.value.hint


def test_a_host_has_to_prove_itself() -> None:
    """By a shared key, or a complete set of certificates; the missing file is named."""
    assert identity(host(1, **PSK)).shared
    files = {f"ipsec.{word}": f"/{word}" for word in ("certificate", "key", "ca", "crl")}
    assert list(identity(host(1, **files)).files) == ["certificate", "key", "ca", "crl"]
    del files["ipsec.key"]
    for given in ({}, files):
        with pytest.raises(Unavailable, match=r"ipsec\.(certificate|key) is not set"):
            identity(host(1, **given))


@pytest.mark.parametrize(("mine", "theirs"), [(KERNEL, "kernel"), (KERNEL, "user"), (USER, "kernel"), (USER, "user")])
def test_a_peer_costs_a_connection_children_and_routes(mine: Strongswan, theirs: str) -> None:
    """Between kernels one child a family carries all; else one for each pair of prefixes, with marks only by ours."""
    states = list(BACKEND.peer(view(mine), DEMO, Peer(host(2), lease(2, theirs), "eth0", True)))
    (connection,) = (s for s in states if isinstance(s, IpsecConnection))
    children = {s.name for s in states if isinstance(s, IpsecChild)}
    if mine.kernel and theirs == "kernel":
        assert children == {"0.0.0.0/0=0.0.0.0/0", "::/0=::/0"}
    else:
        assert children == {"10.77.1.0/24=10.77.2.0/24", "fd77:0:0:1::/64=fd77:0:0:2::/64"}
    routes = [s for s in states if isinstance(s, Route)]
    sets = {s.set for s in states if isinstance(s, NftElement)}
    assert {r.if_id for r in routes} == {connection.mark}
    assert bool(connection.mark) == mine.kernel
    assert sets == ({"marks4", "marks6"} if mine.kernel else {"ways4", "ways6"})
    assert {r.device for r in routes} == ({"lsipsec"} if mine.kernel else {"ipsec0"})
    assert (connection.me, connection.peer, connection.first, connection.shared) == ("h1", "h2", True, True)


def test_a_host_behind_a_nat_begins_and_is_waited_for() -> None:
    """The hosts' ids do not matter; two hosts behind NATs cannot connect, and the error has the fix."""

    def behind(found: Host) -> Host:
        assert found.underlay is not None
        return msgspec.structs.replace(found, underlay=msgspec.structs.replace(found.underlay, hidden=True))

    def connection(seen: HostView, there: Host) -> IpsecConnection:
        states = list(BACKEND.peer(seen, DEMO, Peer(there, lease(2), "eth0", True)))
        return next(s for s in states if isinstance(s, IpsecConnection))

    here = view()
    assert here.host is not None
    hidden = msgspec.structs.replace(here, host=behind(here.host))
    waits, begins = connection(here, behind(host(2))), connection(hidden, host(2))
    assert (waits.remote, waits.first) == (ANYWHERE, False)
    assert (begins.remote, begins.first) == ("192.0.2.2", True)
    assert list(BACKEND.needs(here, DEMO, Peer(behind(host(2)), lease(2), "eth0", True))) == []
    with pytest.raises(Unavailable, match="both behind a NAT"):
        connection(hidden, behind(host(2)))


def test_too_many_pairs_in_user_space_are_refused_with_their_number() -> None:
    """Each is agreed on its own; kernels have no such limit."""
    many = msgspec.structs.replace(lease(2, "user"), prefixes=tuple(f"10.77.{n}.0/24" for n in range(2, 67)))
    with pytest.raises(Unavailable, match="66 pairs of prefixes"):
        list(BACKEND.peer(view(USER), DEMO, Peer(host(2), many, "eth0", True)))
    by_kernels = msgspec.structs.replace(many, endpoints=lease(2).endpoints)
    assert list(BACKEND.peer(view(), DEMO, Peer(host(2), by_kernels, "eth0", True)))


def test_a_host_needs_a_daemon_ports_and_a_way_to_encrypt() -> None:
    """The error names what is missing, with the fix; a network's own states stay closed in any case."""
    held = msgspec.structs.replace(USER, holders=((500, "process 12 (pluto)"),))
    bare = msgspec.structs.replace(USER, plugin=False)
    for found, word in ((None, "needs strongSwan"), (bare, "kernel-libipsec"), (held, "process 12 (pluto)")):
        with pytest.raises(Unavailable) as refusal:
            list(BACKEND.host(view(found)))
        assert word in refusal.value.message
        assert refusal.value.hint
        assert list(BACKEND.network(view(found), DEMO))


def test_an_internal_network_s_device_is_known_as_one() -> None:
    """In user space, too, though its name does not begin like all our others."""
    internal = msgspec.structs.replace(DEMO, internal=True)
    for found, device in ((KERNEL, "lsipsec"), (USER, "ipsec0")):
        assert element("internal_links", device) in list(BACKEND.network(view(found), internal))
        assert element("internal_links", device) not in list(BACKEND.network(view(found), DEMO))


def test_what_serves_all_networks_has_no_secret_in_it() -> None:
    """Only paths, and the plan shows their contents as ***."""
    states = list(BACKEND.host(view(USER)))
    assert {type(s) for s in states} >= {Process, IpsecLink, IpsecCredential}
    (credential,) = (s for s in states if isinstance(s, IpsecCredential))
    assert (credential.kind, credential.path) == ("psk", "/etc/psk")
    (line,) = commands(credential, str)
    assert "secret = ***" in line


def test_a_plan_for_swanctl_can_be_typed(tmp_path: Path) -> None:
    """In the real state folder; children have what their connection has, and the last command loads everything."""
    psk, folder = tmp_path / "psk", tmp_path / "ipsec"
    psk.write_text('a "b&|\\c $x\n')
    folder.mkdir()
    states = [IpsecCredential("psk", str(psk)), CONNECTION, CHILD]
    for state in states:
        for line in commands(state, str, str(tmp_path)):
            subprocess.run(["sh", "-ec", line], check=True)
    lines = (folder / "swanctl.conf").read_text().splitlines()
    assert (folder / "swanctl.conf").stat().st_mode & 0o777 == 0o600
    (secret,) = (line.removeprefix("secret = 0s") for line in lines if line.startswith("secret = "))
    assert base64.b64decode(secret) == psk.read_bytes()[:-1]
    at = lines.index("10-77-1-0-24-10-77-2-0-24 : of-ls-h2 {")
    assert lines[at + 1 : at + 3] == ["local_ts = 10.77.1.0/24", "remote_ts = 10.77.2.0/24"]
    assert lines.count("of-ls-h2 {") == lines.count("if_id_in = 0x7") == 1
    ((kind, last, _),) = endings(states, str(tmp_path))
    assert kind == "IpsecConnection"
    assert last.endswith(f"SWANCTL_DIR={folder} swanctl --load-all --noprompt --uri unix://{folder}/charon.vici")
    assert list(endings([], str(tmp_path))) == []


CONNECTION = IpsecConnection("ls-h2", "a", "b", "h1", "h2", True, False, True, 3600, 5, False, 7)
CHILD = IpsecChild("ls-h2", prefix("10.77.1.0/24"), prefix("10.77.2.0/24"))
WANTED = Wanted(CONNECTION, (CHILD,))


def association(number: int, state: str = "ESTABLISHED", age: int | None = 9, carries: bool = True) -> Association:
    """Return an association of the peer's."""
    children = (Child(CHILD.name, number, carries),)
    return Association("ls-h2", number, state, "192.0.2.2", True, age, children)


@pytest.mark.parametrize(
    ("missing", "since", "waits", "hurried"),
    [((), 0.0, False, False), (("c",), 90.0, False, True), (("c",), 0.0, True, True), (("c",), 0.0, False, False)],
)
def test_a_peer_that_is_missing_for_long_is_not_waited_for(
    missing: tuple[str, ...], since: float, waits: bool, hurried: bool
) -> None:
    """Queries of a thousand peers cost a tenth of a core, if it is; one of them is always down."""
    up = IpsecPeer(CONNECTION, (), 0.0, None)
    assert hurries([up, IpsecPeer(CONNECTION, missing, since, None, waits)], 100.0) == hurried


def test_what_does_not_stand_is_missing() -> None:
    """It is missing if the hosts have not met, or if the child was refused; one being made is not started again."""
    assert missing(WANTED, []) == (CHILD.name,)
    assert missing(WANTED, [association(1)]) == ()
    assert missing(WANTED, [association(1, carries=False)]) == (CHILD.name,)
    assert missing(WANTED, [association(1, "CONNECTING", None)]) == (CHILD.name,)
    assert under_way([association(1, "CONNECTING", None)])
    assert under_way([association(1, carries=False)])
    assert not under_way([association(1)])


def test_the_first_of_two_hosts_ends_what_stands_twice() -> None:
    """Once the newest carries packets and has been up for a while; the other host ends none."""
    both = [association(4), association(6)]
    assert superfluous(WANTED, both) == [4]
    assert superfluous(WANTED, both[:1]) == []
    assert superfluous(WANTED, [association(4), association(6, age=1)]) == []
    assert superfluous(WANTED, [association(4), association(6, carries=False)]) == []
    second = msgspec.structs.replace(CONNECTION, first=False)
    assert superfluous(Wanted(second, (CHILD,)), both) == []


LOG = """1795546600 05[IKE] <ls-h2|11> received cert request for "CN=pki"
1795546823 12[CFG] <19> looking for peer configs matching 192.0.2.1[h1]...192.0.2.2[h2]
1795546823 12[CFG] <ls-h2|19> certificate was revoked on Nov 24 19:00:14 UTC 2026, reason: unspecified
1795546823 12[IKE] <ls-h2|19> no trusted ECDSA public key found for 'h2'
1795546824 12[IKE] <ls-h2|20> received AUTHENTICATION_FAILED notify error
1795546824 12[IKE] <ls-h3|21> received AUTHENTICATION_FAILED notify error
1795546825 12[IKE] <theirs|22> no trusted ECDSA public key found for 'x'
"""


def test_the_reason_that_says_most_is_told() -> None:
    """The side that refuses knows why; a better reason replaces it, and a recent one an old one."""
    found = reasons(said(LOG), {})
    assert found.keys() == {"ls-h2", "ls-h3"}
    assert found["ls-h2"].why == "{peer}'s certificate was revoked on Nov 24 19:00:14 UTC 2026"
    assert found["ls-h3"].why == "{peer} refuses this host"
    later = "1795546900 01[IKE] <ls-h2|23> tried 1 shared key for 'h1' - 'h2', but MAC mismatched\n"
    assert reasons(said(later), found)["ls-h2"].why == "{peer} has another shared key"


class Daemon:
    """A daemon's content, and the commands that it gets."""

    def __init__(self) -> None:
        self.there: list[dict[str, Any]] = []
        self.loaded: tuple[str, ...] = (CHILD.name,)
        self.told: list[tuple[str, Any]] = []
        self.dpd = b"clear"

    def list_sas(self) -> list[dict[str, Any]]:
        """Return what stands."""
        return self.there

    def list_conns(self) -> list[dict[str, Any]]:
        """Return what is loaded: one connection with its children, or none."""
        children = {child: {"dpd_action": self.dpd} for child in self.loaded}
        return [{"ls-h2": {"children": children}}] if self.loaded else []

    def __getattr__(self, word: str) -> Callable[[Any], None]:
        return lambda message: self.told.append((word, message))


def test_a_peer_behind_a_nat_is_looked_for_once_where_it_was_seen() -> None:
    """The daemon tries there when its association is gone; it waits for a peer that was never seen."""
    hidden = Wanted(msgspec.structs.replace(CONNECTION, remote=ANYWHERE, first=False), (CHILD,))
    daemon, memory = Daemon(), Memory()
    memory.tries["ls-h2"] = Try(next=0)
    stepped(daemon, [hidden], memory)
    assert daemon.told == []
    child = {"name": CHILD.name.encode(), "uniqueid": b"1", "state": b"INSTALLED"}
    seen = {"uniqueid": b"1", "state": b"ESTABLISHED", "established": b"9", "child-sas": {"1": child}}
    daemon.there = [{"ls-h2": seen | {"remote-host": b"198.51.100.9", "remote-port": b"1025"}}]
    stepped(daemon, [hidden], memory)
    assert daemon.told == []
    daemon.there = []
    for _ in range(2):
        memory.tries["ls-h2"] = Try(next=0)
        stepped(daemon, [hidden], memory)
    (_, loaded), (word, begun) = daemon.told
    assert (word, begun["child"]) == ("initiate", CHILD.name)
    assert loaded["ls-h2"]["remote_addrs"] == ["198.51.100.9", ANYWHERE]
    assert loaded["ls-h2"].items() >= {"remote_port": "1025", "local_port": "4500", "keyingtries": "1"}.items()


def test_a_daemon_that_knows_nothing_yet_is_asked_for_nothing() -> None:
    """The only attempt at a hidden peer's last address is kept for when it can succeed, like the pause after it."""
    hidden = Wanted(msgspec.structs.replace(CONNECTION, remote=ANYWHERE, first=False), (CHILD,))
    daemon, memory = Daemon(), Memory()
    memory.places["ls-h2"] = ("198.51.100.9", 1025)
    memory.tries["ls-h2"] = Try(next=0)
    daemon.loaded = ()
    stepped(daemon, [hidden], memory)
    assert (daemon.told, memory.tries["ls-h2"].count) == ([], 0)
    daemon.loaded = (CHILD.name,)
    stepped(daemon, [hidden], memory)
    assert [word for word, _ in daemon.told] == ["load_conn", "initiate"]


class ManyPeers(Daemon):
    """A daemon with a thousand loaded peers, none of which is up."""

    def list_conns(self) -> list[dict[str, Any]]:
        """Return what is loaded."""
        return [{one.connection.name: {"children": {CHILD.name: {}}}} for one in MANY]

    def begun(self) -> list[str]:
        """Return the connections that were started, in their order, and forget them."""
        found = [message["ike"] for word, message in self.told if word == "initiate"]
        self.told.clear()
        return found


def many(me: str = "h0") -> list[Wanted]:
    """Return a host's thousand peers; half of them start first."""
    return [
        Wanted(
            msgspec.structs.replace(CONNECTION, name=f"ls-{n}", me=me, peer=f"h{n}", first=bool(n % 2)),
            (msgspec.structs.replace(CHILD, connection=f"ls-{n}"),),
        )
        for n in range(1, 1001)
    ]


MANY = many()


def test_a_thousand_peers_are_started_at_a_bounded_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """BURST at once and RATE a second, each once; a second attempt waits until all have had their first."""
    began = now = time.monotonic()
    monkeypatch.setattr("linkspan.agent.ipsec_sessions.time.monotonic", lambda: now)
    daemon, memory = ManyPeers(), Memory()
    stepped(daemon, MANY, memory)
    begun = daemon.begun()
    assert len(begun) == BURST
    assert memory.waiting == {one.connection.name for one in MANY} - set(begun)
    stepped(daemon, MANY, memory)
    assert daemon.begun() == []
    while memory.waiting:
        now += 0.5
        stepped(daemon, MANY, memory)
        more = daemon.begun()
        assert len(more) <= RATE * 0.5
        begun += more
    assert len(begun) == len(set(begun)) == len(MANY)
    assert now - began == pytest.approx((len(MANY) - BURST) / RATE, abs=1)
    now += 60
    stepped(daemon, MANY, memory)
    assert len(daemon.begun()) == BURST


def test_each_host_has_an_order_of_its_own() -> None:
    """A peer would otherwise be the first one of all."""
    firsts = []
    for me in ("a1", "a2", "a3"):
        daemon = ManyPeers()
        stepped(daemon, many(me), Memory())
        firsts.append(set(daemon.begun()))
    assert all(len(one & other) < BURST / 2 for one, other in itertools.combinations(firsts, 2))


def test_the_agent_starts_what_the_daemon_is_not_told_to_start(tmp_path: Path) -> None:
    """The plan, which is for hosts without an agent, lets the daemon start."""
    (loaded,) = configuration(CONNECTION, [CHILD])["children"].values()
    assert (loaded["start_action"], loaded["dpd_action"]) == ("none", "clear")
    (line,) = commands(CONNECTION, str, str(tmp_path))
    assert "'start_action = start'" in line
    assert "'dpd_action = start'" in line


def test_what_an_earlier_agent_loaded_goes_on_to_start_by_itself() -> None:
    """The daemon would end its associations with a changed start action, and an upgrade would interrupt packets."""
    actions = []
    for before in (b"start", b"restart", b"clear"):  # strongSwan 5.9.6 renamed the second
        daemon = Daemon()
        daemon.dpd = before
        _Batch(CharonDriver(Path("/nonexistent"), lambda: 1), daemon).apply([CONNECTION, CHILD], ())
        ((word, loaded),) = daemon.told
        assert word == "load_conn"
        child = loaded["ls-h2"]["children"][CHILD.name]
        actions.append((child["start_action"], child["dpd_action"]))
    assert actions == [("start", "start"), ("start", "start"), ("none", "clear")]


def test_a_peer_is_named_once_it_was_tried_in_vain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its turn it is only counted, however long it waits; and then it has the time that any peer has."""
    now = time.monotonic()
    monkeypatch.setattr("linkspan.agent.ipsec_sessions.time.monotonic", lambda: now)
    log = EventLog(tmp_path / "events")
    ipsec_sessions = IpsecSessions(worker_of(MemoryMachine()), log)
    monkeypatch.setattr(ipsec_sessions, "_news", lambda: "")
    seen = []
    for pause, waiting in ((0, {"ls-h2"}), (60, {"ls-h2"}), (1, set()), (GRACE, set()), (1, set())):
        now += pause
        ipsec_sessions._memory.waiting = waiting
        ipsec_sessions._note([WANTED], [])
        seen.append((ipsec_sessions.counts()["waiting"], [one["host"] for one in ipsec_sessions.told()]))
    assert seen == [(1, []), (1, []), (0, []), (0, []), (0, ["h2"])]
    ipsec_sessions._note([WANTED], [association(1)])
    assert (ipsec_sessions.told(), ipsec_sessions.counts()) == ([], {"peers": 1, "up": 1, "waiting": 0})
    log.close()


def test_connections_are_listed_when_something_changes_and_each_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each second only their names are asked for; one that somebody unloads, and a new daemon, are seen at once."""
    now, pid = time.monotonic(), [7]
    monkeypatch.setattr("linkspan.kernel.drivers.ipsec.time.monotonic", lambda: now)
    listed: list[int] = []

    class Listing(Daemon):
        def list_conns(self) -> list[dict[str, Any]]:
            listed.append(1)
            return super().list_conns()

        def get_conns(self) -> dict[str, list[bytes]]:
            return {"conns": [b"theirs", *([b"ls-h2"] if self.loaded else [])]}

    daemon = Listing()
    monkeypatch.setattr(vici, "session", lambda *_words: contextlib.nullcontext(daemon))
    driver = CharonDriver(Path("/nonexistent"), lambda: pid[0])

    def seen() -> tuple[int, int]:
        """Return how many states there are, and how many listings it took."""
        listed.clear()
        return len(list(driver.observe(HOST))), len(listed)

    assert [seen(), seen()] == [(2, 1), (2, 0)]
    daemon.loaded = ()
    assert [seen(), seen()] == [(0, 1), (0, 0)]
    daemon.loaded = (CHILD.name,)
    driver.apply([CONNECTION, CHILD], ())
    assert [seen(), seen()] == [(2, 1), (2, 0)]
    now += LISTED + 1
    assert [seen(), seen()] == [(2, 1), (2, 0)]
    pid[0] = 8
    assert [seen(), seen()] == [(2, 1), (2, 0)]


def test_a_peer_that_comes_is_started_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a second later: a migration has moved its packets by then. Without another peer nothing is asked again."""
    looks: list[list[str]] = []

    def step(_control: Path, wanted: list[Wanted], _memory: Memory) -> list[Association]:
        looks.append([one.connection.name for one in wanted])
        return [association(1)]

    monkeypatch.setattr("linkspan.agent.ipsec_sessions._stepped", step)
    monkeypatch.setattr("linkspan.agent.ipsec_sessions.EVERY", 1000.0)
    machine = MemoryMachine()
    machine.ike = tmp_path / "vici"
    log = EventLog(tmp_path / "events")
    other = msgspec.structs.replace(CONNECTION, name="ls-h3", peer="h3")

    async def run() -> None:
        ipsec_sessions = IpsecSessions(worker_of(machine), log)
        monkeypatch.setattr(ipsec_sessions, "_news", lambda: "")
        machine.reconciler.desired.replace(("peer",), [CONNECTION, CHILD])
        await ipsec_sessions.start()
        await eventually(lambda: looks == [["ls-h2"]], "the first query")
        for _ in range(3):
            ipsec_sessions.soon()
            await asyncio.sleep(0)
        machine.reconciler.desired.replace(("other",), [other])
        ipsec_sessions.soon()
        await eventually(lambda: looks == [["ls-h2"], ["ls-h2", "ls-h3"]], "the query for the peer that came")
        await ipsec_sessions.stop()

    asyncio.run(run())
    log.close()


def test_without_connections_nobody_looks_until_a_peer_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most hosts have none: an idle agent must not wake up each second for them."""
    looks, rests = list[list[str]](), list[float | None]()

    def step(_control: Path, wanted: list[Wanted], _memory: Memory) -> list[Association]:
        looks.append([one.connection.name for one in wanted])
        return [association(1)]

    monkeypatch.setattr("linkspan.agent.ipsec_sessions._stepped", step)
    machine = MemoryMachine()
    machine.ike = tmp_path / "vici"
    log = EventLog(tmp_path / "events")

    async def run() -> None:
        ipsec_sessions = IpsecSessions(worker_of(machine), log)
        rest = ipsec_sessions._rest

        async def resting(seconds: float | None) -> None:
            rests.append(seconds)
            await rest(seconds)

        monkeypatch.setattr(ipsec_sessions, "_rest", resting)
        monkeypatch.setattr(ipsec_sessions, "_news", lambda: "")
        await ipsec_sessions.start()
        await eventually(lambda: rests == [None], "the first rest, which has no end")
        machine.reconciler.desired.replace(("peer",), [CONNECTION, CHILD])
        ipsec_sessions.soon()
        await eventually(lambda: looks[:1] == [["ls-h2"]], "the query for the peer that came")
        await eventually(lambda: len(rests) > 1 and rests[1] is not None, "a rest that ends")
        await ipsec_sessions.stop()

    asyncio.run(run())
    log.close()
