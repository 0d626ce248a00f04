"""Shared by tests of migrations: traffic between all pairs, stopped agents, and the states of each host."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from linkspan.core.errors import LinkspanError
from linkspan.lab import processes, record
from support.lab.cluster_runs import ClusterRun
from support.lab.packet_sender import TICK
from support.polling import until

LOSS = 1.0
"""Seconds: the most that any pair may lose in a migration."""
PATIENCE = 60.0
OVERHEAD = {"vxlan": 50, "ipip": 20, "host-gw": 0, "bgp": 0, "wireguard": 60, "ipsec": 100}
HOSTS = ("h1", "h2", "h3")


class Flows:
    """Datagrams of two sizes with DF and a TCP stream from each of some containers to each other one."""

    def __init__(self, lab: ClusterRun, *containers: str) -> None:
        self._lab = lab
        found = record.load(lab.name).containers
        self.containers = [c for c in found if c.name in containers or not containers]
        self.addresses = {
            c.name: [text.partition("/")[0] for one in c.attachments[:1] for text in one.addresses]
            for c in self.containers
        }
        self.told: dict[str, Any] = {}
        self._running: dict[str, subprocess.Popen[str]] = {}

    def __enter__(self) -> Flows:
        program = str(Path(__file__).with_name("packet_sender.py"))
        for container in self.containers:
            mine = self.addresses[container.name]
            others = [a for name, found in self.addresses.items() if name != container.name for a in found]
            argv = ["ip", "netns", "exec", container.namespace, sys.executable, "-IS", program, ",".join(mine), *others]
            self._running[container.name] = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        for word in ("listening", "up"):
            for name, process in self._running.items():
                assert process.stdout is not None
                assert process.stdin is not None
                assert process.stdout.readline() == f"{word}\n", name
            for process in self._running.values():
                if word == "listening" and process.stdin is not None:
                    process.stdin.write("\n")
                    process.stdin.flush()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End them, and collect their counts."""
        for process in self._running.values():
            process.send_signal(signal.SIGTERM)
        for name, process in self._running.items():
            self.told[name] = json.loads(process.communicate(timeout=PATIENCE)[0] or "{}")
        self._running.clear()

    def check(self, mtu: int) -> None:
        """Assert what no pair may lose, that all streams arrived whole, and that nobody remembers a smaller path."""
        lost: dict[tuple[str, str], list[float]] = {}
        for source, told in self.told.items():
            for target, found in self.addresses.items():
                for number, address in enumerate(found if target != source else ()):
                    own = self.addresses[source][number]
                    sent, arrived = told["to"][address], self.told[target]["from"]
                    got = arrived["datagrams"].get(own, [0, 0])
                    lost[source, address] = [(a - b) * TICK for a, b in zip(sent["sent"], got, strict=True)]
                    assert sent["sent"][1] > 0
                    assert arrived["bytes"][own] == sent["bytes"] > 0, (source, address)
                    assert sent["mtu"] == mtu, (source, address, sent["mtu"])
        assert max(max(one) for one in lost.values()) <= LOSS, lost


