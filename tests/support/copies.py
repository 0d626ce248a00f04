"""Programs of linkspan in processes that begin as copies of the test's: without Python's start and all its imports.

These would be half of what a whole run costs. What is left out here has tests with a real start of their own
(tests/lab/test_lab.py and tests/agent/test_start_errors.py, for example). Agents are copies only beside other tests: a
test that has the machine to itself, or is run by itself, starts them as users do.
"""

from __future__ import annotations

import ctypes
import faulthandler
import functools
import gc
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import _bootstrap
from pathlib import Path
from typing import NoReturn

from linkspan import daemon
from linkspan.cli import agent_start
from linkspan.core.own_command import own_command
from linkspan.lab import processes
from support.polling import SHARED

_CLONE_NEWUTS, _CLONE_NEWNET = 0x04000000, 0x40000000
_PR_SET_MM, _PR_SET_MM_MAP = 35, 14
_FIELDS = (26, 27, 45, 46, 47, 28, 48, 49, 50, 51)
"""Those of proc_pid_stat(5), in the order of struct prctl_mm_map (linux/prctl.h), but for the end of the heap."""
_BRK, _ARGUMENTS, _ENVIRONMENT = 5, 7, 9
"""Places in that struct: the end of the heap, and where the arguments and the environment begin; their ends follow."""
_libc = ctypes.CDLL(None, use_errno=True)
_libc.sbrk.restype = ctypes.c_size_t
_shown: dict[int, ctypes.Array[ctypes.c_char]] = {}
"""Texts that /proc shows of this process, by their place there."""


def lived(program: Callable[[], None]) -> NoReturn:
    """Run a program's main function in a copy, and end as Python does: the copy does not go on with the tests."""
    code = 1
    gc.freeze()  # nobody collects what the tests have, which would copy all of it
    try:
        # A copy of a copy must not close the file that its own takes the number of.
        sys.stdin, sys.stdout, sys.stderr = (open(n, mode, 1, closefd=False) for n, mode in enumerate("rww"))  # noqa: SIM115
        program()
        code = 0
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException:  # noqa: BLE001 - as Python itself ends
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def agent(
    netns: str,
    hostname: str,
    command: Sequence[str],
    env: Mapping[str, str],
    program: Callable[[], None] = daemon.main,
) -> Callable[[], None] | None:
    """Return what makes a new process a host's agent, for Popen's ``preexec_fn``; None if it is to be started really.

    It is in the namespace ``netns``, and on a machine called ``hostname``; '' stands for this process's. /proc shows
    ``command`` and ``env``, and ``program`` is what they would run. Another version's agent, and one for which this
    process lacks the rights, is started really.
    """
    if SHARED == 1 or "PYTHONPATH" in env or os.geteuid() != 0 or not _can_show():
        return None

    def become() -> NoReturn:
        enter(netns, hostname)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # the last moment for an error that Popen raises
        lived(lambda: run(program, command, env))

    return become


def enter(netns: str, hostname: str) -> None:
    """Move this process into a namespace, and to a machine of this name, if they are not ''."""
    if netns:
        there = os.open(f"/run/netns/{netns}", os.O_RDONLY)
        _succeeds(_libc.setns(there, _CLONE_NEWNET))
    if hostname:
        _succeeds(_libc.unshare(_CLONE_NEWUTS))
        socket.sethostname(hostname)


def run(program: Callable[[], None], command: Sequence[str], env: Mapping[str, str]) -> None:
    """Run a program's main function with an environment, as Python begins it; /proc shows ``command`` and ``env``."""
    _show(command, env)
    os.environ.clear()
    os.environ.update(env)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_IGN)  # as Python begins
    logging.root.handlers.clear()
    gc.enable()  # Popen disables it in the copy
    faulthandler.disable()  # pytest's would write to a file that is another one here
    forget_unfinished_imports()
    program()


def forget_unfinished_imports() -> None:
    """Forget modules that another thread was importing: this copy lacks that thread, and would wait for it for ever."""
    vars(_bootstrap)["_module_locks"].clear()
    for name, module in list(sys.modules.items()):
        if getattr(getattr(module, "__spec__", None), "_initializing", False):
            del sys.modules[name]


def _show(command: Sequence[str], env: Mapping[str, str]) -> None:
    """Let /proc show this command line and this environment for this process: a lab finds its own processes by them."""
    variables = [f"{name}={value}" for name, value in env.items()]
    for first, words in ((_ARGUMENTS, command), (_ENVIRONMENT, variables)):
        text = ctypes.create_string_buffer(b"".join(os.fsencode(word) + b"\0" for word in words))
        _shown[first] = text
    _succeeds(_set_map())


def _set_map() -> int:
    """Set what /proc shows of this process's memory: all as it is, but for what is in ``_shown``."""
    stat = ["", "", *Path("/proc/self/stat").read_text().rpartition(")")[2].split()]
    places = [int(stat[field - 1]) for field in _FIELDS]
    places.insert(_BRK, _libc.sbrk(0))
    for first, text in _shown.items():
        places[first : first + 2] = [ctypes.addressof(text), ctypes.addressof(text) + len(text) - 1]
    given = struct.pack("=11QQIi", *places, 0, 0, -1)
    return int(_libc.prctl(_PR_SET_MM, _PR_SET_MM_MAP, given, ctypes.c_ulong(len(given)), ctypes.c_ulong(0)))


@functools.cache
def _can_show() -> bool:
    """Return whether the kernel lets a process set what /proc shows of it (CONFIG_CHECKPOINT_RESTORE)."""
    return _set_map() == 0


def _succeeds(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def start_of_lab(
    netns: str, hostname: str, argv: Sequence[str], env: dict[str, str], log: Path
) -> subprocess.Popen[bytes]:
    """Start a lab's process as ``processes.start`` does, but an agent as a copy."""
    copy = agent(netns, hostname, argv, env) if argv == own_command("linkspan.daemon") else None
    if copy is None:
        return _really(netns, hostname, argv, env, log)
    sys.stdout.flush()  # else the copy says it too
    sys.stderr.flush()
    with log.with_suffix(".out").open("wb") as out, log.with_suffix(".log").open("ab") as errors:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=errors,
            cwd="/",
            start_new_session=True,
            preexec_fn=copy,
        )


def start_by_command(
    command: Sequence[str], environment: Mapping[str, str], file: Path, first: Callable[[], None] | None = None
) -> subprocess.Popen[bytes]:
    """Start an agent as ``agent_start.begin`` does, but as a copy."""
    sys.stdout.flush()  # else the copy says it too
    sys.stderr.flush()
    return _begun(command, environment, file, first or agent("", "", command, environment))


_really, _begun = processes.start, agent_start.begin
