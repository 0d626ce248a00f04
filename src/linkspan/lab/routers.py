"""BGP speakers of a lab's underlay: real routers, started as daemons in namespaces of their own."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from types import ModuleType

from linkspan.core.errors import Denied, Invalid, LinkspanError, NotFound
from linkspan.kernel.probe.program_path import located
from linkspan.lab import commands, processes, rootless, router_bird, router_frr
from linkspan.lab.record import Lab, Router
from linkspan.lab.underlay import CABLE

SOFTWARE: dict[str, ModuleType] = {"bird": router_bird, "frr": router_frr}
KILLED, DOWN = "router-kill", "link-down"
FAILURES = (KILLED, DOWN)


def require(lab: Lab) -> None:
    """Raise NotFound, or Denied, if a router of this lab could not start here."""
    for software in sorted({router.software for router in lab.routers}):
        if software == "frr" and rootless.entered():
            raise Denied(
                "FRR switches to a user of its own, which a lab without root does not have",
                "give --routers bird, or use sudo",
            )
        if _missing(software):
            package = SOFTWARE[software].PACKAGE
            raise NotFound(
                f"{software} is not installed", f"apt install {package}, and leave its service off"
            )


def _missing(software: str) -> bool:
    if software == "frr":
        return not any(Path(path, "bgpd").exists() for path in router_frr.FOLDERS)
    return located("bird") is None


def folder(lab: Lab, router: Router) -> Path:
    """Return a router's folder: configuration, logs, control sockets, and its programs in bin/."""
    return lab.folder / router.name


def start(lab: Lab, routers: list[Router]) -> None:
    """Start routers, and wait until all serve. Raises LinkspanError with router and daemon."""
    for router in routers:
        _prepare(lab, router)
    daemons = {router.name: SOFTWARE[router.software].start(folder(lab, router)) for router in routers}
    for step in range(max(map(len, daemons.values()), default=0)):
        started = [(router, *daemons[router.name][step]) for router in routers]
        running = [_started(lab, router, name, words) for router, name, words, _ in started]
        for (router, name, _, socket), process in zip(started, running, strict=True):
            _await(folder(lab, router), name, socket, process, f"{name} of router {router.name}")


def _prepare(lab: Lab, router: Router) -> None:
    """Write a router's files, but keep configuration made by hand."""
    here, software = folder(lab, router), SOFTWARE[router.software]
    for path in (here / "run", here / "etc", here / "bin"):
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
    config = here / software.CONFIG
    if not config.exists():
        config.write_text(software.config(lab, router), encoding="utf-8")
        for name, words in software.tools(here).items():
            script = here / "bin" / name
            program = located(words[0]) or words[0]
            script.write_text(f'#!/bin/sh\nexec {" ".join([program, *words[1:]])} "$@"\n', encoding="utf-8")
            script.chmod(0o755)
    for path in (*here.glob("*.ctl"), *(here / "run").glob("*")):
        path.unlink()  # left by daemons that were killed
    if router.software == "frr":
        shutil.chown(here / "run", router_frr.USER, router_frr.USER)


def _started(lab: Lab, router: Router, name: str, words: list[str]) -> subprocess.Popen[bytes]:
    env = processes.environment(lab.folder, f"router/{router.name}/{name}")
    env["PATH"] += ":/usr/sbin"
    return processes.start(router.namespace, router.name, words, env, folder(lab, router) / name)


def _await(here: Path, name: str, socket: str, process: subprocess.Popen[bytes], what: str) -> None:
    log = here / f"{name}.log"
    ready = commands.await_(lambda: (here / socket).exists() or process.poll() is not None)
    if process.poll() is not None or not ready:
        said = log.read_text(errors="replace").strip().splitlines() or ["it printed nothing"]
        raise LinkspanError(f"{what} did not start: {said[-1]}", f"see {log}")


def _pids(lab: Lab, router: Router) -> list[int]:
    mark = f"router/{router.name}/"
    return list(processes.of_lab(lab.folder, lambda role, _: role.startswith(mark)))


def alive(lab: Lab, router: Router) -> bool:
    """Return whether a router's daemons run."""
    return bool(_pids(lab, router))


def do(lab: Lab, router: Router, failure: str) -> str:
    """Make a router fail; return what was done. Raises Invalid for an unknown failure."""
    if failure not in FAILURES:
        raise Invalid(f"a router has no failure {failure!r}", f"the known ones are {', '.join(FAILURES)}")
    if failure not in router.broken:
        router.broken.append(failure)
    lab.save()
    if failure == DOWN:
        commands.run("ip", "-n", router.namespace, "link", "set", CABLE, "down")
        return f"{CABLE} of {router.name} is down"
    count = processes.kill(lab.folder, lambda: _pids(lab, router), f"router {router.name}")
    if not count:
        raise NotFound(f"router {router.name} does not run", f"linkspan lab mend {router.name} starts it")
    return f"{router.software} of {router.name} is killed"


def mend(lab: Lab, router: Router) -> list[str]:
    """Undo every failure of a router; returns what was done."""
    done = []
    if DOWN in router.broken:
        commands.ip(router.namespace, (f"link set {CABLE} up", *_addresses(router)))
        done.append(f"{CABLE} is up")
    if not alive(lab, router):
        start(lab, [router])
        done.append(f"{router.software} is started")
    router.broken = []
    lab.save()
    return done


def _addresses(router: Router) -> list[str]:
    """Return commands that add IPv6 addresses again, which are lost when their link goes down."""
    return [f"addr replace {text} dev {CABLE} nodad" for text in router.addresses if ":" in text]