class MigratingRun(ClusterRun):
    """A lab whose network migrates."""

    def network(self, host: str = "h1", name: str = "demo") -> dict[str, Any]:
        """Return a network as a host knows it."""
        found: dict[str, Any] = self.call(host, "GET", f"/v1/networks/{name}")
        return found

    def migrate(self, way: str, host: str = "h1", name: str = "demo", **options: str) -> None:
        """Begin to migrate."""
        self.call(host, "POST", f"/v1/networks/{name}/migration", {"backend": way, "options": options})

    def refused(self, way: str, name: str = "demo", **options: str) -> str:
        """Try to migrate, and return what is said against it."""
        with pytest.raises(LinkspanError) as refusal:
            self.migrate(way, name=name, **options)
        return f"{refusal.value.message} {refusal.value.hint}"

    def ended(self, way: str, hosts: tuple[str, ...] = HOSTS, name: str = "demo") -> None:
        """Wait until hosts know the network with one backend only."""

        def there() -> bool:
            known = [self.network(host, name) for host in hosts]
            return all((n["backend"], n["migration"]) == (way, None) for n in known)

        until(there, f"{', '.join(hosts)} migrated {name} to {way}")

    def moved(self, way: str, hosts: tuple[str, ...] = HOSTS) -> None:
        """Migrate, to the end."""
        self.migrate(way, hosts[0])
        self.ended(way, hosts)

    def at(self, way: str) -> None:
        """Bring the network to a backend, where it is elsewhere."""
        if self.network()["backend"] != way:
            self.moved(way)

    def waits_for(self, *hosts: str, by: str = "h1", name: str = "demo") -> None:
        """Wait until a host says that these alone keep a migration from its end."""
        until(lambda: self.network(by, name)["not_switched"] == list(hosts), f"{by} waits for {hosts}")

    def progress(self, host: str, asked: str = "h1", name: str = "demo") -> dict[str, Any]:
        """Return how far a host is in a migration."""
        found: dict[str, Any] = next(p for p in self.network(asked, name)["progress"] if p["host"] == host)
        return found

    def sends(self, source: str, target: str, way: str) -> None:
        """Wait until one host sends to another by a way."""

        def sent() -> bool:
            return (target, way) in [(p["host"], p["sends"]) for p in self.network(source)["progress"]]

        until(sent, f"{source} sends to {target} by {way}")

    def stop(self, host: str) -> None:
        """Stop a host's agent where it is, but not while it has the lock of a store that is a file for all hosts."""
        for pid in processes.agents(self.folder, host):
            os.kill(pid, signal.SIGSTOP)
        if self._store_is_locked():
            self.go_on(host)
            self.stop(host)

    def _store_is_locked(self) -> bool:
        for path in (self.folder / "store").glob("*.db"):
            with contextlib.closing(sqlite3.connect(path, timeout=1)) as store:
                try:
                    store.execute("BEGIN IMMEDIATE")
                except sqlite3.OperationalError:
                    return True
        return False

    def go_on(self, host: str) -> None:
        """Let a stopped agent continue."""
        for pid in processes.agents(self.folder, host):
            os.kill(pid, signal.SIGCONT)

    def clean(self, hosts: tuple[str, ...] = HOSTS) -> None:
        """Wait until hosts have just what they should have."""
        for host in hosts:
            until(
                partial(lambda host: self.call(host, "GET", "/v1/diff") == {"put": [], "delete": []}, host),
                f"no drift on {host}",
            )

    def link(self, container: str) -> tuple[int, int]:
        """Return the MTU of a container's link, and of its default route (0: the link's)."""
        link = json.loads(self.inside(container, "ip -j link show eth0"))[0]
        (route,) = json.loads(self.inside(container, "ip -j route show default"))
        metrics = route.get("metrics", [{}])
        return link["mtu"], metrics[0].get("mtu", 0) if metrics else 0

    def log(self, host: str) -> str:
        """Return what a host's agent has logged."""
        return (self.folder / host / "agent.log").read_text()

    def links(self, place: str) -> list[dict[str, Any]]:
        """Return a namespace's links as ``ip`` lists them."""
        found: list[dict[str, Any]] = json.loads(self.inside(place, "ip -j -d link show"))
        return found

    def everything(self, host: str) -> set[str]:
        """Return all that a host's kernel has, in lines, but for numbers that grow by themselves."""
        links = [
            f"link {one['ifname']} {one['mtu']} {one.get('linkinfo', {}).get('info_kind', '')}"
            for one in self.links(host)
        ]
        rules = json.loads(self.inside(host, "nft -j list ruleset"))["nftables"]
        pattern = "rp_filter|forwarding|redirects|route_localnet|accept_ra|ip_forward"
        fdb = json.loads(self.inside(host, "bridge -j fdb show"))
        routes = self.inside(host, "ip -4 route show table all").splitlines()
        # A link's own link-local address comes seconds after the link.
        routes += [r for r in self.inside(host, "ip -6 route show table all").splitlines() if "proto kernel" not in r]
        return {
            *links,
            *(f"fdb {one['ifname']} {one['mac']} {one.get('dst', '')}" for one in fdb if "dst" in one),
            *(f"route {line.strip()}" for line in routes),
            *(f"neighbour {line}" for line in self.inside(host, "ip neigh show nud permanent").splitlines()),
            *(json.dumps(_sorted(one)) for one in rules),
            *(f"setting {line}" for line in self.inside(host, f"sysctl -a --pattern {pattern}").splitlines()),
            f"{len(processes.helpers(self.folder, host))} helpers",
        }


def _sorted(value: Any) -> Any:
    """Return JSON with a set's elements in order: nft gives them in that of its hashes."""
    if isinstance(value, dict):
        found = {key: _sorted(one) for key, one in value.items() if key not in ("handle", "packets", "bytes")}
        if isinstance(found.get("elem"), list):
            found["elem"].sort(key=json.dumps)
        return found
    return [_sorted(one) for one in value] if isinstance(value, list) else value
