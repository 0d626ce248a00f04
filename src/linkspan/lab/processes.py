"""Processes of a lab: agents, etcd, what agents start, and what `lab exec` runs.

A process belongs to a lab by ``LINKSPAN_LAB_MARK=FOLDER:ROLE`` in its environment, found in /proc. There are
no pid files. So a process that was started just before a crash is found too, and a foreign process with a
reused pid is never ended.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from linkspan.core.config import SETTINGS
from linkspan.core.errors import LinkspanError, NotFound, Unavailable
from linkspan.core.own_command import own_command, own_environment
from linkspan.kernel.drivers.processes import OWNER
from linkspan.kernel.io.process_stat import parent
from linkspan.lab.commands import PATIENCE, entering

MARK = "LINKSPAN_LAB_MARK"


def environment(folder: Path, role: str, **more: str) -> dict[str, str]:
    """Return the environment of a lab's process: its mark, and a PATH on which `linkspan` is found."""
    found = own_environment() | {MARK: f"{folder}:{role}", "PATH": f"{_commands(folder)}:{os.environ['PATH']}"}
    found.pop(OWNER, None)
    return found | more


def _commands(folder: Path) -> Path:
    """Return the folder of `linkspan`; a checkout that is not installed gets one in the lab."""
    installed = Path(sys.executable).parent
    if (installed / "linkspan").exists():
        return installed
    script = folder / "bin" / "linkspan"
    if not script.exists():
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(f'#!/bin/sh\nexec {shlex.join(own_command())} "$@"\n', encoding="utf-8")
        script.chmod(0o755)
    return script.parent


def start(
    netns: str, hostname: str, argv: Sequence[str], env: dict[str, str], log: Path
) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own; stdout truncates LOG.out, stderr appends to LOG.log."""
    try:
        with log.with_suffix(".out").open("wb") as out, log.with_suffix(".log").open("ab") as errors:
            return subprocess.Popen(
                [*entering(netns, hostname), *argv],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
                env=env,
                cwd="/",
                start_new_session=True,
            )
    except FileNotFoundError as error:
        raise NotFound("nsenter is not installed", "apt install util-linux") from error


def of_lab(folder: Path, wanted: Callable[[str, bytes], bool]) -> Iterator[int]:
    """Yield the pids of a lab's processes for which ``wanted`` (role, environment) is true."""
    mark = f"{MARK}={folder}:".encode()
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                environ = (process / "environ").read_bytes()
                for line in environ.split(b"\0"):
                    if not line.startswith(mark) or _elsewhere(process, folder):
                        continue
                    if wanted(os.fsdecode(line[len(mark) :]), environ):
                        yield int(process.name)


def _elsewhere(process: Path, folder: Path) -> bool:
    """Return whether a process's lab is another of the same name, in a mount namespace with a /run of its own."""
    try:
        return not (process / "root" / folder.relative_to("/")).samefile(folder)
    except OSError:
        return False


def agents(folder: Path, host: str) -> list[int]:
    """Return the agents of a host (more than one while one is being replaced), whoever started them."""
    roles, given, owned = _roles(host), f"{SETTINGS}=".encode(), f"{OWNER}=".encode()
    return list(of_lab(folder, lambda role, environ: role in roles and given in environ and owned not in environ))


def helpers(folder: Path, host: str) -> list[int]:
    """Return the helper programs that a host's agent has started: the leaders of their sessions."""
    roles, owned = _roles(host), f"{OWNER}=".encode()
    found = of_lab(folder, lambda role, environ: role in roles and owned in environ)
    return [pid for pid in found if _leads(pid)]


def _roles(host: str) -> tuple[str, str]:
    """Return the roles of an agent: started by the lab, or by a command that somebody ran in the host."""
    return f"agent/{host}", f"exec/{host}"


def _leads(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return os.getsid(pid) == pid
    return False


def kill(folder: Path, find: Callable[[], Sequence[int]], what: str) -> int:
    """Kill all that is found until nothing is left; return how many. Raises Unavailable if one stays."""
    own = _ancestors()
    deadline = time.monotonic() + PATIENCE
    killed: set[int] = set()
    while pids := [pid for pid in find() if pid not in own]:
        for pid in pids:
            if _kill(folder, pid):
                killed.add(pid)
        if time.monotonic() > deadline:
            raise Unavailable(f"{what}: process {pids[0]} does not end", "is the machine overloaded?")
    return len(killed)


def _kill(folder: Path, pid: int) -> bool:
    """Kill a process if it still belongs to the lab, and wait for its end."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if f"{MARK}={folder}:".encode() not in Path(f"/proc/{pid}/environ").read_bytes():
            return False
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        return bool(select.select([pidfd], [], [], PATIENCE)[0])
    except OSError:
        return False
    finally:
        os.close(pidfd)


def _ancestors() -> set[int]:
    """Return this process and its ancestors: `lab down` may be typed into a shell of the lab."""
    found, pid = set(), os.getpid()
    while pid > 1 and pid not in found:
        found.add(pid)
        with contextlib.suppress(OSError, ValueError, IndexError):
            pid = parent(pid)
    return found


def await_word(process: subprocess.Popen[bytes], log: Path, word: str, what: str) -> None:
    """Wait until a process prints a word on stdout. Raises LinkspanError with its last output if it ends."""
    deadline = time.monotonic() + PATIENCE
    while word not in log.with_suffix(".out").read_text(errors="replace").split():
        if process.poll() is not None or time.monotonic() > deadline:
            said = log.with_suffix(".log").read_text(errors="replace").strip().splitlines()
            why = "ended" if process.returncode is not None else f"is not ready after {PATIENCE:.0f} s"
            raise LinkspanError(f"{what} {why}: {said[-1] if said else 'it said nothing'}", f"see {log}.log")
        time.sleep(0.01)
