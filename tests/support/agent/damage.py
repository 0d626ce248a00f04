"""Damage to an agent's files, the way out that its errors name, and what neither may change."""

from __future__ import annotations

import json
import re
import sqlite3
from pathlib import Path
from typing import Any

from support.agent.agent_host import Host, run
from support.polling import until


def begin_with_two(host: Host) -> None:
    """Start a host's agent, with a bridged and a routed container."""
    host.outside()
    host.start()
    host.network("demo", "10.201.0.0/24", "fd00:201::/64")
    host.network("far", "10.202.0.0/24", options={"mode": "routed"})
    host.containers = [host.world.namespace(), host.world.namespace()]
    host.attach(host.containers[0], ports=[{"host_ip": "", "host_port": 8080, "port": 80, "protocol": "tcp"}])
    host.attach(host.containers[1], "far")
    published(host, 2)


def missing(host: Host) -> None:
    """Take the journal away with all that SQLite has beside it."""
    for file in host.state_dir.glob("journal.db*"):
        file.unlink()


def inside(netns: str) -> dict[str, Any]:
    """Return what a container has: links by their index, addresses, routes, rules, and limits.

    Link-local addresses are left out: the kernel makes them, and takes a second or two to find that nobody has them.
    """
    links = json.loads(run("ip", "-j", "addr", netns=netns))
    addresses = [f"{a['local']}/{a['prefixlen']}" for one in links for a in one["addr_info"] if a["scope"] != "link"]
    routes = [run("ip", family, "route", "show", "table", "all", netns=netns).splitlines() for family in ("-4", "-6")]
    return {
        "links": [(one["ifindex"], one["ifname"], one["address"], one["mtu"]) for one in links],
        "addresses": sorted(addresses),
        "routes": [sorted(line for line in found if not line.startswith("local fe80:")) for found in routes],
        "rules": [run("ip", family, "rule", netns=netns) for family in ("-4", "-6")],
        "limits": run("tc", "qdisc", "show", netns=netns),
    }


def endpoints(host: Host) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the host's endpoints by id and interface."""
    return {(e["id"], e["ifname"]): e for e in host.client.call("GET", "/v1/endpoints")}


def published(host: Host, count: int) -> None:
    """Wait until the store has this number of records of endpoints."""

    def there() -> int:
        with sqlite3.connect(host.state_dir / "store" / "store.db") as database:
            row = database.execute(
                "SELECT count(*) FROM entries WHERE key LIKE 'endpoints/%' AND value IS NOT NULL"
            ).fetchone()
        database.close()
        return int(row[0])

    until(lambda: there() == count, f"{count} records of endpoints")


def forget_records(host: Host) -> None:
    """Take the records of endpoints out of the store."""
    with sqlite3.connect(host.state_dir / "store" / "store.db") as database:
        database.execute("DELETE FROM entries WHERE key LIKE 'endpoints/%'")
    database.close()


def rewritten(file: Path, *statements: str) -> None:
    """Change a file of SQLite's from outside."""
    with sqlite3.connect(file) as database:
        for statement in statements:
            database.execute(statement)
    database.close()


def follow_move(said: str) -> None:
    """Move away what the hint says, by the command or by the path in it."""
    if command := re.search(r"\((mv [^)]+)\)", said):
        run(*command[1].split())
        return
    path = re.search(r"[Mm]ove (/\S+) away", said)
    assert path is not None, said
    run("mv", path[1], f"{path[1]}.bad")
