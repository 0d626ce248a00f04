"""Encryption benchmark: the bare underlay, the same tools set up by hand, and linkspan's.

Virtual hosts on one switch: two with agents, and two where the tools are set up by hand, each with a
container of its own and a table that masquerades. By hand there is no rule besides: nothing guards sources
there, nor keeps packets from leaving in clear. Daemons are those that linkspan starts, with its settings,
each in a session of its own. Everything is measured in turn, round after round, in one run, as in
bench/datapath.py, whose rounds these are. And: how long it takes to let a device know 100 peers.

    sudo .venv/bin/python bench/encrypt.py [--quick]

Needs iperf3. A backend is one entry of BACKENDS. The whole program runs in network and mount namespaces of
its own.
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import report
from datapath import Way, bare_underlay, masquerading, plugged, rounds
from report import Metric, progress, result

from linkspan.backends.ipsec import backend as ipsec
from linkspan.backends.ipsec import strongswan_config
from linkspan.core.addresses import Prefix
from linkspan.core.states.host import Route, State, Wireguard
from linkspan.core.states.ipsec import CONTROL
from linkspan.core.states.programs import Process
from linkspan.core.states.wireguard import DEVICE, PORT, AllowedIp, Tools, WireguardKey, WireguardPeer
from linkspan.kernel.drivers import ipsec as charon
from linkspan.kernel.io import vici
from linkspan.kernel.machine import Machine
from linkspan.lab import agents, build, commands, containers, matrix, sockets, topology
from linkspan.lab.record import Host, Lab

LAB = "lkpcrypt"
TARGET, PEERS_TARGET = ">= 0.97", "<= 300"
PEERS = 100
MTU = 1500


@contextlib.contextmanager
def wireguard_by_hand(ends: list[Host]) -> Iterator[Way]:
    """Set up wireguard-go, one on each host, with a container behind it."""
    net, overhead = "10.90", 60
    made: list[subprocess.Popen[bytes]] = []
    keys = [commands.run("wg", "genkey").strip() for _ in ends]
    public = [commands.run("wg", "pubkey", given=key).strip() for key in keys]
    try:
        for number, host in enumerate(ends, 1):
            device, other = f"hand{number}", 3 - number
            made.append(_begun(host, "wireguard-go", "-f", device))
            if not commands.await_(lambda device=device: Path(f"/run/wireguard/{device}.sock").exists()):  # type: ignore[misc]
                sys.exit("error: wireguard-go does not begin")
            there = topology.bare(ends[other - 1].addresses[0])
            given = (
                f"[Interface]\nPrivateKey={keys[number - 1]}\nListenPort={PORT}\n"
                f"[Peer]\nPublicKey={public[other - 1]}\nAllowedIPs={net}.{other}.0/24\nEndpoint={there}:{PORT}\n"
            )
            commands.run("wg", "setconf", device, "/dev/stdin", given=given, netns=host.namespace)
            lines = [
                "sysctl -qw net.ipv4.ip_forward=1",
                f"ip link set {device} mtu {MTU - overhead} up",
                f"ip route add {net}.{other}.0/24 dev {device}",
                *_container(f"{LAB}-hand-{number}", f"{net}.{number}.2", MTU - overhead),
                *masquerading("hand", f"{net}.0.0/16"),
            ]
            commands.run("sh", "-e", given="\n".join(lines), netns=host.namespace)
        yield Way("wireguard by hand", f"{LAB}-hand-1", f"{LAB}-hand-2", f"{net}.2.2")
    finally:
        for process in made:
            process.kill()
            process.wait()
        for number in (1, 2):
            commands.delete(f"{LAB}-hand-{number}")


@contextlib.contextmanager
def ipsec_by_hand(ends: list[Host]) -> Iterator[Way]:
    """Set up strongSwan's daemon with kernel-libipsec, one on each host, with a container behind it."""
    net, room = "10.91", ipsec.TUN_MTU
    made: list[subprocess.Popen[bytes]] = []
    folder = Path(tempfile.mkdtemp(prefix=LAB))
    try:
        for number, host in enumerate(ends, 1):
            mine = folder / str(number)
            mine.mkdir()
            text = strongswan_config.main(str(mine), user_space=True, rule=ipsec.RULE, table=ipsec.TABLE)
            (mine / strongswan_config.CONF).write_text(text)
            conf = f"STRONGSWAN_CONF={mine / strongswan_config.CONF}"
            made.append(_begun(host, "env", conf, "/usr/sbin/charon-systemd"))
        for number, host in reversed(list(enumerate(ends, 1))):
            _told(folder / str(number), number, [topology.bare(end.addresses[0]) for end in ends], net)
            other = 3 - number
            lines = [
                "sysctl -qw net.ipv4.ip_forward=1",
                f"ip link set {ipsec.USER} mtu {room} up",
                f"ip route add {net}.{other}.0/24 dev {ipsec.USER}",
                *_container(f"{LAB}-esp-{number}", f"{net}.{number}.2", room, "vesp"),
                *masquerading("hand2", f"{net}.0.0/16"),
            ]
            commands.run("sh", "-e", given="\n".join(lines), netns=host.namespace)
        yield Way("ipsec by hand", f"{LAB}-esp-1", f"{LAB}-esp-2", f"{net}.2.2")
    finally:
        for process in made:
            process.kill()
            process.wait()
        for number in (1, 2):
            commands.delete(f"{LAB}-esp-{number}")
        shutil.rmtree(folder)


