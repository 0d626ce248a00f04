"""Snapshots and restores of a cluster in the lab, and what hosts know after one."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from support.json_page import documented
from support.lab.bare_runs import BareRun
from support.polling import SHARED, until

BACK_WITHIN = 60.0 * SHARED
"""Seconds until all hosts have listed and put back their records."""


@contextlib.contextmanager
def founded() -> Iterator[BareRun]:
    """Give three bare hosts; the first is the voter of the second, with a network and a container on each."""
    found = BareRun()
    try:
        found.up(3)
        found.join("h2", found.init(options="--voters 1"))
        found.exec("h1", "linkspan network create demo --pool 10.244.0.0/16 --backend vxlan")
        found.run("attach", "h1", "c1")
        found.run("attach", "h2", "c2")
        until(lambda: found.pings("c1", found.address("c2")), "c1 reaches c2")
        yield found
    finally:
        found.run("down")


def snapshot(bare: BareRun, folder: Path) -> Path:
    """Take a snapshot on the voter, and return its file."""
    file = folder / "snapshot.db"
    told = json.loads(bare.exec("h1", f"linkspan cluster snapshot {file} -o json"))
    assert told == {"file": str(file), "bytes": file.stat().st_size}
    assert file.stat().st_mode & 0o777 == 0o600
    return file


def restore(bare: BareRun, file: Path, host: str = "h1") -> dict[str, object]:
    """Restore a snapshot on a host, and return what it prints."""
    found: dict[str, object] = json.loads(bare.exec(host, f"linkspan cluster restore {file} -o json"))
    assert set(found) == documented()["cluster restore"][1]
    return found


def settled(bare: BareRun, *hosts: str) -> None:
    """Wait until these hosts have their store, and it has all records."""
    for host in hosts:

        def well(host: str = host) -> bool:
            store = bare.status(host)["store"]
            return bool(store["ok"]) and not store["lost"]

        until(well, f"{host} has its store, and no record is lost", BACK_WITHIN)


def lost(bare: BareRun, host: str) -> set[str]:
    """Return the kinds of the records that a host misses, if it misses one of each at most."""
    kinds = [key.partition("/")[0] for key in bare.status(host)["store"]["lost"]]
    return set(kinds) if len(kinds) == len(set(kinds)) else set()


def networks(bare: BareRun, host: str) -> list[str]:
    """Return the names of the networks that a host knows."""
    return sorted(one["name"] for one in bare.call(host, "GET", "/v1/networks"))


def endpoints(bare: BareRun, host: str) -> dict[str, list[str]]:
    """Return the addresses of all containers that a host knows, by name."""
    return {one["name"]: one["addresses"] for one in bare.call(host, "GET", "/v1/endpoints")}
