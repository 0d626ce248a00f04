"""`linkspan upgrade`: replaces the program, the units and the plugins of this host, and restarts its agent.

The data path is in the kernel, so containers do not notice. Each step may be repeated: after an upgrade that was
interrupted, the same command does the rest.
"""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from linkspan import __version__
from linkspan.agent import file_ownership, installation
from linkspan.api.client import Client
from linkspan.cli.address import NOT_WELL
from linkspan.cli.install import require_root
from linkspan.cli.output import DEFAULT_SOCKET, Format, Output, Socket, as_json, say, step
from linkspan.core.errors import Invalid, LinkspanError, Unavailable
from linkspan.core.states.programs import File
from linkspan.runtimes import runtimes, systemd
from linkspan.runtimes.base import Site

PACKAGED = "/opt/linkspan/bin/linkspan"
_PROBLEMS = ("drift", "unreachable", "disputes", "records", "orphans")
_POLL = 0.2


def upgrade(
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FILE", help="Install this .deb or .rpm first.")
    ] = None,
    wait: Annotated[float, typer.Option(metavar="SECONDS", help="How long to wait until the agent is healthy.")] = 120,
    output: Output = Format.TABLE,
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """Restart this host's agent with the version that is installed, and wait until it is healthy; exit 3 if it is not.

    It also renews the units of the agent and of linkspan's etcd, and the runtimes' plugins. Containers keep their
    network. An older version is installed in the same way.
    """
    require_root()
    if to is not None:
        with step(f"{to.name} is installed"):
            install(to)
        words = ["upgrade", "--wait", str(wait), "--output", output.value, "--socket", socket]
        sys.stdout.flush()
        os.execv(PACKAGED, [PACKAGED, *words])  # noqa: S606  # the new version knows what it needs
    before = _status(Client(socket))
    if before is None:
        raise Unavailable(
            f"no agent answers at {socket}, so there is none to restart",
            f"start one: `sudo systemctl start {systemd.UNIT_NAME}`, or `sudo linkspan agent`",
        )
    with step("units and plugins"):
        renewed = _renewed(Path(before["agent"]["state_dir"]), socket)
    done = [f"File {path}" for path in renewed]
    if systemd.runs():
        with step("services restart"):
            _run("systemctl", "daemon-reload")
            for unit in others(renewed):
                _run("systemctl", "try-restart", unit)
            _run("systemctl", "restart", systemd.UNIT_NAME)
    else:
        pid = before["agent"]["pid"]
        say(f"systemd does not run here: end the agent (kill {pid}), and start it again as before; waiting", sys.stderr)
    with step("the agent begins, and looks at what it has"):
        left = _awaited(Client(socket), before, time.monotonic() + wait)
    if not left:
        done.append(f"agent {before['agent']['version']} to {__version__}")
    if output is Format.JSON:
        as_json({"done": done, "left": left})
    else:
        for line in [*(f"renewed {one}" for one in done), *(f"problem: {one}" for one in left)]:
            say(line)
        old = before["agent"]["version"]
        if left and old != __version__:
            arch = "arm64" if platform.machine() == "aarch64" else "amd64"
            say(f"to go back: linkspan upgrade --to linkspan_{old}_{arch}.deb (the package of the version before)")
    if left:
        raise typer.Exit(NOT_WELL)


def install(package: Path) -> None:
    """Install a package of linkspan, of whichever version. Raises Invalid for any other file, and changes nothing."""
    commands = {
        ".deb": (("dpkg-deb", "-f", package, "Package"), ("dpkg", "-i", package)),
        ".rpm": (("rpm", "-qp", "--qf", "%{NAME}", package), ("rpm", "-U", "--oldpackage", "--replacepkgs", package)),
    }
    if package.suffix not in commands:
        raise Invalid(f"{package} is no .deb and no .rpm", "give a package of linkspan")
    question, command = commands[package.suffix]
    try:
        name = _run(*question).strip()
    except LinkspanError as error:
        raise Invalid(f"{package} cannot be read as a package: {error.message}", "download it again") from error
    if name != "linkspan":
        raise Invalid(f"{package} is a package of {name or 'nothing'}", "give a package of linkspan")
    _run(*command, env=os.environ | {"LINKSPAN_UPGRADE": "1"})  # its script would restart the agent as well


