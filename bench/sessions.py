"""A thousand peers of the backends that have a daemon or a key for each: WireGuard, IPsec and BGP.

1. WireGuard: a device that is there gets 1,000 peers with a prefix, a route and an element of the guard each, and
   loses them again. By hand the same by one `wg addconf`, `ip -batch` and `nft -f`, in turn, each round in namespaces
   of its own. And what it would cost to put each peer by itself.
2. IPsec: one host has 1,000 peers, whose part is played by one more daemon with 1,000 addresses. First strongSwan
   gets all connections, through the driver and by hand. Then all associations are started, as the agent starts them
   and all at once. Both daemons encrypt in user space, also where the kernel has ESP.
3. BGP: a BIRD with the files that the backend makes for a host of a mesh, beside one with a route reflector. The part
   of the others is played by one more BIRD with as many addresses. From the start until the kernel has all routes,
   and what the speaker takes when nothing changes.

    sudo .venv/bin/python bench/sessions.py [--quick]

Needs the packages wireguard-tools (and wireguard-go where the kernel has no WireGuard), charon-systemd,
libcharon-extra-plugins and bird2. The whole program runs in network and mount namespaces of its own.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import report
from attach import Namespace
from bgp import written
from converge import NAME, VXLAN, lease, typed
from report import Metric, progress, result

from linkspan.agent.ipsec_sessions import HURRY, RATE, SOON, Memory, Wanted, _stepped, missing, wanted_of
from linkspan.backends import backend, migration
from linkspan.backends.ipsec import backend as ipsec
from linkspan.backends.ipsec import strongswan_config
from linkspan.backends.wireguard.backend import with_others
from linkspan.core.addresses import prefix
from linkspan.core.host_view import Facts, HostView, Other, Peer
from linkspan.core.model import Host, Lease, Network, Offer, Underlay
from linkspan.core.ruleset import admission, skeleton
from linkspan.core.states.bgp import MESH
from linkspan.core.states.host import (
    LEARNT_METRIC,
    Address,
    NftElement,
    NftSet,
    NftTable,
    Route,
    State,
    Wireguard,
)
from linkspan.core.states.ipsec import CONTROL, IpsecChild, IpsecConnection, Strongswan
from linkspan.core.states.programs import Bird
from linkspan.core.states.wireguard import DEVICE, PORT, Tools
from linkspan.kernel.drivers import ipsec as charon
from linkspan.kernel.drivers.nftables_texts import element_text
from linkspan.kernel.drivers.routes import learnt_routes
from linkspan.kernel.io import vici
from linkspan.kernel.io.namespaces import Namespaces
from linkspan.kernel.io.sockets import Sockets
from linkspan.kernel.kinds import kinds
from linkspan.kernel.machine import Machine
from linkspan.kernel.probe import bird_control

PEERS = 1000
FEW = 100
PATIENCE = 300.0
"""Seconds until something that should happen is given up."""
AT_ONCE = 60.0
"""Seconds for which associations that are started at once are waited for; 50 a second take 20 s for 1,000."""


def address(number: int) -> str:
    """Return the underlay address of host N."""
    return prefix("172.16.0.0/12").at(number + 10).address


def host(number: int, **fields: Any) -> Host:
    """Return host N."""
    return Host(id=f"n{number}", name=f"n{number}", underlay=Underlay("eth0", (f"{address(number)}/12",)), **fields)


def network(name: str, mtu: int = 1400) -> Network:
    """Return the network with a backend."""
    return msgspec.structs.replace(VXLAN, backend=name, options={}, mtu=mtu)


def claim(number: int, name: str, **offer: str) -> Lease:
    """Return host N's lease, with what it offers for a backend."""
    return msgspec.structs.replace(lease(number), host=f"n{number}", endpoints={name: Offer(offer)})


def awaited(holds: Callable[[], bool], what: str, pause: float = 0.02) -> float:
    """Wait until a condition holds; returns the seconds that it took."""
    started = time.perf_counter()
    while not holds():
        if time.perf_counter() - started > PATIENCE:
            sys.exit(f"error: not within {PATIENCE:.0f} s: {what}")
        time.sleep(pause)
    return time.perf_counter() - started


