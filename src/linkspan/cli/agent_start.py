"""Start of an agent for commands that need one: as a service if systemd runs, else as a process that outlives them."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from linkspan.agent import locks
from linkspan.api.client import Client
from linkspan.core import config
from linkspan.core.errors import LinkspanError, Unavailable
from linkspan.runtimes import systemd

PATIENCE = 60.0
"""Seconds for an agent's start."""
ANSWER = 10.0
"""Seconds for one answer of an agent: a busy one answers later, and is asked again."""
AGAIN = 0.02
"""Seconds between two looks."""
ASK_PID = 1.0
"""Seconds between two questions who runs: nobody takes the connections, so the kernel refuses the third one."""
OTHER_SOCKET = (
    "does it have another socket (`socket` in its settings; then give --socket PATH), or does it hang? "
    "`systemctl restart linkspan`, or end it and type this again; containers keep running"
)
LOG = "agent.log"
"""The log of an agent that no service manager started, in the state folder."""


def ensure_agent(client: Client, config_file: str, patience: float = PATIENCE) -> None:
    """Start an agent unless one runs, and wait until it has its records. Raises LinkspanError.

    One that runs and does not answer at this moment is waited for: it may start, end, or be busy. One that waits for
    its store gets ``patience`` seconds from its first answer on, whoever started it.
    """
    asking = Client(client.path, ANSWER)
    process: subprocess.Popen[bytes] | None = None
    log, begun, answered = "", False, False
    pid: int | None = None
    next_question = 0.0
    deadline = time.monotonic() + PATIENCE
    while (waits := _waits(asking)) != "":
        if waits and not answered:
            answered, deadline = True, min(deadline, time.monotonic() + patience)
        if waits is None and (pid is None or time.monotonic() >= next_question):
            found, next_question = locks.listener(locks.NAMESPACE_LOCK), time.monotonic() + ASK_PID
            pid = found if found is None else found or pid or 0  # 0: it was asked too often
        runs = waits is not None or pid is not None
        if not runs and not begun:
            begun, deadline = True, time.monotonic() + PATIENCE
            process, log = _begun(client, config_file)
        elif (not runs and process is not None and process.poll() is not None) or time.monotonic() > deadline:
            if waits:
                raise Unavailable(f"the agent waits: {waits}", "see linkspan status")
            if runs:
                who = f"the agent{f' with pid {pid}' if pid else ''} runs on this host"
                raise Unavailable(f"{who}, and does not answer at {client.path}", OTHER_SOCKET)
            raise Unavailable("the agent does not start", f"see {log or 'linkspan status'}")
        time.sleep(AGAIN)


def ensure_answer(client: Client, config_file: str, patience: float) -> None:
    """Start an agent unless one runs, and wait for its records, but only ``patience`` seconds once it answers.

    For what an agent that waits for its store takes as well, because it gives it another store. Raises LinkspanError.
    """
    try:
        ensure_agent(client, config_file, patience)
    except Unavailable:
        if not _waits(Client(client.path, ANSWER)):
            raise


def _begun(client: Client, config_file: str) -> tuple[subprocess.Popen[bytes] | None, str]:
    """Start an agent; return its process, if it is not a service, and where its log is."""
    if client.path == config.SOCKET and systemd.runs():
        from linkspan.cli import install

        install.service()
        return None, f"journalctl -u {systemd.UNIT_NAME}"
    return _started(client, config_file)


def _waits(client: Client) -> str | None:
    """Return why the agent waits, '' if it does not, None if none answers."""
    try:
        return str(client.call("GET", "/v1/status").get("waiting", ""))
    except LinkspanError:
        return None


def _started(client: Client, config_file: str) -> tuple[subprocess.Popen[bytes], str]:
    """Start an agent in a session of its own; return its process, and its log's path."""
    settings = config.load(config_file, {"socket": client.path})
    command, variables = config.process(settings, config_file)
    state_dir = Path(settings.state_dir)
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
    return begin(command, environment | variables, state_dir / LOG), str(state_dir / LOG)


def begin(
    command: Sequence[str], environment: Mapping[str, str], file: Path, first: Callable[[], None] | None = None
) -> subprocess.Popen[bytes]:
    """Begin a process in a session of its own, with a file for its output; it calls ``first`` before the command."""
    with file.open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=environment,
            start_new_session=True,
            preexec_fn=first,
        )
