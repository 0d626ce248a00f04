"""Uninstall: desired is nothing, observed is made so, and a second look proves it.

It needs no agent, and works after one has crashed: what is ours is known by its marks on the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from linkspan import installation
from linkspan.config import GROUP, Config
from linkspan.errors import Conflict, LinkspanError, Unavailable
from linkspan.journal import Journal
from linkspan.machine import Machine
from linkspan.model import Endpoint
from linkspan.reconcile import describe
from linkspan.runtimes.docker_engine import Engine
from linkspan.runtimes.docker_networks import remove_exposed, users_own
from linkspan.runtimes.exposed import podman_id
from linkspan.runtimes.systemd import DOCKER_PLUGIN
from linkspan.state import State

PATIENCE = 15.0
"""Seconds that an agent has to end in order; it waits for requests under way for 5."""


class Outcome(msgspec.Struct):
    """What was (or would be) removed, and what is left, with why."""

    removed: list[str]
    left: list[str]


def _told(state: State) -> str:
    return f"{type(state).__name__} {describe(state)}"


def living(config: Config) -> list[Endpoint]:
    """Return the endpoints of this boot that the journal has."""
    file = Path(config.state_dir) / "journal.db"
    if not file.exists():
        return []
    with contextlib.closing(Journal(file)) as journal:
        return [row.endpoint for row in journal.rows() if row.boot_id == journal.boot_id]


def _entered(machine: Machine, config: Config) -> set[int]:
    """Return the namespaces of the containers that the journal has, which the machine can enter then."""
    endpoints = living(config)
    for endpoint in endpoints:
        machine.enter(endpoint)
    return {endpoint.netns for endpoint in endpoints if endpoint.netns}


def used(config: Config) -> list[tuple[str, str]]:
    """Return users' own networks of driver linkspan, each with the command that removes it.

    Without linkspan no engine could remove them any more.
    """
    found = [(f"Docker network {name}", f"docker network rm {name}") for name in _docker_networks(config)]
    return found + [(f"Podman network {name}", f"podman network rm {name}") for name in _podman_networks(config)]


def _docker_networks(config: Config) -> list[str]:
    if not config.docker_api or not Path(config.docker_api).exists():
        return []
    try:
        return asyncio.run(users_own(Engine(config.docker_api)))
    except LinkspanError:  # an engine that is down tells nothing
        return []


def _podman_networks(config: Config) -> list[str]:
    found = []
    for path in sorted(Path(config.podman_networks).glob("*.json")) if config.podman_networks else ():
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            made = msgspec.json.decode(path.read_bytes(), type=_PodmanFile)
            if made.driver == "linkspan" and made.id != podman_id(made.name):  # else it was exposed, and goes
                found.append(made.name)
    return found


class _PodmanFile(msgspec.Struct):
    name: str = ""
    id: str = ""
    driver: str = ""


def preview(config: Config) -> Outcome:
    """Return what would be removed, without touching anything."""
    state_dir = Path(config.state_dir)
    with _machine(state_dir) as machine:
        change, _ = machine.reconciler.difference(None, _entered(machine, config))
        found = [_told(state) for state in change.delete]
    found += _installed(state_dir)
    return Outcome(found + _folders(config) + [str(path) for path in _plugin_sockets(config)], [])


def _installed(state_dir: Path) -> list[str]:
    group = [f"Group {GROUP}"] if installation.has_own_group(state_dir) else []
    return [f"File {file.path}" for file in installation.installed(state_dir)] + group


def carry_out(config: Config) -> Outcome:
    """Stop the agent, remove everything, and look again. Raises Unavailable where the agent does not end."""
    state_dir, sockets = Path(config.state_dir), _plugin_sockets(config)
    owners = [f"{network}, without its driver: {fix}" for network, fix in used(config)]
    networks, kept = asyncio.run(remove_exposed(Engine(config.docker_api)))  # while the agent answers the engine
    _stop_unit(state_dir)
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _agent_stopped(state_dir), _machine(state_dir) as machine:
        inside = _entered(machine, config)  # a container's rules do not go with its links
        report = machine.reconciler.resync(None, inside)
        removed = [f"{heal.kind} {heal.key}" for heal in report.heals]
        left = [error.message for error in report.failed.values()]
        change, _ = machine.reconciler.difference(None, inside)
        left += [_told(state) for state in change.delete]
    files = _installed(state_dir)
    left += [error.message for error in installation.remove(state_dir)]
    folders = _folders(config) + [str(path) for path in sockets]
    for path in sockets:
        path.unlink(missing_ok=True)
    if not left:  # what is left is known by its record
        left += _remove_folders(config)
    return Outcome(networks + removed + files + folders, owners + kept + left)


@contextlib.contextmanager
def _machine(state_dir: Path) -> Iterator[Machine]:
    machine = Machine(state_dir)
    try:
        yield machine
    finally:
        machine.close()


@contextlib.contextmanager
def _agent_stopped(state_dir: Path) -> Iterator[None]:
    """End the agent that has the state folder, and hold its lock so that no other starts."""
    with (state_dir / "lock").open("a+", encoding="ascii") as lock:
        deadline = time.monotonic() + PATIENCE
        asked = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                lock.seek(0)
                pid = lock.read().strip()
                if time.monotonic() > deadline:
                    raise Unavailable(
                        f"the agent with pid {pid or '?'} does not end", "stop it, and try again"
                    ) from None
                if pid.isdigit() and not asked:
                    os.kill(int(pid), signal.SIGTERM)
                    asked = True
                time.sleep(0.05)
        yield


def _stop_unit(state_dir: Path) -> None:
    """Disable the units that we installed, or systemd would start the agent again."""
    installed = {file.path for file in installation.installed(state_dir)}
    units = [u for u in (installation.DOCKER_UNIT, installation.UNIT) if f"/{u}" in installed]
    if units and Path("/run/systemd/system").is_dir():
        names = [Path(unit).name for unit in units]
        subprocess.run(["systemctl", "disable", "--now", *names], check=False, capture_output=True)


def _folders(config: Config) -> list[str]:
    paths = (Path(config.state_dir), Path(config.socket), Path(config.socket).parent / "queue")
    return [str(path) for path in paths if path.exists()]


def _plugin_sockets(config: Config) -> list[Path]:
    """Return the Docker plugin's sockets that exist: systemd's outlasts its unit, the agent's a kill."""
    units = {file.path for file in installation.installed(Path(config.state_dir))}
    handed = [DOCKER_PLUGIN] if f"/{installation.DOCKER_UNIT}" in units else []
    every = dict.fromkeys([*filter(None, [config.docker_socket]), *handed])
    return [Path(path) for path in every if Path(path).exists()]


def _remove_folders(config: Config) -> list[str]:
    left = []
    run = Path(config.socket).parent
    for path in (Path(config.state_dir), run / "queue"):
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            left.append(f"{path}: {error.strerror}")
    Path(config.socket).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # somebody else's files may be in it
        run.rmdir()
    return left


def refusal(endpoints: list[Endpoint]) -> LinkspanError:
    """Return the error that tells, in one line, that endpoints still live."""
    names = ", ".join(f"{e.name or e.id} on {e.network}" for e in endpoints[:5])
    more = ", ..." if len(endpoints) > 5 else ""
    number = "1 endpoint lives" if len(endpoints) == 1 else f"{len(endpoints)} endpoints live"
    return Conflict(
        f"{number} on this host ({names}{more})",
        "detach them (or stop their containers), or use --force, which cuts them off",
    )
