"""Tour: a network by hand, the same by linkspan, and the removal of both."""

from __future__ import annotations

import shutil
import sys
import time

from linkspan.api.client import Client
from linkspan.core.errors import NotFound
from linkspan.demo.by_hand import BEYOND, ByHand
from linkspan.demo.chapter_network import CONTAINERS
from linkspan.demo.language import Words
from linkspan.demo.screen import headline, retried, serving, throughput
from linkspan.demo.stage import FOLDER, HOST, OUTSIDE, Stage

TOOLS = ("ip", "nft", "ping", "iptables", "nsenter", "sysctl")


def run(words: Words, *, keep: bool) -> bool:
    """Show the whole tour in a language; return whether everything passed. Raises LinkspanError."""
    for tool in TOOLS:
        if shutil.which(tool) is None:
            raise NotFound(
                f"{tool} is not installed",
                "apt install iproute2 nftables iputils-ping iptables procps util-linux",
            )
    stage = Stage(words)
    stage.clear()
    done = False
    try:
        _world(stage)
        headline(words("A container network by hand"))
        by_hand = ByHand(stage)
        by_hand.show()
        stage.title(words("7. All away again"))
        by_hand.take_away()
        headline(words("The same by linkspan"))
        _by_linkspan(stage)
        done = True
    finally:
        if not (keep and done):
            _away(stage, done)
    if keep:
        _hints(stage)
    for text in stage.failed:
        print(words("failed: {text}", text=text), file=sys.stderr)
    return not stage.failed


def _world(stage: Stage) -> None:
    """Make a host with an uplink to a machine outside, which has no route to any container."""
    text = stage.words(
        "The host, two containers and the world outside are network namespaces; your machine is not touched."
    )
    stage.say(text)
    stage.add(HOST)
    stage.add(OUTSIDE)
    stage.quietly(
        "ip", "link", "add", "uplink", "netns", HOST, "type", "veth", "peer", "name", "eth0", "netns", OUTSIDE
    )
    for netns, device, last in ((HOST, "uplink", 1), (OUTSIDE, "eth0", 2)):
        stage.quietly("ip", "-n", netns, "addr", "add", f"198.51.100.{last}/24", "dev", device)
        stage.quietly("ip", "-n", netns, "link", "set", device, "up")
    stage.quietly("ip", "-n", HOST, "route", "add", "default", "via", BEYOND)


def _by_linkspan(stage: Stage) -> None:
    a, b = CONTAINERS
    words = stage.words
    stage.title(words("1. An agent, a network, two containers"))
    stage.start_agent()
    begun = time.perf_counter()
    stage.typed(
        [
            "linkspan network create demo --pool 172.18.0.0/16",
            f"linkspan attach {a} --network demo --publish 8080:80",
            f"linkspan attach {b} --network demo",
        ]
    )
    took = words("three commands, {seconds:.1f} s", seconds=time.perf_counter() - begun)
    stage.say(f"    [dim]{took}[/dim]")
    stage.ping(a, CONTAINERS[b], works=True)
    stage.ping(a, BEYOND, works=True)
    _throughput(stage)
    stage.title(words("2. The published port, from outside"))
    _published(stage, a)
    stage.title(words("3. Why a packet goes where it goes"))
    stage.typed([f"linkspan trace {a} {b}", f"linkspan trace {a} {BEYOND}"])
    stage.title(words("4. Somebody breaks it; linkspan repairs it within two seconds"))
    stage.typed(["nft flush ruleset", "ip link delete ls-demo"])
    _mended(stage)
    stage.typed(["linkspan diff"])
    stage.ping(a, CONTAINERS[b], works=True)
    stage.ping(a, BEYOND, works=True)


