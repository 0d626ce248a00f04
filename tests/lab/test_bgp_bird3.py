"""A mesh whose speakers are BIRD 3, unpacked beside the BIRD 2 that is installed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.lab.bgp_runs import BgpRun
from support.polling import until

CACHE = Path(sys.prefix, "cache", "bird3")


def programs() -> Path:
    """Return the folder of BIRD 3's programs, downloaded once; skips where it cannot be had."""
    if not CACHE.exists():
        if shutil.which("apt-get") is None:
            pytest.skip("no apt here, and bird3 is Debian's")
        CACHE.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE.parent) as scratch:
            for command in ("apt-get -q download bird3", "dpkg -x bird3_*.deb unpacked"):
                argv = ("sh", "-c", command)
                done = subprocess.run(argv, cwd=scratch, capture_output=True, text=True, check=False)
                if done.returncode:
                    pytest.skip(f"{command}: {done.stderr.strip()}")
            Path(scratch, "unpacked").rename(CACHE)
    return CACHE / "usr/sbin"


@pytest.fixture(scope="module")
def mesh() -> Iterator[BgpRun]:
    """Give three hosts with two stacks on one segment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{programs()}:{os.environ['PATH']}")
        with BgpRun.mesh("--underlay dual") as found:
            yield found


def test_all_reach_all_by_bird_3(mesh: BgpRun) -> None:
    """And linkspan reads from it the sessions, and the routes with their marks, that it has."""
    assert os.readlink(f"/proc/{mesh.bird('h1')}/exe") == str(programs() / "bird")
    assert mesh.json("test")["failed"] == []
    mesh.call("h1", "PATCH", "/v1/hosts/h2", {"bgp.community": "64512:100", "bgp.med": "7"})

    def marked() -> bool:
        routes = mesh.call("h1", "GET", "/v1/bgp/routes")
        found = [(one["med"], one["communities"]) for one in routes if one["prefix"] in mesh.blocks("h2", "demo")]
        return found == [(7, ["64512:100"])] * 2

    until(marked, "h1 reads h2's marks, of both families")
    assert {one["state"] for one in mesh.call("h1", "GET", "/v1/bgp/peers")} == {"established"}


def test_a_killed_bird_3_costs_no_ping(mesh: BgpRun) -> None:
    """It is started again, and recovers its routes from the kernel and its peers by a graceful restart."""
    before = mesh.bird("h1")
    with mesh.no_loss("c1", mesh.address("c2")), mesh.no_loss("c2", mesh.address("c1")):
        os.kill(before, signal.SIGKILL)
        until(lambda: mesh.bird("h1") not in (0, before), "another one runs")
        until(lambda: "Established" in mesh.birdc("h2", "show protocols mesh_h1"), "h2 hears it again")
        mesh.meshed()
