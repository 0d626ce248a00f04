"""Clusters of backend bgp in the lab, and speakers that are none of linkspan's: a BIRD written down by hand."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from linkspan.core.states.host import LEARNT_METRIC
from linkspan.lab import commands
from support.lab.cluster_runs import ClusterRun
from support.polling import until

LEARNT = f"proto bird metric {LEARNT_METRIC}"


class Standing(NamedTuple):
    """A host's speaker, and since when one of its sessions has which state."""

    pid: int
    session: str
    since: float

    def same(self, other: Standing) -> bool:
        """Return whether no session restarted; BIRD works out each time it is asked when that was, to a millisecond."""
        return self[:2] == other[:2] and abs(self.since - other.since) < 0.1


class BgpRun(ClusterRun):
    """A lab whose hosts speak BGP."""

    @classmethod
    @contextlib.contextmanager
    def mesh(cls, words: str, hosts: tuple[str, ...] = ("h1", "h2", "h3")) -> Iterator[BgpRun]:
        """Give a lab with these hosts, each of which has the others' blocks."""
        found = cls()
        try:
            found.run("up", f"--backend bgp {words}")
            found.meshed(hosts=hosts)
            yield found
        finally:
            found.run("down")

    def state(self, host: str) -> Path:
        """Return the state folder of a host."""
        return self.folder / host / "state"

    def birdc(self, host: str, words: str) -> str:
        """Ask a host's speaker."""
        control = self.state(host) / "bgp/bird.ctl"
        argv = ["birdc", "-s", str(control), *words.split()]
        return subprocess.run(argv, capture_output=True, text=True, check=False).stdout

    def bird(self, host: str) -> int:
        """Return the pid of a host's speaker, 0 where none lives."""
        wanted = f"{self.state(host)}/bgp/bird.conf".encode()
        for process in Path("/proc").iterdir():
            with contextlib.suppress(OSError):  # a zombie has no command line
                if process.name.isdigit() and wanted in (process / "cmdline").read_bytes().split(b"\0"):
                    return int(process.name)
        return 0

    def standing(self, host: str, session: str) -> Standing:
        """Return what stays the same while a host's speaker and its session are ok."""
        row = self.birdc(host, f"show protocols {session}").splitlines()[-1]
        name, kind, table, state, day, hour, *more = row.split()
        since = datetime.fromisoformat(f"{day} {hour}").timestamp()
        return Standing(self.bird(host), " ".join((name, kind, table, state, *more)), since)

    def learnt(self, host: str, family: int = 4) -> dict[str, dict[str, Any]]:
        """Return the routes that a host's speaker put into the kernel, by destination."""
        routes = json.loads(self.ip(host, f"-{family} -j route show {LEARNT}") or "[]")
        return {route["dst"]: route for route in routes}

    def meshed(self, network: str = "demo", hosts: tuple[str, ...] = ("h1", "h2", "h3")) -> None:
        """Wait until every host has the others' blocks in its kernel."""

        def whole() -> bool:
            return all(
                {*self.learnt(asked), *self.learnt(asked, 6)} >= set(self.blocks(other, network))
                for asked in hosts
                for other in hosts
                if other != asked
            )

        until(whole, f"{hosts} have each other's blocks of network {network}")

    def set(self, host: str, **settings: str) -> None:
        """Set settings of a host; ``__`` stands for a dot and ``_`` for a hyphen."""
        named = {k.replace("__", ".").replace("_", "-"): v for k, v in settings.items()}
        self.call("h1", "PATCH", f"/v1/hosts/{host}", named)

    def in_use(self, host: str, session: str, text: str) -> None:
        """Wait until a session's file has a text, and the speaker has read it."""
        file = self.state(host) / f"bgp/peers/{session}.conf"
        until(lambda: file.exists() and text in file.read_text(), f"{host} has written {text}")
        until(lambda: self.clean(host), f"{host} has read {text}")

    def clean(self, host: str) -> bool:
        """Return whether a host has just what it should have."""
        found = self.call(host, "GET", "/v1/diff")
        return bool(found == {"put": [], "delete": []})


class Speaker:
    """A BIRD in a namespace of its own on the lab's first segment, with a configuration that a test wrote."""

    def __init__(self, lab: BgpRun, name: str, number: int) -> None:
        self.lab, self.name = lab, name
        self.namespace = f"{lab.name}-{name}"
        self.address, self.address6 = f"192.0.2.{number}", f"2001:db8:1::{number}"
        self._folder = lab.folder / name
        self._process: subprocess.Popen[bytes] | None = None

    def plug(self) -> None:
        """Make the namespace, and its cable into the switch."""
        commands.add(self.namespace)
        peer = f"peer name eth0 netns {self.namespace}"
        switch = f"{self.lab.name}-switch"
        commands.ip(switch, (f"link add {self.name} type veth {peer}", f"link set {self.name} master seg1 up"))
        lines = ("link set eth0 up", f"addr add {self.address}/24 dev eth0")
        commands.ip(self.namespace, (*lines, f"addr add {self.address6}/64 dev eth0 nodad"))

    def start(
        self, asn: int, routes: list[str], session: str = "", next_hop: str = "", *, again: bool = False
    ) -> None:
        """Speak to h1, and announce routes by a next hop; ``session`` are lines of the session's block.

        ``again``: this follows a crash, and the peers keep the routes until it has announced them (RFC 4724).
        """
        self.stop()
        self._folder.mkdir(exist_ok=True)
        four = "\n".join(f"route {r} blackhole;" for r in routes if ":" not in r)
        six = "\n".join(f"route {r} blackhole;" for r in routes if ":" in r)
        (self._folder / "bird.conf").write_text(f"""
log stderr all;
router id {self.address};
protocol device {{}}
protocol static {{ ipv4; {four} }}
protocol static {{ ipv6; {six} }}
protocol bgp foreign {{
  local {self.address} as {asn};
  neighbor 192.0.2.1 as 64512;
  connect delay time 1; connect retry time 1; error wait time 1, 2;
  ipv4 {{ import all; export all; next hop address {next_hop or self.address}; }};
  ipv6 {{ import all; export all; next hop address {self.address6}; }};
  {session}
}}
""")
        argv = ["bird", "-f", "-c", str(self._folder / "bird.conf"), "-s", str(self._folder / "bird.ctl")]
        argv += ["-R"] if again else []
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen([*commands.entering(self.namespace), *argv], stderr=log)

    def birdc(self, words: str) -> str:
        """Ask it."""
        argv = ["birdc", "-s", str(self._folder / "bird.ctl"), *words.split()]
        return subprocess.run(argv, capture_output=True, text=True, check=False).stdout

    def established(self) -> bool:
        """Return whether its session is."""
        return "Established" in self.birdc("show protocols foreign")

    def stop(self) -> None:
        """End it in order."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None

    def kill(self) -> None:
        """End it as a crash does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)
        self._process = None

    def unplug(self) -> None:
        """Take all of it away."""
        self.stop()
        # First, for with the namespace it goes a little later.
        commands.ip(f"{self.lab.name}-switch", (f"link delete {self.name}",))
        commands.delete(self.namespace)


@contextlib.contextmanager
def speaking(lab: BgpRun, name: str = "r1", number: int = 101) -> Iterator[Speaker]:
    """Give a speaker that is plugged in, and removed at the end."""
    found = Speaker(lab, name, number)
    found.plug()
    try:
        yield found
    finally:
        found.unplug()

