"""Uninstall: removes everything that is linkspan's, and proves it by a second observation.

It needs no agent, and works after an agent crashed: linkspan's objects are known by their marks on the
machine.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from linkspan.agent import file_ownership, installation, own_etcd
from linkspan.cluster.founding.trust_files import TrustFiles
from linkspan.core import namesakes
from linkspan.core.config import CONFIG_FILE, GROUP, Config
from linkspan.core.errors import Conflict, LinkspanError, Unavailable, counted
from linkspan.core.model import Endpoint, Host
from linkspan.core.states.host import NftElement, Route, State, Veth
from linkspan.core.store_url import etcd_parts
from linkspan.endpoints import reconstruction
from linkspan.endpoints.journal import Journal
from linkspan.kernel.kinds import kinds
from linkspan.kernel.machine import Machine
from linkspan.kernel.stray_links import Stray
from linkspan.kernel.stray_links import find as find_strays
from linkspan.kernel.stray_links import remove as remove_strays
from linkspan.runtimes import runtimes, systemd
from linkspan.store import records
from linkspan.store.snapshot import SNAPSHOT, remembered

PATIENCE = 15.0
"""Seconds that an agent has to end in order; it waits for requests under way for 5."""


class Outcome(msgspec.Struct):
    """The result: what was (or would be) removed, what could not be and why, and what stays on purpose.

    ``refused`` says why nothing would be removed without --force.
    """

    removed: list[str]
    left: list[str]
    stays: list[str] = []
    refused: list[str] = []


def _told(state: State) -> str:
    return f"{type(state).__name__} {state.label}"


def living(config: Config) -> list[Endpoint]:
    """Return the endpoints of this boot: those in the journal, and veth pairs that only the kernel has."""
    with _machine(Path(config.state_dir)) as machine:
        return _living(config, machine)


def _living(config: Config, machine: Machine) -> list[Endpoint]:
    known = _journalled(config)
    links = reconstruction.links(machine.reconciler.observed((Veth, NftElement)))
    return known + [
        Endpoint(
            id=link.veth.name,
            ifname=link.veth.peer_name,
            network="(not in the journal)",
            addresses=tuple(str(address) for address in link.addresses),
            host_ifname=link.veth.name,
            netns=link.veth.peer_netns,
        )
        for link in reconstruction.unheld(known, links)
    ]


def _journalled(config: Config) -> list[Endpoint]:
    """Return the endpoints of this boot in the journal; a journal that cannot be read has none."""
    file = Path(config.state_dir) / "journal.db"
    if not file.exists():
        return []
    with contextlib.suppress(Unavailable), contextlib.closing(Journal(file)) as journal:
        return [row.endpoint for row in journal.rows() if row.boot_id == journal.boot_id]
    return []


def _entered(machine: Machine, config: Config) -> set[int]:
    """Return the namespaces of this host's containers, which the machine can enter from then on."""
    endpoints = [e if e.netns_cookie else machine.reached(e) for e in _living(config, machine) if e.netns]
    living = [endpoint for endpoint in endpoints if machine.alive(endpoint)]
    for endpoint in living:
        machine.enter(endpoint)
    return {endpoint.netns for endpoint in living}


def used(config: Config) -> list[tuple[str, str]]:
    """Return users' own networks of driver linkspan, each with the command that removes it."""
    return [one for runtime in runtimes().values() for one in runtime.users(config)]


def preview(config: Config) -> Outcome:
    """Return what would be removed, without changing anything."""
    state_dir = Path(config.state_dir)
    with _machine(state_dir) as machine:
        change, _ = machine.reconciler.difference(None, _entered(machine, config))
        found = [_told(state) for state in change.delete]
        strays = _strays(config, machine)
        unknown = _settings(machine)
        unseen = machine.used_kinds.unknown()
    found += [f"Link {one.name}" for one in strays if one.ours]
    found += _installed(state_dir)
    found += [str(path) for path in (*_plugin_sockets(config), *file_ownership.copied())]
    found += _folders(config) + own_etcd.preview(config)
    why = refusal(living(config), used(config), own_etcd.needed(config))
    stays = [*_of_others(strays), *unknown, *_staying(config)]
    return Outcome(found, unseen, stays, [why.told] if why else [])


