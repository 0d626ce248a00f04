"""A lab with OpenFlow switches, as its tests see it."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from linkspan.api.client import Client
from linkspan.lab import containers, controllers, record, switches
from linkspan.lab.controllers import KILLED
from support.lab.migration_runs import MigratingRun

TAKEN_OVER = 5.0
"""Seconds: the promise of a takeover."""


class SdnRun(MigratingRun):
    """A lab whose underlay is switches."""

    def controller(self, name: str = "", path: str = "") -> Any:
        """Ask a controller: the active one where none is named, the first where none is active."""
        lab = record.load(self.name)
        there = [one for one in lab.controllers if name in ("", one.name) and KILLED not in one.broken]
        clients = [Client(controllers.socket(lab, one)) for one in there]
        told = [client.call("GET", "/v1/controller") for client in clients]
        chosen = next((n for n, one in enumerate(told) if one["active"]), 0)
        return clients[chosen].call("GET", f"/v1/controller{path}") if path else told[chosen]

    def settled(self, name: str = "") -> bool:
        """Return whether all switches are as a controller wants them."""
        return not any(self.controller(name, "/diff").values())

    def switch(self, name: str, asked: str = "") -> dict[str, Any]:
        """Return a controller's report of a switch."""
        found: dict[str, Any] = next(s for s in self.controller(asked)["switches"] if s["name"] == name)
        return found

    def fail(self, name: str, failure: str) -> None:
        """Make a switch or controller fail, as `lab break` does, without its command line."""
        lab = record.load(self.name)
        place = lab.breakable(name)
        if isinstance(place, record.Switch):
            switches.do(lab, place, failure)
        else:
            assert isinstance(place, record.Controller)
            controllers.do(lab, place, failure)

    def well(self, name: str) -> None:
        """Undo that, as `lab mend` does."""
        lab = record.load(self.name)
        place = lab.breakable(name)
        if isinstance(place, record.Switch):
            switches.mend(lab, place)
        else:
            assert isinstance(place, record.Controller)
            controllers.mend(lab, place)

    @contextlib.contextmanager
    def unreachable(self, switch: str) -> Iterator[str]:
        """Keep a switch from being programmed, while it carries packets as before; yields its address meanwhile."""
        lab = record.load(self.name)
        one = next(s for s in lab.switches if s.name == switch)
        path = Path(switches.address(lab, one).removeprefix("unix:"))
        away = path.with_suffix(".away")
        path.rename(away)
        try:
            yield f"unix:{away}"
        finally:
            away.rename(path)

    def container(self, host: str, name: str) -> None:
        """Attach a container, as `lab attach` does."""
        lab = record.load(self.name)
        containers.add(lab, host, name, lab.network, [])

    def ofctl(self, verb: str, switch: str, *words: str) -> str:
        """Run ovs-ofctl on a switch."""
        lab = record.load(self.name)
        one = next(s for s in lab.switches if s.name == switch)
        argv = ["ovs-ofctl", "-O", "OpenFlow13", verb, switches.address(lab, one), *words]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def vsctl(self, *words: str) -> str:
        """Run ovs-vsctl on the lab's database."""
        database = f"--db=unix:{self.folder}/ovs/db.sock"
        done = subprocess.run(["ovs-vsctl", database, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def heard(self, switch: str, port: str) -> set[str]:
        """Return the MACs that a switch has noted at a port."""
        notes = self.ofctl("dump-flows", switch, f"table=100,in_port={port}")
        return set(re.findall(r"dl_src=([0-9a-f:]+)", notes))

    def dropped(self, kind: str) -> int:
        """Return how many packets flows of a kind have dropped."""
        return sum(one["packets"] for one in self.controller()["dropped"] if one["kind"] == kind)

    def ours(self, switch: str) -> set[str]:
        """Return a switch's flows of linkspan's as text, but for its notes."""
        dump = self.flows(switch)
        return {json.dumps([f["table"], f["priority"], f["match"], f["actions"]]) for f in dump
                if f["ours"] and f["table"] != 100}  # fmt: skip

    def flows(self, switch: str) -> list[dict[str, Any]]:
        """Return a switch's flows, foreign ones too, as a controller reports them."""
        found = self.controller(path=f"/flows?switch={switch}")
        assert found["unknown"] == []
        flows: list[dict[str, Any]] = found["flows"]
        return flows

    def traced(self, source: str, target: str) -> dict[str, Any]:
        """Return a trace that h1's agent makes."""
        found: dict[str, Any] = self.call("h1", "GET", f"/v1/trace?source={source}&target={target}&port=")
        return found