def _told(folder: Path, number: int, addresses: list[str], net: str) -> None:
    """Let a daemon have a key and a connection; the first of the two begins, once the other knows of it."""
    other = 3 - number
    auth = {"auth": "psk"}
    child = {
        "local_ts": [f"{net}.{number}.0/24"],
        "remote_ts": [f"{net}.{other}.0/24"],
        "esp_proposals": list(charon.ESP),
        "start_action": "start" if number == 1 else "none",
    }
    connection = {
        "version": "2",
        "encap": "yes",
        "mobike": "no",
        "local_addrs": [addresses[number - 1]],
        "remote_addrs": [addresses[other - 1]],
        "proposals": list(charon.IKE),
        "local": {**auth, "id": f"x{number}"},
        "remote": {**auth, "id": f"x{other}"},
        "children": {"hand": child},
    }
    with vici.session(folder / CONTROL, lambda: True) as asked:
        asked.load_shared({"type": "IKE", "data": "both-ends-have-it"})
        asked.load_conn({"hand": connection})


def _begun(host: Host, *argv: str) -> subprocess.Popen[bytes]:
    """Start a daemon as a service manager would: in a session of its own.

    The scheduler shares the cores out by sessions (sched(7), autogroup): a charon in that of iperf3 carries up to twice
    as much (measured), whoever set it up, and no service is in its users' session.
    """
    argv = ("nsenter", f"--net=/run/netns/{host.namespace}", *argv)
    return subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def _container(name: str, address: str, mtu: int, link: str = "vhand") -> Iterator[str]:
    """Yield the commands that give a host one container: a veth pair, routed."""
    commands.add(name)
    yield f"ip link add {link} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {name}"
    yield f"ip link set {link} up"
    yield f"ip addr add 169.254.1.1/32 dev {link}"
    yield f"ip route add {address}/32 dev {link}"
    yield f"ip -n {name} link set eth0 up"
    yield f"ip -n {name} addr add {address}/32 dev eth0"
    yield f"ip -n {name} route add 169.254.1.1 dev eth0"
    yield f"ip -n {name} route add default via 169.254.1.1"


ByHand = Callable[[list[Host]], contextlib.AbstractContextManager[Way]]
BACKENDS: dict[str, ByHand] = {"wireguard": wireguard_by_hand, "ipsec": ipsec_by_hand}
"""What is compared: a backend, and how the same is set up by hand on two hosts of the underlay."""


def ours(lab: Lab, backend: str, number: int) -> Way:
    """Attach a container on each of the two hosts to a network of the backend."""
    if backend != lab.backend:
        if backend == "ipsec":
            _share_key(lab)
        wish = {"name": backend, "pools": [f"10.{246 + number}.0.0/16"], "backend": backend}
        agents.client(lab, "h1").call("POST", "/v1/networks", wish)
        agents.await_network(lab, lab.hosts[:2], backend)
    network = lab.network if backend == lab.backend else backend
    names = [f"{backend}-{n}" for n in (1, 2)]
    ends = [containers.add(lab, f"h{n}", name, network, []) for n, name in enumerate(names, 1)]
    client, server = (lab.container(name).namespace for name in names)
    return Way(f"{backend} by linkspan", client, server, topology.bare(ends[1]["addresses"][0]))