def _installed(state_dir: Path) -> list[str]:
    group = [f"Group {GROUP}"] if installation.has_own_group(state_dir) else []
    return [f"File {file.path}" for file in installation.installed(state_dir)] + group


def carry_out(config: Config, file: Path) -> Outcome:
    """Stop the agent, remove everything, and observe again. Raises Unavailable if the agent does not end.

    ``file`` has the settings: a store that linkspan wrote there is taken out.
    """
    state_dir, sockets = Path(config.state_dir), _plugin_sockets(config)
    owners = [f"{network}, which has no driver now: {fix}" for network, fix in used(config)]
    withdrawn = [runtime.withdraw(config) for runtime in runtimes().values()]  # while the agent still answers them
    networks = [one for removed, _ in withdrawn for one in removed]
    kept = [one for _, left in withdrawn for one in left]
    _stop_unit(state_dir)
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _agent_stopped(state_dir), _machine(state_dir) as machine:
        etcd = own_etcd.remove(config, file)
        stays = _staying(config)  # first: the removal deletes the files that this needs
        strays = _strays(config, machine)  # first: the removal deletes the marks that this needs
        stays += _settings(machine)
        inside = _entered(machine, config)  # a container's rules are not removed with its links
        report = machine.reconciler.resync(None, inside)
        removed = [f"{heal.kind} {heal.key}" for heal in report.heals]
        left = [error.message for error in report.failed.values()]
        left += [error.message for error in remove_strays(one for one in strays if one.ours)]
        removed += [f"Link {one.name}" for one in strays if one.ours]
        change, _ = machine.reconciler.difference(None, inside)
        left += [_told(state) for state in change.delete]
        left += machine.used_kinds.unknown()
        left += [f"Link {one.name}" for one in _strays(config, machine) if one.ours]
    stays += _of_others(strays)
    files = _installed(state_dir)
    left += [error.message for error in installation.remove(state_dir)]
    copies = file_ownership.copied()
    folders = _folders(config) + [str(path) for path in (*sockets, *copies)]
    for path in sockets:
        path.unlink(missing_ok=True)
    if not left:  # the record names what is left
        left += _remove_folders(config)
        for folder in copies:  # last: it may be the running program
            shutil.rmtree(folder, ignore_errors=True)
    return Outcome(networks + removed + etcd + files + folders, owners + kept + left, stays)


def _strays(config: Config, machine: Machine) -> list[Stray]:
    """Return links that have a mark of ours without our alternative name."""
    journalled = {endpoint.host_ifname for endpoint in _journalled(config)}
    known = remembered(Path(config.state_dir) / SNAPSHOT).records
    networks = [key.removeprefix("networks/") for key in known if key.startswith("networks/")]
    observed = machine.reconciler.observed((NftElement, Route))
    return find_strays(machine.sockets, kinds(), observed, journalled, networks)


def _of_others(strays: Iterable[Stray]) -> list[str]:
    return [
        f"link {one.name}: {', '.join(one.marks)}, and nothing else says that linkspan made it; if it did: "
        f"ip link del {one.name}"
        for one in strays
        if not one.ours
    ]


def _settings(machine: Machine) -> list[str]:
    """Return the settings that linkspan set and whose earlier value is lost."""
    return [
        f"setting {path.replace('/', '.')} = {value}: linkspan set it, and its earlier value is lost; set it to what "
        f"you want: sysctl -w {path.replace('/', '.')}=VALUE"
        for path, value in sorted(machine.sysctls.unknown().items())
    ]


def _staying(config: Config) -> list[str]:
    """Return what uninstall leaves on purpose: this host's place in its cluster, and an operator's files."""
    return [*_membership(config), *_own_files(config)]


def _membership(config: Config) -> list[str]:
    """Return that the other hosts still count on this one, if they do."""
    known = remembered(Path(config.state_dir) / SNAPSHOT)
    own, found = f"hosts/{known.host}", known.records
    others = [key for key in found if key.startswith("hosts/") and key != own]
    if own not in found or f"gone/{own}" in found or not (config.store or others):
        return []
    names, forget = {known.host: known.host}, TrustFiles(Path(config.state_dir)).owns(config.store)
    for key in (*others, own):
        with contextlib.suppress(LinkspanError):
            names[key.removeprefix("hosts/")] = records.decode(found[key], Host).name
    who = namesakes.called(names, known.host)
    word = known.host if who != names[known.host] else who
    fix = f"on a voter: linkspan cluster forget {word}" if forget else f"on another host: linkspan host remove {word}"
    return [f"host {who} is still in the cluster, and the others keep its addresses; to remove it, {fix}"]