def processor(pid: int) -> float:
    """Return the processor time of a process, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Subject:
    """A machine in a namespace of its own, with the rules that every host has."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.namespace = Namespace(folder / "ns")
        with self.namespace.entered():
            self.machine = Machine(folder / "state")
            self.change(("host",), skeleton(Facts(), kinds()))

    def change(self, source: tuple[str, ...], states: Any) -> None:
        """Replace a source's states."""
        if failed := self.machine.reconciler.change(source, states):
            sys.exit(f"error: {next(iter(failed.values()))}")

    def own(self, view: HostView, network: Network) -> None:
        """Make a network's own states."""
        chains = [admission(pool, network.subnet_len[str(pool.family)], kinds()) for pool in network.prefixes]
        self.change(("network", NAME), [*chains, *backend(network.backend).network(view, network)])

    def each(self, sources: dict[tuple[str, ...], Sequence[State]]) -> None:
        """Replace the states of peers."""
        refused = self.machine.reconciler.each(sources)
        if refused or self.machine.reconciler.failing:
            sys.exit(f"error: {next(iter([*refused.values(), *self.machine.reconciler.failing.values()]))}")

    def close(self) -> None:
        """End its helpers, and let go; the namespace goes with the program."""
        with self.namespace.entered():
            for source in list(self.machine.reconciler.desired.sources()):
                self.machine.reconciler.change(source, ())
            self.machine.close()
            self.machine.processes.close()


# ------------------------------------------------------------------ WireGuard


class WireguardHost(Subject):
    """A host with a WireGuard device and no peer yet."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.network = network("wireguard")
        with self.namespace.entered():
            public = self.machine.wireguard.keys.make("private.key")
            tools = self.machine.program(Tools)
            if tools is None or tools.problem:
                sys.exit(f"error: {tools.problem if tools else 'no WireGuard'}")
            self.program = tools.program
            me = host(0, keys={"wireguard": public})
            self.view = HostView(
                (self.network,), facts=Facts(programs=(tools,)), host=me, leases=(claim(0, "wireguard"),)
            )
            self.change(("host", "wireguard"), backend("wireguard").host(self.view))
            self.own(self.view, self.network)

    def peers(self, count: int) -> tuple[HostView, dict[tuple[str, ...], Sequence[State]]]:
        """Return what the host knows of its peers, and their states by source."""
        hosts = [host(n, keys={"wireguard": key(n)}) for n in range(1, count + 1)]
        seen = with_others(self.view, tuple(Other(one, (NAME,)) for one in hosts))
        there = [Peer(one, claim(n, "wireguard", endpoint="")) for n, one in enumerate(hosts, 1)]
        return seen, {
            ("peer", NAME, one.host.id): migration.meet(seen, self.network, one).states for one in there
        }

    def converge(self, count: int) -> tuple[float, float]:
        """Get peers, all at once, and lose them; returns the milliseconds of both."""
        with self.namespace.entered():
            started = time.perf_counter()
            seen, sources = self.peers(count)
            self.change(("host", "wireguard"), backend("wireguard").host(seen))
            self.each(sources)
            came = time.perf_counter()
            self.each(dict.fromkeys(sources, ()))
            self.change(("host", "wireguard"), backend("wireguard").host(self.view))
            gone = time.perf_counter()
        return (came - started) * 1e3, (gone - came) * 1e3

    def one_by_one(self, count: int) -> float:
        """Get peers, each by itself; returns the milliseconds for one."""
        with self.namespace.entered():
            seen, sources = self.peers(count)
            self.change(("host", "wireguard"), backend("wireguard").host(seen))
            started = time.perf_counter()
            for source, states in sources.items():
                self.change(source, states)
            return (time.perf_counter() - started) * 1e3 / count


def key(number: int) -> str:
    """Return the public key of host N."""
    return base64.b64encode(hashlib.blake2b(str(number).encode(), digest_size=32).digest()).decode()


def wireguard_by_hand(folder: Path, subject: WireguardHost, count: int) -> float:
    """Give a device the same peers by one command of each program; returns milliseconds."""
    namespace = Namespace(folder / "hand")
    seen, sources = subject.peers(count)
    states = [state for found in sources.values() for state in found]
    by_set: dict[str, list[str]] = {}
    for element in (s for s in states if isinstance(s, NftElement)):
        by_set.setdefault(element.set, []).append(element_text(element))
    rules = [f"add element inet linkspan {name} {{ {', '.join(texts)} }}\n" for name, texts in by_set.items()]
    (folder / "nft").write_text("".join(rules))
    lines = list(typed([s for s in states if isinstance(s, Route)]))
    (folder / "ip").write_text("".join(f"{line.partition(' ')[2].removeprefix('-4 ')}\n" for line in lines))
    peers = [
        f"[Peer]\nPublicKey = {key(n)}\nEndpoint = {address(n)}:{PORT}\nPersistentKeepalive = 25\n"
        f"AllowedIPs = {claim(n, 'wireguard').prefixes[0]}\n"
        for n in range(1, count + 1)
    ]
    (folder / "wg").write_text("".join(peers))
    private = subject.machine.wireguard.keys.folder / "private.key"
    go: subprocess.Popen[bytes] | None = None
    with namespace.entered():
        try:
            if subject.program:
                quiet = subprocess.DEVNULL
                go = subprocess.Popen(["wireguard-go", "-f", DEVICE], stdout=quiet, stderr=quiet)
                awaited(Path(f"/run/wireguard/{DEVICE}.sock").exists, "wireguard-go begins")
            else:
                subprocess.run(["ip", "link", "add", DEVICE, "type", "wireguard"], check=True)
            sets = [s for s in skeleton(Facts(), kinds()) if isinstance(s, NftTable | NftSet)]
            own = [s for s in backend("wireguard").network(seen, subject.network) if isinstance(s, Address)]
            up = [s for s in backend("wireguard").host(subject.view) if isinstance(s, Wireguard)]
            first = [
                f"wg set {DEVICE} private-key {private} listen-port {PORT}",
                f"ip link set {DEVICE} mtu {up[0].mtu} up",
            ]
            lines = [*typed(sets), *first, *typed(own)]
            subprocess.run(["sh", "-e"], input="\n".join(lines), text=True, check=True)
            started = time.perf_counter()
            for words in (["wg", "addconf", DEVICE, "wg"], ["ip", "-batch", "ip"], ["nft", "-f", "nft"]):
                subprocess.run([*words[:-1], str(folder / words[-1])], check=True, stdout=subprocess.DEVNULL)
            took = (time.perf_counter() - started) * 1e3
            made = subprocess.run(["wg", "show", DEVICE, "peers"], check=True, capture_output=True)
            if len(made.stdout.split()) != count:
                sys.exit(f"error: by hand, {len(made.stdout.split())} peers were made of {count}")
            return took
        finally:
            if go is not None:
                ended(go)
                Path(f"/run/wireguard/{DEVICE}.sock").unlink(missing_ok=True)


def wireguard(folder: Path, rounds: int) -> dict[str, Metric]:
    """Return WireGuard's metrics."""
    ours, away, hand, ratios, alone = [], [], [], [], []
    for number in range(rounds + 1):
        here = folder / f"wireguard{number}"
        subject = WireguardHost(here)
        by = wireguard_by_hand(here, subject, PEERS)
        came, gone = subject.converge(PEERS)
        one = subject.one_by_one(FEW)
        subject.close()
        if number:  # the first round warms up
            ours.append(came)
            away.append(gone)
            hand.append(by)
            ratios.append(came / by)
            alone.append(one)
        progress(f"WireGuard: round {number} of {rounds}")
    name = f"WireGuard, {PEERS} peers"
    return {
        f"{name}: by hand (wg addconf, ip -batch, nft -f)": result(statistics.median(hand), "ms"),
        f"{name}: all come": result(statistics.median(ours), "ms"),
        f"{name}: all come / by hand": result(statistics.median(ratios), "ratio"),
        f"{name}: all go": result(statistics.median(away), "ms"),
        f"WireGuard: one peer of {FEW}, each by itself": result(statistics.median(alone), "ms"),
    }


