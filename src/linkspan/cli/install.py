"""`linkspan install` and `uninstall`."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import typer

from linkspan.agent import file_ownership, installation
from linkspan.api.client import Client
from linkspan.cli.address import NOT_WELL
from linkspan.cli.output import DEFAULT_SOCKET, Format, Output, Socket, as_json, joined, table
from linkspan.core import config
from linkspan.core.errors import Denied, Invalid, LinkspanError, NotFound, Unavailable
from linkspan.core.kinds import Sort
from linkspan.kernel.kinds import kinds
from linkspan.runtimes import runtimes, systemd
from linkspan.runtimes.base import BaseRuntime, Site

app = typer.Typer(no_args_is_help=True, help="Install files that a runtime or the machine needs.")
Root = Annotated[Path, typer.Option("--root", metavar="DIR", help="Install below this folder instead of /.")]


@app.command("systemd")
def systemd_(root: Root = Path("/"), output: Output = Format.TABLE) -> None:
    """Install the agent as a service, with the group of users who may read, and start it if systemd runs."""
    require_root()
    executable, _ = _program(root)
    if root != Path("/"):
        _say(_installed(executable, root, root / config.STATE_DIR.lstrip("/"), group=True), output)
        return
    group = installation.owns_group(state_dir := Path(config.load("", {}).state_dir))
    _say(_installed(executable, root, state_dir, group=group), output)
    if not systemd.runs():
        why = "systemd does not run on this machine, so nothing was started"
        print(f"note: {why}; `linkspan agent` starts an agent in the foreground", file=sys.stderr)
        return
    _enable(group=group)
    if output is Format.TABLE:
        print(f"started {systemd.UNIT_NAME}; members of the group {config.GROUP} may read its state")


def service() -> None:
    """Start the agent's service, and install it first if nothing has: a package may have. Raises LinkspanError."""
    if subprocess.run(["systemctl", "cat", systemd.UNIT_NAME], capture_output=True, check=False).returncode == 0:
        _run("systemctl", "enable", "--now", systemd.UNIT_NAME)
        return
    executable, _ = _program(Path("/"))
    state_dir = Path(config.load("", {}).state_dir)
    group = installation.owns_group(state_dir)
    _installed(executable, Path("/"), state_dir, group=group)
    _enable(group=group)


def _installed(executable: str, root: Path, state_dir: Path, *, group: bool) -> list[str]:
    return installation.put(state_dir, installation.service(executable, root, group=group))


def _enable(*, group: bool) -> None:
    if group:
        _run("systemd-sysusers", f"/{installation.SYSUSERS}")
    _run("systemctl", "daemon-reload")
    _run("systemctl", "enable", "--now", systemd.UNIT_NAME)


def _one(runtime: BaseRuntime) -> Callable[..., None]:
    """Return the command that installs what a runtime needs."""

    def install(root: Root = Path("/"), output: Output = Format.TABLE, socket: Socket = DEFAULT_SOCKET) -> None:
        require_root()
        _put(runtime, _site(runtime, root, socket), _state_dir(root, socket), output)

    def install_for_one(
        network: Annotated[
            str, typer.Option(metavar="N", help="The network; not needed if there is only one.")
        ] = "",
        root: Root = Path("/"),
        output: Output = Format.TABLE,
        socket: Socket = DEFAULT_SOCKET,
    ) -> None:
        require_root()
        client = Client(socket)
        chosen = _network(client, network)
        state_dir = Path(client.call("GET", "/v1/status")["agent"]["state_dir"])
        _put(runtime, _site(runtime, root, socket, chosen), state_dir, output)

    return install_for_one if runtime.for_one_network else install


for _runtime in runtimes().values():
    app.command(_runtime.name, help=_runtime.installs)(_one(_runtime))


def _network(client: Client, name: str) -> str:
    """Return the name of the network for which files are installed: the only one, if none is given."""
    networks = [n["name"] for n in client.call("GET", "/v1/networks") if n["backend"] != "host"]
    if not name and len(networks) != 1:
        raise Invalid(
            f"there are {len(networks)} networks ({', '.join(networks) or 'none'})", "choose one with --network"
        )
    chosen = name or str(networks[0])
    if chosen not in networks:
        raise NotFound(f"network {chosen!r} does not exist", f"there are: {', '.join(networks) or 'none'}")
    return chosen


def _site(runtime: BaseRuntime, root: Path, socket: str, network: str = "") -> Site:
    return Site(root, socket, _program(root)[1] if runtime.path else "", network)


def _put(runtime: BaseRuntime, site: Site, state_dir: Path, output: Format) -> None:
    """Install a runtime's files, and let systemd listen for it."""
    paths = installation.put(state_dir, runtime.files(site))
    _say(paths, output)
    if (note := runtime.note([Path(path) for path in paths])) and output is Format.TABLE:
        print(f"note: {note}", file=sys.stderr)
    if (at := runtime.listens) is None or site.root != Path("/"):
        return
    if not systemd.runs():
        setting = f'set {at.setting} = "{at.path}" in the config file of the agent'
        print(f"note: systemd does not run here; {setting}", file=sys.stderr)
        return
    # systemd does not open a socket whose service runs already. The data path does not need the agent
    # meanwhile.
    _run("systemctl", "daemon-reload")
    _run("systemctl", "stop", systemd.UNIT_NAME)
    _run("systemctl", "enable", "--now", at.unit)
    _run("systemctl", "start", systemd.UNIT_NAME)