def _own_files(config: Config) -> list[str]:
    """Return the files of settings and secrets that an operator made."""
    folder = Path(CONFIG_FILE).parent
    found = set(folder.rglob("*")) if folder.is_dir() else set()
    if config.store.startswith("etcd://") and not TrustFiles(Path(config.state_dir)).owns(config.store):
        with contextlib.suppress(LinkspanError):
            url = etcd_parts(config.store)
            found |= {Path(name) for name in (url.ca, url.cert, url.key, url.password_file) if name}
    files = sorted(str(path) for path in found if path.is_file())
    return [f"{file}: you made this file; if nobody needs it: rm {file}" for file in files]


@contextlib.contextmanager
def _machine(state_dir: Path) -> Iterator[Machine]:
    machine = Machine(state_dir)
    try:
        yield machine
    finally:
        machine.close()


@contextlib.contextmanager
def _agent_stopped(state_dir: Path) -> Iterator[None]:
    """End the agent that uses the state folder, and hold its lock so that no other starts."""
    with (state_dir / "lock").open("a+", encoding="ascii", errors="replace") as lock:
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
    """Disable the units that we installed, sockets first; otherwise systemd would start the agent again."""
    names = sorted(_units(state_dir), key=lambda name: (not name.endswith(".socket"), name))
    if names and systemd.runs():
        subprocess.run(["systemctl", "disable", "--now", *names], check=False, capture_output=True)


def _units(state_dir: Path) -> set[str]:
    """Return the names of the units that we installed."""
    paths = [Path(file.path) for file in installation.installed(state_dir)]
    return {path.name for path in paths if path.parent == Path("/", systemd.UNITS)}


def _folders(config: Config) -> list[str]:
    paths = (Path(config.state_dir), Path(config.socket), Path(config.socket).parent / "queue")
    return [str(path) for path in paths if path.exists()]


def _plugin_sockets(config: Config) -> list[Path]:
    """Return the runtimes' sockets that exist: systemd's outlasts its unit, the agent's outlasts a kill."""
    units = _units(Path(config.state_dir))
    paths = []
    for runtime in runtimes().values():
        if at := runtime.listens:
            paths += [getattr(config, at.setting), at.path if at.unit in units else ""]
    return [Path(path) for path in dict.fromkeys(filter(None, paths)) if Path(path).exists()]


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
    with contextlib.suppress(OSError):  # another program's files may be in it
        run.rmdir()
    return left


def refusal(
    endpoints: list[Endpoint], users: list[tuple[str, str]], etcd: own_etcd.Needed | None = None
) -> LinkspanError | None:
    """Return the one-line error that names the endpoints and the users' networks that exist (`used`).

    ``etcd`` is why other hosts need this host's etcd.
    """
    why, fixes, forced = [], [], []
    if etcd is not None:
        why.append(etcd.why)
        fixes.append(etcd.fix)
        forced.append(etcd.forced)
    if endpoints:
        names = ", ".join(f"{e.called} on {e.network}" for e in endpoints[:5])
        more = ", ..." if len(endpoints) > 5 else ""
        verb = "lives" if len(endpoints) == 1 else "live"
        why.append(f"{counted(len(endpoints), 'endpoint')} {verb} on this host ({names}{more})")
        fixes.append("detach them (or remove their containers)")
    if users:
        why.append(f"{', '.join(name for name, _ in users)} still use{'s'[: len(users) == 1]} linkspan")
        fixes.append(f"remove by: {'; '.join(fix for _, fix in users)}")
    forced += ["cuts off the containers"] if endpoints else []
    forced += ["leaves these networks without a driver"] if users else []
    return Conflict("; ".join(why), f"{', and '.join(fixes)}; --force {' and '.join(forced)}") if why else None