def _share_key(lab: Lab) -> None:
    key = lab.folder / "bench.psk"
    key.touch(mode=0o600)
    key.write_text("both hosts of a benchmark have it\n")
    agents.client(lab, "h1").call("PATCH", "/v1/hosts", {"ipsec.psk-file": str(key)})


def results(ways: list[Way]) -> dict[str, Any]:
    """Return all metrics, with the targets where there are any."""
    found: dict[str, Any] = {}
    by = {way.name: way for way in ways}
    for way in ways:
        for what in way.figures:
            found[f"{way.name}: {what}"] = result(way.median(what), "us" if "UDP" in what else "Gbit/s")
    for backend in BACKENDS:
        mine, hand = by[f"{backend} by linkspan"], by[f"{backend} by hand"]
        for what in mine.figures:
            # Both of a round are measured within seconds of each other, and share the machine's mood.
            pairs = zip(mine.figures[what], hand.figures[what], strict=True)
            ratio = statistics.median(b / a if "UDP" in what else a / b for a, b in pairs)
            found[f"{backend}: {what}, linkspan / by hand"] = result(ratio, "ratio", TARGET)
    return found


def hundred_peers(folder: Path) -> dict[str, Metric]:
    """Return how long it takes until a device that is there knows 100 peers, with a prefix and a route each."""
    given = "for n in $(seq 100); do wg genkey | wg pubkey; done"
    keys = commands.run("sh", "-c", given).split()[:PEERS]
    namespace = f"{LAB}-peers"
    commands.add(namespace)
    with sockets.inside(namespace):
        machine = Machine(folder / "peers")
        try:
            public = machine.wireguard.keys.make("private.key")
            tools = machine.program(Tools)
            program = tools.program if tools else ()
            device: list[State] = [Wireguard(DEVICE, MTU - 60, tun=bool(program))]
            device += [Process("wireguard", program)] if program else []
            device += [WireguardKey(DEVICE, public, PORT, MTU - 60)]
            peers: list[State] = []
            for number, key in enumerate(keys):
                prefix = Prefix(bytes([10, 90, number, 0]), 24)
                peers.append(WireguardPeer(DEVICE, key, f"192.0.2.{number + 1}:{PORT}", 25))
                peers += [AllowedIp(DEVICE, prefix, key), Route(prefix, DEVICE)]
            times = []
            assert machine.reconciler.change(("device",), device) == {}
            for _ in range(7):
                begun = time.perf_counter()
                assert machine.reconciler.change(("peers",), peers) == {}
                times.append((time.perf_counter() - begun) * 1e3)
                assert machine.reconciler.change(("peers",), []) == {}
            machine.reconciler.change(("device",), [])
        finally:
            machine.close()
            machine.processes.close()
    return {f"{PEERS} WireGuard peers are configured": result(statistics.median(times), "ms", PEERS_TARGET)}


def tell(ways: list[Way], found: dict[str, Any]) -> None:
    """Print the figures for a reader, as Markdown."""
    print("| way | TCP, one stream | four streams | UDP round trip |\n|---|---|---|---|")
    for way in ways:
        one, four, trip = (way.median(what) for what in way.figures)
        print(f"| {way.name} | {one:.2f} Gbit/s | {four:.2f} Gbit/s | {trip:.0f} us |")
    print()
    report.table("target", {name: m for name, m in found.items() if m["target"]})


def measure(folder: Path, quick: bool) -> dict[str, Metric]:
    """Make all hosts and ways, and measure."""
    first = next(iter(BACKENDS))
    lab = topology.planned(topology.Wishes(lab=LAB, hosts=2, containers_per_host=0, backend=first))
    build.up(lab)
    try:
        own = plugged(lab, 1, 2)
        ways = [bare_underlay(lab)]
        with contextlib.ExitStack() as tools:
            for number, (backend, by_hand) in enumerate(BACKENDS.items()):
                ways += [tools.enter_context(by_hand(own)), ours(lab, backend, number)]
            if silent := matrix.awaited(lab):
                raise matrix.sentence(silent)
            rounds(ways, quick)
        found = results(ways)
        progress(f"{PEERS} peers")
        found |= hundred_peers(folder)
        progress("")
    finally:
        build.down(LAB)
    tell(ways, found)
    return found


if __name__ == "__main__":
    if shutil.which("iperf3") is None:
        sys.exit("error: no iperf3: apt-get install iperf3")
    report.run(measure, "throughput and round trip, encrypted: bare, by hand, by linkspan", "one round of one second")
