"""The reader's shell behind a pseudo-terminal: what the watcher finds is printed above the line being typed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import queue
import select
import signal
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

REDRAW = b"\x1b[5577~"
"""The key that the sandbox's bashrc binds to redraw-current-line."""
_SIZE = 4096


def become(argv: Sequence[str], environment: Mapping[str, str], keep: int = -1) -> NoReturn:
    """Replace this process by a program that ^C ends, also if a script started linkspan in the background.

    Such a script's programs ignore both signals, and a shell cannot change that for its own commands. Python ignores
    two others, so that `ping HOST | head -1` would not end.

    What else was open in the shell that started linkspan (`exec 7<FOLDER`) would lead out of a sandbox: the program
    gets only its terminal and the descriptor ``keep``.
    """
    for fd in [int(one.name) for one in Path("/proc/self/fd").iterdir()]:
        if fd not in (0, 1, 2, keep):
            with contextlib.suppress(OSError):  # the one of the list is closed already
                os.set_inheritable(fd, False)
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    os.execvpe(argv[0], list(argv), dict(environment))  # noqa: S606 - no shell is meant


def run(
    argv: Sequence[str],
    environment: Mapping[str, str],
    look: Callable[[], str],
    pause: float,
    lost: Callable[[Exception], str],
) -> int:
    """Run a shell until it ends, and return its exit code. Needs a terminal as stdin.

    ``look`` is called every ``pause`` seconds in a thread of its own; what it returns is printed. It ends the looking
    by an exception. Then the text that ``lost`` makes of it is printed, and the shell goes on.
    """
    pid, master = pty.fork()
    if not pid:
        become(argv, environment)
    told: queue.SimpleQueue[str] = queue.SimpleQueue()
    waking, wake = os.pipe()
    ended = threading.Event()

    def watch() -> None:
        try:
            while not ended.wait(pause):
                if text := look():
                    told.put(text)
                    os.write(wake, b".")
        except Exception as error:  # noqa: BLE001 - whatever it is, the reader goes on without it
            if not ended.wait(pause):  # if the sandbox is gone, the shell ends, too
                told.put(lost(error))
                os.write(wake, b".")

    watching = threading.Thread(target=watch, daemon=True)
    try:
        with _raw(master):
            watching.start()
            _carry(pid, master, waking, told)
    finally:
        ended.set()
        watching.join(10)
        _, status = os.waitpid(pid, 0)
        for fd in (master, waking, wake):
            os.close(fd)
    return os.waitstatus_to_exitcode(status)


@contextlib.contextmanager
def _raw(master: int) -> Iterator[None]:
    """Pass every key on as it is typed, and the window's size whenever it changes."""

    def resized(*_: object) -> None:
        with contextlib.suppress(OSError):
            size = fcntl.ioctl(sys.stdout.fileno(), termios.TIOCGWINSZ, bytes(8))
            fcntl.ioctl(master, termios.TIOCSWINSZ, size)

    kept = termios.tcgetattr(sys.stdin)
    before = signal.signal(signal.SIGWINCH, resized)
    try:
        resized()
        tty.setraw(sys.stdin, termios.TCSADRAIN)  # what was typed meanwhile stays
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, kept)
        signal.signal(signal.SIGWINCH, before)


def _carry(pid: int, master: int, waking: int, told: queue.SimpleQueue[str]) -> None:
    """Carry bytes between the terminal and the shell until the shell ends."""
    inputs = [master, waking, sys.stdin.fileno()]
    while True:
        ready, _, _ = select.select(inputs, [], [])
        if master in ready:
            try:
                output = os.read(master, _SIZE)
            except OSError:  # EIO: nobody has the other end any more
                return
            if not output:
                return
            _write(sys.stdout.fileno(), output)
        if waking in ready:
            os.read(waking, 1)
            text = told.get().replace("\n", "\r\n")
            _write(sys.stdout.fileno(), f"\r\x1b[K{text}\r\n".encode())
            if _at_prompt(pid, master):
                _write(master, REDRAW)
        if sys.stdin.fileno() in ready:
            typed = os.read(sys.stdin.fileno(), _SIZE)
            if typed:
                _write(master, typed)
            else:
                inputs.remove(sys.stdin.fileno())


def _at_prompt(pid: int, master: int) -> bool:
    """Return whether the shell itself reads the terminal: a program in the foreground would read the key as text."""
    with contextlib.suppress(OSError):
        shells = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return str(os.tcgetpgrp(master)) in shells
    return False


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