# ------------------------------------------------------------------ IPsec


class Crowd:
    """A namespace that plays the part of many hosts: it has an address of each, on the other end of a veth pair."""

    def __init__(self, folder: Path, subject: Namespace, count: int) -> None:
        self.namespace = Namespace(folder / "crowd")
        with subject.entered():
            lines = [
                f"ip link add eth0 type veth peer name eth0 netns {self.namespace.path}",
                f"ip addr add {address(0)}/12 dev eth0",
                "ip link set eth0 up",
            ]
            subprocess.run(["sh", "-e"], input="\n".join(lines), text=True, check=True)
        with self.namespace.entered():
            given = "".join(f"addr add {address(n)}/12 dev eth0\n" for n in range(1, count + 1))
            batch("link set eth0 up\n" + given)
            shown = subprocess.run(["ip", "-br", "link", "show", "eth0"], check=True, capture_output=True, text=True)
            mac = shown.stdout.split()[2]
        with subject.entered():
            # Permanent ones: one kernel keeps at most 1,024 that it has learnt, for all namespaces.
            batch("".join(f"neigh add {address(n)} lladdr {mac} dev eth0 nud permanent\n" for n in range(1, count + 1)))


def batch(lines: str) -> None:
    """Run commands of `ip`."""
    subprocess.run(["ip", "-batch", "-"], input=lines, text=True, check=True, stdout=subprocess.DEVNULL)


