"""Replay of command lines in shells of a sandbox, as they were typed: each shell is a window.

A line runs at least until the next one was typed. If that one is of another window, the line may go on, as a server
does in a window of its own. ^C ends it when its own window gets a line, which nobody could type while it ran, and a
signal ends a pager, which ignores ^C.
"""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import time
from collections.abc import Iterator, Mapping, Sequence

from linkspan.core.errors import LinkspanError
from linkspan.learn.sandbox import NEXT, RUN, Sandbox, limits
from linkspan.learn.terminal import become

LONGEST = 20.0
"""Seconds for one line: whoever thinks after a command makes its time longer than it took."""
_MORE = 3.0
"""Seconds besides the time that a line took: this machine may be slower."""
_SPARE = 120.0
"""Seconds for all lines of a lesson besides twice their time: this machine may be slower, and busy."""
_ENDING = 10.0
"""Seconds for a program to end after ^C: one that waits for the kernel's lock of all links hears nothing meanwhile."""
_AT_ONCE = 0.1
"""Seconds to see that a line has ended already."""
_READY = 30.0
"""Seconds for a shell to start, on a busy machine."""
SHELLS = 16
"""Shells of one lesson, at most: a student has some windows."""
_FD = 9
"""Descriptor by which a shell says that it waits for the next line."""
_OURS = re.compile(
    r"\s*(?:(?:sudo\s+)?(?:linkspan\s+)?learn(?>(?:\s[^;&|<>()`\n]*)?)|(?:exit|logout|next)(?>(?:\s+\d*)?))[\s;]*"
)
"""Lines that are no part of the work: they only ask linkspan, or end the shell."""
_RC = f"""PS1=; PROMPT_COMMAND='echo >&{_FD}'; HISTFILE=; set +H
learn() {{ :; }}
linkspan() {{ :; }}
next() {{ exit {NEXT}; }}
__as_typed() {{ return $__status; }}
trap '__status=$? __last=$_ PROMPT_COMMAND="echo >&{_FD}"' RETURN
"""
"""For bash: each line runs from a file, and the trap keeps what the next one finds in `$?` and `$_` at its end.

A line may have set another PROMPT_COMMAND. Other lines ask linkspan among the rest, and it has nothing to say here.
"""


@contextlib.contextmanager
def typed(box: Sandbox, lines: Sequence[tuple[float, int, str]], end: float, slower: int = 1) -> Iterator[None]:
    """Type lines, each of which is (seconds when it was typed, number of its shell, text), in their order.

    ``end``: the seconds at which the last one was over. ``slower``: how many times as slow this machine may be. Lines
    that have not ended then continue. Raises LinkspanError if a line does not end even by a signal, or if all together
    take much longer than they did.
    """
    if len({shell for _, shell, _ in lines}) > SHELLS:
        raise LinkspanError(f"its lines are of more than {SHELLS} shells")
    deadline = time.monotonic() + 2 * end + slower * _SPARE
    wanted = sorted(work(lines), key=lambda one: one[0])
    nexts = [*(at for at, _, _ in wanted), end][1:]
    shells: dict[int, _Shell] = {}
    try:
        for number, ((at, shell, line), following) in enumerate(zip(wanted, nexts, strict=True), 1):
            if time.monotonic() > deadline:
                raise LinkspanError("its lines take much longer than they did")
            if shell in shells:
                shells[shell].free(at, slower)
                if shells[shell].ended:
                    shells.pop(shell).close()
            if shell not in shells:
                shells[shell] = _Shell(box, shells)
            file = f"{RUN}/replayed-{number}"
            box.write(file, line)
            shells[shell].run(file, at, min(max(following - at, 0.0) + slower * _MORE, LONGEST))
        yield
    finally:
        for one in shells.values():
            one.close()


def work(lines: Sequence[tuple[float, int, str]]) -> list[tuple[float, int, str]]:
    """Return the lines that work on the lesson: without those that ask linkspan or end the shell."""
    return [one for one in lines if not _OURS.fullmatch(one[2])]


class _Shell:
    """An interactive bash behind a pseudo-terminal, whose output nobody reads."""

    def __init__(self, box: Sandbox, beside: Mapping[int, _Shell]) -> None:
        """``beside``: the shells of the other windows, whose output is not to keep their programs waiting."""
        box.write(f"{RUN}/replay-rc", _RC)
        argv = [*limits(), *box.entering(), "bash", "--noediting", "--rcfile", f"{RUN}/replay-rc", "-i"]
        environment = box.environment()
        self.ended = False
        self._beside = beside
        self._busy = True
        self._at = self._begun = 0.0
        self._waits, waiting = os.pipe()
        self._pid, self.master = pty.fork()
        if not self._pid:
            try:
                os.dup2(waiting, _FD)
                os.set_inheritable(_FD, True)
                become(argv, environment, _FD)
            finally:
                os._exit(127)
        os.close(waiting)
        os.set_blocking(self.master, False)  # a line may make this shell look free that reads nothing any more
        if not self._await(_READY):
            self.close()
            raise LinkspanError("no shell starts in the sandbox")

    def run(self, file: str, at: float, seconds: float) -> None:
        """Run the file of a line that was typed at ``at``, and wait ``seconds`` for its end; the shell is free."""
        self._busy, self._at, self._begun = True, at, time.monotonic()
        self._type(f'. {file}; __as_typed "$__last"\n')
        self._await(seconds)

    def free(self, at: float, slower: int) -> None:
        """Wait for the end of a line that runs as long as it could until ``at``, and interrupt it then."""
        due = self._begun + min(at - self._at + slower * _MORE, LONGEST)
        ending = slower * _ENDING
        for key, more in (("", max(due - time.monotonic(), _AT_ONCE)), ("\x03", ending), ("\x1c", ending)):
            if not self._busy or self.ended:
                return
            self._type(key)
            self._await(more)
        if self._busy and not self.ended:
            with contextlib.suppress(OSError):  # it has ended now
                if (group := os.tcgetpgrp(self.master)) > 0:
                    os.killpg(group, signal.SIGKILL)  # a pager and an editor ignore both keys
            self._await(ending)
        if self._busy and not self.ended:
            raise LinkspanError("a command does not end")

    def _type(self, text: str) -> None:
        data = text.encode()
        with contextlib.suppress(OSError):  # EIO: the shell has ended; EAGAIN: it reads nothing
            if os.write(self.master, data) == len(data):
                return
        self.ended = True

    def _await(self, seconds: float) -> bool:
        """Wait until the shell waits for a line; return whether it does in time."""
        end = time.monotonic() + seconds
        while not self.ended and (left := end - time.monotonic()) > 0:
            others = {one.master: one for one in (self, *self._beside.values()) if not one.ended}
            ready, _, _ = select.select([*others, self._waits], [], [], left)
            for master in ready:
                if master in others:
                    others[master].drain()
            if self._waits in ready and not self.ended:
                self.ended = not os.read(self._waits, 65536)
                self._busy = False
                return not self.ended
        return False

    def drain(self) -> None:
        """Take what the shell and its programs have written."""
        try:
            self.ended = not os.read(self.master, 65536)
        except BlockingIOError:  # the hang-up that was seen is over: a program has opened the terminal again
            return
        except OSError:  # EIO: the shell has ended
            self.ended = True

    def close(self) -> None:
        """End the shell."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self.master)
        os.close(self._waits)