def _program(root: Path) -> tuple[str, str]:
    """Return paths of `linkspan` and its interpreter that root may run; do not check those of an image."""
    if root != Path("/"):
        return file_ownership.command(), sys.executable
    executable, python, told = file_ownership.program()
    if told:
        print(f"note: {told}", file=sys.stderr)
    return executable, python


def _state_dir(root: Path, socket: str) -> Path:
    """Return the folder of the install record: the agent's, or the default one below a root."""
    if root != Path("/"):
        return root / config.STATE_DIR.lstrip("/")
    return Path(Client(socket).call("GET", "/v1/status")["agent"]["state_dir"])


def _run(*words: str) -> None:
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise LinkspanError(f"{words[0]} is not installed", "it is a part of systemd's packages") from error
    if done.returncode:
        why = done.stderr.strip() or f"it ended with {done.returncode}"
        raise LinkspanError(f"{' '.join(words)}: {why}", f"journalctl -u {systemd.UNIT_NAME}")


def require_root() -> None:
    """Raise Denied for anybody but root."""
    if os.geteuid():
        raise Denied("this command changes the machine, which needs root", "run the command with sudo")


def _say(paths: list[str], output: Format) -> None:
    if output is Format.JSON:
        as_json({"files": paths})
    else:
        for path in paths:
            print(f"installed {path}")


def uninstall(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also if endpoints exist: they lose their network.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Name every object that is removed.")] = False,
    config_file: Annotated[
        str, typer.Option("--config", metavar="FILE", envvar=config.CONFIG, help="The agent's config file.")
    ] = "",
    state_dir: Annotated[str, typer.Option(metavar="DIR", help="The agent's state folder.")] = "",
    output: Output = Format.TABLE,
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """Remove everything of linkspan's from this machine, and prove that nothing is left; exit 3 if something is."""
    require_root()
    from linkspan.agent import own_etcd
    from linkspan.agent import uninstall as work  # the drivers take long to import

    given = {"state_dir": state_dir, "socket": socket if socket != DEFAULT_SOCKET else ""}
    settings, problem = config.salvaged(config_file, given)
    if not state_dir:
        with contextlib.suppress(Unavailable):  # it may run with another folder than the settings name
            given["state_dir"] = Client(settings.socket).call("GET", "/v1/status")["agent"]["state_dir"]
            settings, problem = config.salvaged(config_file, given)
    if problem:
        what = f"uses what it can read of it: state folder {settings.state_dir} (else give --state-dir)"
        print(f"note: {problem}; uninstall {what}", file=sys.stderr)
    if dry_run:
        _tell(work.preview(settings), "would remove", output, verbose=True)
        return
    endpoints = work.living(settings)
    if not force and (refused := work.refusal(endpoints, work.used(settings), own_etcd.needed(settings))):
        if endpoints and output is Format.TABLE:
            rows = [(e.name or e.id, e.ifname, e.network, joined(e.addresses)) for e in endpoints]
            table(("container", "interface", "network", "addresses"), rows, "")
        raise refused
    if not yes and not sys.stdin.isatty():
        raise Invalid("uninstall asks before it removes anything, and this is no terminal", "give --yes")
    if not yes:
        typer.confirm("Remove all of linkspan's networks, endpoints and files from this machine?", abort=True)
    with contextlib.suppress(LinkspanError):  # no agent runs, or one of the release before
        Client(settings.socket).call("POST", "/v1/retire")
    outcome = work.carry_out(settings, Path(config_file or config.CONFIG_FILE))
    _tell(outcome, "removed", output, verbose=verbose)
    if outcome.left:
        raise typer.Exit(NOT_WELL)


def _tell(outcome: object, verb: str, output: Format, *, verbose: bool) -> None:
    from linkspan.agent.uninstall import Outcome

    assert isinstance(outcome, Outcome)
    if output is Format.JSON:
        as_json(outcome)
        return
    for item in outcome.removed if verbose else _summary(outcome.removed):
        print(f"{verb} {item}")
    for item in outcome.refused:
        print(f"refused without --force: {item}")
    for item in outcome.left:
        print(f"left: {item}")
    for item in outcome.stays:
        print(f"stays: {item}")
    if verb == "removed" and not outcome.left:
        but = " except what stays on purpose" if outcome.stays else ""
        print(f"nothing of linkspan is left on this machine{but}")


_FORMER = {"Link": Sort.LINK, "Group": Sort.GROUP}
"""Of objects that are no states: links that lost their mark, and the socket's group."""


def _summary(removed: Iterable[str]) -> list[str]:
    """Return how many objects of each kind were removed, and folders and sockets by their paths."""
    sorts = _FORMER | {kind.name: kind.sort for kind in kinds()}
    counts = Counter(sorts.get(item.partition(" ")[0], Sort.OTHER) for item in removed if not item.startswith("/"))
    return [
        *(f"{counts[sort]} {sort.value[counts[sort] != 1]}" for sort in Sort if counts[sort]),
        *(item for item in removed if item.startswith("/")),
    ]