class IpsecHost(Subject):
    """A host with strongSwan's daemon, and the daemon of its peers."""

    def __init__(self, folder: Path, count: int) -> None:
        super().__init__(folder)
        self.count = count
        self.network = network("ipsec")
        self.folder = folder
        self.psk = folder / "psk"
        self.psk.touch(mode=0o600)
        self.psk.write_text("all hosts of a benchmark have it\n")
        self.crowd = Crowd(folder, self.namespace, count)
        with self.namespace.entered():
            found = self.machine.program(Strongswan)
            if found is None or not found.plugin:
                sys.exit("error: no strongSwan: apt-get install charon-systemd libcharon-extra-plugins")
            by_daemon = msgspec.structs.replace(found, kernel=False)
            me = host(0, settings={"ipsec.psk-file": str(self.psk)})
            mine = (claim(0, "ipsec", address=address(0), by="user"),)
            self.view = HostView((self.network,), facts=Facts(programs=(by_daemon,)), host=me, leases=mine)
            self.change(("host", "ipsec"), backend("ipsec").host(self.view))
            self.own(self.view, self.network)
        self.others = self._others(found.daemon)

    def _others(self, daemon: str) -> subprocess.Popen[bytes]:
        """Start the peers' daemon, which accepts all from this host, and give it their connections."""
        mine = self.folder / "others"
        mine.mkdir()
        text = strongswan_config.main(str(mine), user_space=True, rule=ipsec.RULE, table=ipsec.TABLE)
        # They are one daemon here, and have one peer: it must not take that for an attack.
        text = text.replace("charon {\n", "charon {\n  cookie_threshold = 0\n  block_threshold = 0\n", 1)
        (mine / strongswan_config.CONF).write_text(text)
        conf = f"STRONGSWAN_CONF={mine / strongswan_config.CONF}"
        with self.crowd.namespace.entered():
            quiet = subprocess.DEVNULL
            made = subprocess.Popen(["env", conf, daemon], stdout=quiet, stderr=quiet, start_new_session=True)
        with vici.session(mine / CONTROL, lambda: made.poll() is None) as asked:
            asked.load_shared({"type": "IKE", "data": self.psk.read_text().strip()})
            for state, child in self._pairs():
                back = msgspec.structs.replace(
                    state, local=state.remote, remote=state.local, me=state.peer, peer=state.me, first=False
                )
                own = IpsecChild(child.connection, child.there, child.here)
                asked.load_conn({state.name: charon.configuration(back, [own])})
        return made

    def peers(self) -> dict[tuple[str, ...], Sequence[State]]:
        """Return the states of all peers, by source."""
        there = [
            Peer(host(n), claim(n, "ipsec", address=address(n), by="user")) for n in range(1, self.count + 1)
        ]
        return {
            ("peer", NAME, one.host.id): migration.meet(self.view, self.network, one).states for one in there
        }

    def _pairs(self) -> Iterator[tuple[IpsecConnection, IpsecChild]]:
        """Yield each peer's connection and its child."""
        for states in self.peers().values():
            (state,) = (s for s in states if isinstance(s, IpsecConnection))
            (child,) = (s for s in states if isinstance(s, IpsecChild))
            yield state, child

    def load_by_hand(self) -> float:
        """Give the daemon all connections, and take them away again; returns the milliseconds of the first."""
        pairs = list(self._pairs())
        with vici.session(self.machine.ike) as asked:
            started = time.perf_counter()
            for state, child in pairs:
                asked.load_conn({state.name: charon.configuration(state, [child])})
            took = (time.perf_counter() - started) * 1e3
            for state, _ in pairs:
                asked.unload_conn({"name": state.name})
        return took

    def load(self) -> float:
        """Get all peers, with routes and elements; returns milliseconds."""
        with self.namespace.entered():
            started = time.perf_counter()
            self.each(self.peers())
            return (time.perf_counter() - started) * 1e3

    def wanted(self) -> list[Wanted]:
        """Return the connections that the host wants."""
        return wanted_of(self.machine.reconciler.desired)

    @property
    def pid(self) -> int:
        """Return the process of the host's daemon."""
        return self.machine.processes.pid("charon")

    def start(self) -> tuple[float, float, float]:
        """Start all associations as the agent does.

        Returns the seconds until all are up, the part of them that the daemon took of a core, and the milliseconds that
        the last query took of the processor.
        """
        wanted, memory = self.wanted(), Memory()
        before, started = processor(self.pid), time.perf_counter()
        while True:
            found = _stepped(self.machine.ike, wanted, memory)
            there = {one.connection: [one] for one in found}
            left = sum(bool(missing(one, there.get(one.connection.name, ()))) for one in wanted)
            if not left:
                break
            progress(f"IPsec: {left} of {self.count} are missing")
            if time.perf_counter() - started > PATIENCE:
                sys.exit(f"error: IPsec: {left} associations are still missing")
            time.sleep(max(SOON, HURRY * memory.took))
        took = time.perf_counter() - started
        return took, (processor(self.pid) - before) / took, memory.took * 1e3

    def start_at_once(self) -> tuple[int, float, float]:
        """Start all associations at once, and wait until all are up, for at most AT_ONCE.

        Returns how many are up, the seconds that this took, and the daemon's part of a core. The daemons give up
        what they do not finish in time, so some may stay away.
        """
        wanted = self.wanted()
        before, started = processor(self.pid), time.perf_counter()
        with vici.session(self.machine.ike) as asked:
            for one in wanted:
                asked_for = {"ike": one.connection.name, "child": one.children[0].name, "timeout": "-1"}
                list(asked.initiate(asked_for) or ())
        while (up := self._up()) < self.count and time.perf_counter() - started < AT_ONCE:
            time.sleep(0.5)
        took = time.perf_counter() - started
        return up, took, (processor(self.pid) - before) / took

    def _up(self) -> int:
        with vici.session(self.machine.ike) as asked:
            return len({one.connection for one in vici.associations(asked) if one.established and one.children})

    def close(self) -> None:
        """End both daemons."""
        self.others.terminate()
        self.others.wait()
        super().close()


