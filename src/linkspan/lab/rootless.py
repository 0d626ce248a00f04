"""Labs without root: in a user namespace, where this user is root.

A process that only sleeps, the keeper, holds the user namespace, a mount namespace with a /run of its own
(for /run/netns and the labs' folders) and a network namespace. Each lab command enters these and then works
like root. The keeper is found by its mark in the environment, like the labs' processes, and ends with the
last lab. Not available there: etcd's and the user's own files under /run.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from linkspan.core.errors import Denied
from linkspan.core.own_command import own_command, own_environment
from linkspan.lab.commands import await_

MARK = "LINKSPAN_LAB_KEEPER"
_KEEP = "mount -t tmpfs tmpfs /run && mkdir /run/netns /run/lock && echo kept && exec sleep infinity"


def enter(*, make: bool) -> None:
    """Without root, run this whole command again inside the user's namespaces; with root, do nothing.

    ``make`` creates them if they do not exist; without it there is no lab, and the caller reports that.
    Raises Denied if the machine allows no user namespaces.
    """
    if os.geteuid() == 0:
        return
    keeper = _keeper() or (_made() if make else 0)
    if keeper:
        _become(keeper)


def _keeper() -> int:
    """Return the pid of this user's keeper, 0 if there is none."""
    mark = f"{MARK}={os.geteuid()}".encode()
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                sleeps = (process / "comm").read_text().strip() == "sleep"
                if sleeps and mark in (process / "environ").read_bytes().split(b"\0"):
                    return int(process.name)
    return 0


def _made() -> int:
    user = str(os.geteuid())
    command = ["unshare", "--user", "--map-root-user", "--mount", "--net", "sh", "-c", _KEEP]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {MARK: user},
            start_new_session=True,
            text=True,
        )
    except FileNotFoundError as error:
        raise Denied("a lab without root needs unshare", "apt install util-linux, or use sudo") from error
    assert process.stdout is not None
    assert process.stderr is not None
    if process.stdout.readline() != "kept\n":
        why = (process.stderr.read().strip().splitlines() or ["unshare failed"])[-1]
        raise Denied(
            f"this machine makes no user namespace for user {user}: {why}",
            "sudo linkspan lab ..., or allow them: sysctl kernel.unprivileged_userns_clone, "
            "user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns",
        )
    await_(_keeper)
    return _keeper()


def _become(keeper: int) -> NoReturn:
    env = own_environment() | {MARK: f"inside {os.geteuid()}:{keeper}"}
    namespaces = ("--user", "--mount", "--net", "--preserve-credentials")
    words = ["nsenter", "--target", str(keeper), *namespaces, *own_command(), *sys.argv[1:]]
    os.execvpe(words[0], words, env)  # noqa: S606 - no shell is meant


def entered() -> bool:
    """Return whether this command runs inside a user's namespaces."""
    return os.environ.get(MARK, "").startswith("inside ")


def finish() -> None:
    """End the keeper that this command has entered, after the last lab. With root, do nothing."""
    word, _, pid = os.environ.get(MARK, "").partition(":")
    if entered() and pid.isdigit():
        mark = f"{MARK}={word.removeprefix('inside ')}".encode()
        with contextlib.suppress(OSError):
            if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                os.kill(int(pid), signal.SIGTERM)