def left(before: Mapping[str, Any], now: Mapping[str, Any] | None) -> list[str]:
    """Return what an agent lacks after an upgrade: its status ``now`` (None: no answer) has it, and ``before`` not."""
    if now is None:
        return ["the agent does not answer (journalctl -u linkspan)"]
    agent, old = now["agent"], before["agent"]
    if (agent["pid"], agent["started"]) == (old["pid"], old["started"]):
        return [f"the agent has not been restarted: version {agent['version']}, pid {agent['pid']}"]
    if agent["version"] != __version__:
        return [f"the agent that was started is version {agent['version']}, and this program is {__version__}"]
    if now.get("waiting"):
        return [f"the agent waits: {now['waiting']}"]
    problems = [] if now["store"]["ok"] or not before["store"]["ok"] else ["the store does not answer"]
    for name in _PROBLEMS:
        known = [_words(one) for one in before.get(name, ())]
        problems += [f"{name}: {words}" for words in map(_words, now.get(name, ())) if words not in known]
    return problems


def _words(problem: object) -> str:
    """Return a problem of a status as text."""
    return ", ".join(str(one) for one in problem.values()) if isinstance(problem, dict) else str(problem)


def _awaited(client: Client, before: Mapping[str, Any], deadline: float) -> list[str]:
    """Wait until nothing is left; return what is left at the deadline (of ``time.monotonic``)."""
    while (problems := left(before, _status(client))) and time.monotonic() < deadline:
        time.sleep(_POLL)
    return problems


def _status(client: Client) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = client.call("GET", "/v1/status")
    except LinkspanError:
        return None
    return found


def _renewed(state_dir: Path, socket: str) -> list[str]:
    """Write again those files that linkspan put here and that a version brings: units, and runtimes' plugins."""
    there, etcd = {file.path for file in installation.installed(state_dir)}, of_etcd(state_dir)
    if not there:
        return []
    executable, python, told = file_ownership.program()
    if told:
        say(f"note: {told}", sys.stderr)
    root = Path("/")
    wanted = [*installation.service(executable, root, group=installation.owns_group(state_dir)), *etcd]
    for runtime in runtimes().values():
        if runtime.path:
            wanted += [file for file in runtime.files(Site(root, socket, python)) if file.mode & 0o100]
    return installation.put(state_dir, [file for file in wanted if file.path in there])


def others(renewed: list[str]) -> list[str]:
    """Return which services besides the agent have a unit among these files: they are restarted before it."""
    units = (Path(path).name for path in renewed if path.endswith(".service"))
    return [unit for unit in units if unit != systemd.UNIT_NAME]


def of_etcd(state_dir: Path) -> list[File]:
    """Return the files of systemd for a voter's etcd, as this version has them; say if it runs without systemd.

    Raises LinkspanError.
    """
    from linkspan.agent import etcd_unit  # takes long to import
    from linkspan.cluster.founding.etcd_service import EtcdService
    from linkspan.cluster.founding.trust_files import TrustFiles
    from linkspan.store.snapshot import SNAPSHOT, remembered

    voter, host = TrustFiles(state_dir).voter(), remembered(state_dir / SNAPSHOT).host
    if voter is None or not host:  # etcd's command line has the host's id
        return []
    with contextlib.closing(EtcdService(state_dir, host, voter)) as service:
        if voter.systemd:
            return [*etcd_unit.unit_files(service)]
        what = f"linkspan's etcd goes on as it was started (its --data-dir is {service.folder / 'data'})"
        say(f"note: {what}; end it, and the agent starts the one of this version", sys.stderr)
        return []


def _run(*words: str | Path, env: Mapping[str, str] | None = None) -> str:
    """Run a command and return its output. Raises LinkspanError with the command's words."""
    argv = [str(word) for word in words]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, env=env)
    except FileNotFoundError as error:
        raise LinkspanError(f"{argv[0]} is not installed", "it is a part of the distribution") from error
    if done.returncode:
        raise LinkspanError(f"{' '.join(argv)}: {done.stderr.strip() or f'it ended with {done.returncode}'}")
    return done.stdout