def ike(folder: Path, count: int, rounds: int) -> dict[str, Metric]:
    """Return IPsec's metrics."""
    hand, ours, bounded, share, query, up_at_once, at_once, share_at_once = ([] for _ in range(8))
    for number in range(rounds):
        subject = IpsecHost(folder / f"ipsec{number}", count)
        hand.append(subject.load_by_hand())
        ours.append(subject.load())
        took, part, last = subject.start()
        bounded.append(took)
        share.append(100 * part)
        query.append(last)
        subject.close()
        subject = IpsecHost(folder / f"at_once{number}", count)
        subject.load()
        up, took, part = subject.start_at_once()
        up_at_once.append(up)
        at_once.append(took)
        share_at_once.append(100 * part)
        subject.close()
        progress(f"IPsec: round {number + 1} of {rounds}")
    name = f"IPsec, {count} peers"
    return {
        f"{name}: connections loaded by hand": result(statistics.median(hand), "ms"),
        f"{name}: connections, routes and elements by linkspan": result(statistics.median(ours), "ms"),
        f"{name}: all up, {RATE:.0f} started a second": result(
            statistics.median(bounded), "s", f"<= {count / RATE + 10:.0f}"
        ),
        f"{name}: the daemon's part of a core meanwhile": result(statistics.median(share), "%"),
        f"{name}: one query of the agent, all up": result(statistics.median(query), "ms"),
        f"{name}: started at once, up after at most {AT_ONCE:.0f} s": result(statistics.median(up_at_once), ""),
        f"{name}: started at once, seconds until then": result(statistics.median(at_once), "s"),
        f"{name}: the daemon's part of a core meanwhile, started at once": result(
            statistics.median(share_at_once), "%"
        ),
    }


# ------------------------------------------------------------------ BGP

OTHERS = """\
router id {first};
log stderr {{ fatal, bug }};
protocol device {{}}
protocol static {{ ipv4;
{routes}
}}
template bgp one {{
  hold time 90; connect delay time 1;
  ipv4 {{ import none; }};
}}
{sessions}
"""
OF_THE_MESH = """\
protocol bgp n{number} from one {{
  local {own} as 64512; strict bind on; neighbor {subject} as 64512; multihop 1; ttl security on;
  ipv4 {{ export where net = {block}; next hop self; }};
}}"""
REFLECTOR = """\
protocol bgp reflector from one {{
  local {own} as 64512; neighbor {subject} as 64512; rr client;
  ipv4 {{ export where source = RTS_STATIC; next hop self; }};
}}"""


