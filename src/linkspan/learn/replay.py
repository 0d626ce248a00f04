"""Replay of command lines in shells of a sandbox, as they were typed, with ^C for what does not end."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import shlex
import signal
import time
from collections.abc import Sequence

from linkspan.core.errors import LinkspanError
from linkspan.learn.sandbox import RUN, Sandbox
from linkspan.learn.terminal import become

LONGEST = 20.0
"""Seconds for one line: whoever thinks after a command makes its time longer than it took."""
_MORE = 3.0
"""Seconds besides the time that a line took: this machine may be slower."""
_SPARE = 120.0
"""Seconds for all lines of a lesson besides twice their time: this machine may be slower, and busy."""
_ENDING = 10.0
"""Seconds for a program to end after ^C: one that waits for the kernel's lock of all links hears nothing meanwhile."""
_READY = 30.0
"""Seconds for a shell to start, on a busy machine."""
SHELLS = 16
"""Shells of one lesson, at most: a student has some windows."""
_FD = 9
"""Descriptor by which a shell says that it waits for the next line."""
_OURS = re.compile(r"\s*(sudo\s+)?((linkspan\s+)?learn|exit|logout|next)\b")
"""Lines that are no part of the work: they ask linkspan, or end the shell."""
_RC = f"PS1=; PROMPT_COMMAND='echo >&{_FD}'; HISTFILE=; set +H"


def typed(box: Sandbox, lines: Sequence[tuple[float, int, str]], end: float, slower: int = 1) -> None:
    """Type lines, each of which is (seconds when it was typed, number of its shell, text), in their order.

    ``end``: the seconds at which the last one was over. ``slower``: how many times as slow this machine may be. Raises
    LinkspanError if a line does not end even by ^C, or if all together take much longer than they did.
    """
    if len({shell for _, shell, _ in lines}) > SHELLS:
        raise LinkspanError(f"its lines are of more than {SHELLS} shells")
    deadline = time.monotonic() + 2 * end + slower * _SPARE
    wanted = work(lines)
    nexts = [*(at for at, _, _ in wanted), end][1:]
    shells: dict[int, _Shell] = {}
    try:
        for number, ((at, shell, line), following) in enumerate(zip(wanted, nexts, strict=True), 1):
            if time.monotonic() > deadline:
                raise LinkspanError("its lines take much longer than they did")
            if shell not in shells or shells[shell].ended:
                shells[shell] = _Shell(box)
            file = f"{RUN}/replayed-{number}"
            box.script(f"printf '%s\\n' {shlex.quote(line)} > {file}")
            shells[shell].run(file, min(max(following - at, 0.0) + slower * _MORE, LONGEST), slower * _ENDING)
    finally:
        for one in shells.values():
            one.close()


def work(lines: Sequence[tuple[float, int, str]]) -> list[tuple[float, int, str]]:
    """Return the lines that work on the lesson: without those that ask linkspan or end the shell."""
    return [one for one in lines if not _OURS.match(one[2])]


class _Shell:
    """An interactive bash behind a pseudo-terminal, whose output nobody reads."""

    def __init__(self, box: Sandbox) -> None:
        box.script(f"printf '%s\\n' {shlex.quote(_RC)} > {RUN}/replay-rc")
        argv = [*box.entering(), "bash", "--noediting", "--rcfile", f"{RUN}/replay-rc", "-i"]
        environment = box.environment()
        self.ended = False
        self._waits, waiting = os.pipe()
        self._pid, self._master = pty.fork()
        if not self._pid:
            try:
                os.dup2(waiting, _FD)
                os.set_inheritable(_FD, True)
                become(argv, environment)
            finally:
                os._exit(127)
        os.close(waiting)
        if not self._await(_READY):
            self.close()
            raise LinkspanError("no shell starts in the sandbox")

    def run(self, file: str, seconds: float, ending: float) -> None:
        """Run a file in this shell; interrupt it after some seconds, and wait ``ending`` for its end."""
        os.write(self._master, f". {file}\n".encode())
        for key, more in (("", seconds), ("\x03", ending), ("\x1c", ending)):
            os.write(self._master, key.encode())
            if self._await(more) or self.ended:
                return
        raise LinkspanError("a command does not end")

    def _await(self, seconds: float) -> bool:
        """Wait until the shell waits for a line; return whether it does in time."""
        end = time.monotonic() + seconds
        while not self.ended and (left := end - time.monotonic()) > 0:
            ready, _, _ = select.select([self._master, self._waits], [], [], left)
            if self._master in ready:
                try:
                    self.ended = not os.read(self._master, 65536)
                except OSError:  # EIO: the shell has ended
                    self.ended = True
            elif self._waits in ready:
                self.ended = not os.read(self._waits, 65536)
                return not self.ended
        return False

    def close(self) -> None:
        """End the shell."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._master)
        os.close(self._waits)
