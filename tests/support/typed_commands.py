"""`linkspan` as shells and scripts type it, in copies of a process that has imported it (support/copies.py).

Its name on the PATH is that of a small program here. That hands over what it was called with: words, environment,
streams, current folder and namespaces. A server makes a copy of itself for it, and says how that ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from linkspan.cli import agent_start
from linkspan.cli.main import main
from linkspan.lab import processes
from support import copies
from support.command_line import prepare

_SPACES, _ALIKE = ("mnt", "net", "uts"), ("user", "pid")
"""Namespaces that a copy enters, and those that it cannot: what is called in others than these is started really."""
_CALLED = """
import _signal, _socket, os, struct, sys

if os.geteuid() or [os.stat(f"/proc/self/ns/{name}").st_ino for name in ALIKE] != INODES:
    os.execv(sys.executable, [sys.executable, "-P", "-m", "linkspan.cli.main", *sys.argv[1:]])
files = [0, 1, 2, *(os.open(path, os.O_RDONLY) for path in (".", *(f"/proc/self/ns/{name}" for name in SPACES)))]
words = [str(len(sys.argv)), *sys.argv, *(f"{name}={value}" for name, value in os.environ.items())]
asked = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
asked.connect(CALLS)
streams = struct.pack(f"{len(files)}i", *files)
asked.sendmsg([os.fsencode("\\0".join(words))], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, streams)])
for number in (_signal.SIGHUP, _signal.SIGINT, _signal.SIGTERM):
    _signal.signal(number, lambda number, _frame: asked.send(bytes([number])))
ended = asked.recv(1)
os._exit(ended[0] if ended else 1)
"""
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Path]:
    """Yield a program in a folder that is `linkspan` while the block lasts. It needs root."""
    prepare()
    program, place = folder / "linkspan", folder / "calls"
    inodes = [Path("/proc/self/ns", name).stat().st_ino for name in _ALIKE]
    known = {"SPACES": _SPACES, "ALIKE": _ALIKE, "INODES": inodes, "CALLS": str(place)}
    lines = [f"#!{sys.executable} -IS", *(f"{name} = {value!r}" for name, value in known.items())]
    program.write_text("\n".join(lines) + _CALLED)
    program.chmod(0o755)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as calls:
        calls.bind(str(place))
        calls.listen(64)
        pid = os.fork()
        if not pid:
            copies.lived(lambda: _serve(calls))
    try:
        yield program
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _serve(calls: socket.socket) -> NoReturn:
    """Make a copy for each call; what the caller sends later are signals, and its end is one."""
    ready, running = selectors.DefaultSelector(), dict[int, tuple[int, socket.socket]]()
    ready.register(calls, selectors.EVENT_READ)
    while True:
        for key, _ in ready.select():
            if key.fileobj is calls:
                caller = calls.accept()[0]
                pid = _begun(caller)
                watched = os.pidfd_open(pid)
                running[watched] = pid, caller
                ready.register(watched, selectors.EVENT_READ)
                ready.register(caller, selectors.EVENT_READ, watched)
            elif (found := running.get(key.fd)) is not None:
                pid, caller = found
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with contextlib.suppress(OSError):
                    caller.send(bytes([code if code >= 0 else 128 - code]))
                for one in (key.fd, caller):
                    with contextlib.suppress(KeyError):
                        ready.unregister(one)
                caller.close()
                os.close(key.fd)
                del running[key.fd]
            elif key.data in running:
                pid, caller = running[key.data]
                number = caller.recv(1)
                os.kill(pid, number[0] if number else signal.SIGKILL)
                if not number:
                    ready.unregister(caller)


def _begun(caller: socket.socket) -> int:
    """Begin what a caller wants, and return its pid."""
    given, files, _, _ = socket.recv_fds(caller, 1 << 20, 3 + 1 + len(_SPACES))
    if not (pid := os.fork()):
        count, *words = os.fsdecode(given).split("\0")
        sys.argv, variables = words[: int(count)], words[int(count) :]
        env = dict(one.split("=", 1) for one in variables)
        streams, here, spaces = files[:3], files[3], files[4:]
        for space in spaces:
            if _libc.setns(space, 0):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        os.fchdir(here)
        for number, file in enumerate(streams):
            os.dup2(file, number)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        processes.start, agent_start.begin = copies.start_of_lab, copies.start_by_command
        copies.lived(lambda: copies.run(main, sys.argv, env))
    for file in files:
        os.close(file)
    return pid