def speaker(folder: Path, count: int, *, mesh: bool, seconds: float) -> dict[str, float]:
    """Start a host's BIRD in a mesh of so many others, or with a reflector that has their routes."""
    folder.mkdir()
    namespace = Namespace(folder / "ns")
    crowd = Crowd(folder, namespace, count)
    blocks = {n: claim(n, "bgp").prefixes[0] for n in range(1, count + 1)}
    sessions = (
        [OF_THE_MESH.format(number=n, own=address(n), subject=address(0), block=blocks[n]) for n in blocks]
        if mesh
        else [REFLECTOR.format(own=address(1), subject=address(0))]
    )
    routes = "\n".join(f"  route {block} blackhole;" for block in blocks.values())
    text = OTHERS.format(first=address(1), routes=routes, sessions="\n".join(sessions))
    settings = {} if mesh else {"bgp.mesh": "false", "bgp.peer.rr.address": address(1)}
    mine = folder / "bgp"
    argv = configured(mine, count, settings)
    quiet = subprocess.DEVNULL
    (folder / "others.conf").write_text(text)
    with contextlib.ExitStack() as stack:
        with crowd.namespace.entered():
            words = ["bird", "-f", "-c", str(folder / "others.conf"), "-s", str(folder / "others.ctl")]
            others = subprocess.Popen(words, stdout=quiet)
        stack.callback(ended, others)
        awaited((folder / "others.ctl").exists, "the others' BIRD starts")
        with namespace.entered():
            batch(f"addr add {claim(0, 'bgp').addresses[0]}/32 dev lo\n")
            sockets = Sockets(Namespaces())
            stack.callback(sockets.close)
            started = time.perf_counter()
            bird = subprocess.Popen(argv, stdout=quiet)
            stack.callback(ended, bird)
            awaited(lambda: len(learnt_routes(sockets, LEARNT_METRIC)) == count, f"{count} routes of BGP")
            took = time.perf_counter() - started
        before = processor(bird.pid)
        time.sleep(seconds)
        idle = (processor(bird.pid) - before) / seconds
        began = time.thread_time()
        (told,) = bird_control.ask(mine / "bird.ctl", "show protocols all")
        found = bird_control.protocols(told)
        asked = time.thread_time() - began
        assert sum(one.established for one in found) == (count if mesh else 1)
        status = Path(f"/proc/{bird.pid}/status").read_text()
        resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    return {"took": took, "idle": 100 * idle, "asked": asked * 1e3, "resident": resident / 1024}


def ended(process: subprocess.Popen[bytes]) -> None:
    """End a process of ours."""
    process.kill()
    process.wait()


def configured(folder: Path, count: int, settings: dict[str, str]) -> list[str]:
    """Write a host's files, and return how its speaker is started."""
    net = network("bgp", 1500)
    peers = tuple(Peer(host(n), claim(n, "bgp"), "eth0", on_link=True) for n in range(1, count + 1))
    facts = Facts(programs=(Bird("bird", "birdc", str(folder)),))
    me = host(0, settings=settings)
    return written(HostView((net,), facts=facts, host=me, leases=(claim(0, "bgp"),), peers=peers))


def speakers(folder: Path, sizes: Sequence[int], seconds: float) -> dict[str, Metric]:
    """Return BGP's metrics."""
    found: dict[str, Metric] = {}
    for count in sizes:
        for mesh in (True, False):
            what = f"BGP, {count} peers, {'mesh' if mesh else 'route reflector'}"
            progress(what)
            seen = speaker(folder / f"bgp{count}{mesh}", count, mesh=mesh, seconds=seconds)
            found[f"{what}: all routes in the kernel"] = result(seen["took"], "s")
            found[f"{what}: BIRD resident"] = result(seen["resident"], "MB")
            found[f"{what}: BIRD's part of a core when nothing changes"] = result(seen["idle"], "%")
            found[f"{what}: one query of the agent"] = result(seen["asked"], "ms")
    return found


# ------------------------------------------------------------------ all of it


def measure(folder: Path, quick: bool) -> dict[str, Metric]:
    """Run everything; returns the metrics."""
    report.open_files()  # BIRD has one for each session, and its unit allows 65,536
    found = wireguard(folder, 2 if quick else 7)
    found |= ike(folder, FEW if quick else PEERS, 1 if quick else 3)
    found |= speakers(folder, (MESH,) if quick else (MESH, PEERS), 5 if quick else 60)
    progress("")
    report.table("what", found)
    return found


if __name__ == "__main__":
    report.run(measure, "a thousand peers: WireGuard, IPsec, BGP", "fewer rounds and peers: about a minute")