def _throughput(stage: Stage) -> None:
    """Measure one TCP stream between the containers for a second, if iperf3 is installed."""
    if shutil.which("iperf3") is None:
        stage.say("  " + stage.words("(iperf3 is not installed: no throughput)"))
        return
    a, b = CONTAINERS
    stage.say(f"  [cyan]$[/cyan] ip netns exec {a} iperf3 --client {CONTAINERS[b]} --time 1")
    rate = throughput(a, b, CONTAINERS[b])
    stage.expect(rate > 0, stage.words("{rate:.1f} Gbit/s from {a} to {b}", rate=rate / 1e9, a=a, b=b))


_SERVE = """\
import http.server

class Hello(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"hello {self.client_address[0]}".encode())

    def log_message(self, *words):
        pass

http.server.HTTPServer(("", 80), Hello).serve_forever()
"""
_FETCH = "import urllib.request as u; print(u.urlopen('http://{}:8080/', timeout=2).read().decode())"


def _published(stage: Stage, container: str) -> None:
    words = stage.words
    with serving("ip", "netns", "exec", container, sys.executable, "-Ic", _SERVE):
        fetch = ["ip", "netns", "exec", OUTSIDE, sys.executable, "-Ic", _FETCH.format("198.51.100.1")]
        text = words(
            "{container} serves on port 80. {outside} fetches http://198.51.100.1:8080/, the host's address:",
            container=container,
            outside=OUTSIDE,
        )
        stage.say(f"  {text}")
        said = retried(fetch).strip()
        text = words("{container} answers `{said}`: it sees the client's own address", container=container, said=said)
        stage.expect(said == f"hello {BEYOND}", text)
        local = ["ip", "netns", "exec", HOST, sys.executable, "-Ic", _FETCH.format("127.0.0.1")]
        stage.expect(retried(local).startswith("hello"), words("and it answers the host on 127.0.0.1:8080"))


def _mended(stage: Stage) -> None:
    client = Client(str(stage.socket))
    begun = time.monotonic()
    while time.monotonic() - begun < 2:
        found = client.call("GET", "/v1/diff")
        if not found["put"] and not found["delete"]:
            break
        time.sleep(0.02)
    heals = len([h for h in client.lines("/v1/events") if b'"type":"heal"' in h])
    text = stage.words(
        "{number} objects put back after {seconds:.2f} s (`linkspan events` lists them)",
        number=heals,
        seconds=time.monotonic() - begun,
    )
    stage.expect(heals > 0, text)


def _away(stage: Stage, done: bool) -> None:
    """Remove everything, and show that nothing is left."""
    words = stage.words
    if done:
        headline(words("Away"))
        stage.typed(["linkspan uninstall --yes --force --state-dir " + str(FOLDER / "state") + " | tail -1"])
        links = stage.quietly("ip", "-n", HOST, "-br", "link").split()
        rules = stage.quietly("nsenter", f"--net=/run/netns/{HOST}", "nft", "list", "ruleset")
        left = any(name.startswith("ls") for name in links)
        stage.expect(not left, words("no link of linkspan's is left on the host"))
        stage.expect("linkspan" not in rules, words("no rule either"))
        forwarding = stage.quietly(
            "nsenter", f"--net=/run/netns/{HOST}", "sysctl", "-n", "net.ipv4.ip_forward"
        ).strip()
        stage.expect(forwarding == "0", words("and the kernel forwards no more, as before"))
    stage.clear()


def _hints(stage: Stage) -> None:
    a, b = CONTAINERS
    headline(stage.words("The tour's objects are kept. What to try"))
    for line in (
        f"export LINKSPAN_SOCKET={stage.socket}",
        "linkspan status",
        "linkspan endpoint list",
        "linkspan plan",
        f"ip netns exec {a} ping {CONTAINERS[b]}",
        f"linkspan trace {a} {b}",
        f"ip -n {HOST} link set ls-demo down; linkspan events",
        f"linkspan trace {a} {b} --live",
        f"linkspan demo --down     # {stage.words('removes everything again')}",
    ):
        print(f"  {line}")
