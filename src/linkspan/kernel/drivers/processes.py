"""Helper programs that outlive the agent.

A process is ours by ``LINKSPAN_PROCESS=STATE_DIR:NAME`` in its environment, and beside it stands the whole
state that it was started with: so an agent with no memory knows everything of what runs, and there is no pid
file to lie. Its children inherit the environment, but each helper leads a session of its own (setsid), and
only a leader counts. A helper must therefore stay in the foreground.

**Files.** A helper has ``loaded`` a file where the digest taken when it was last started or told to reload is
the file's digest now. Observed ``files`` are those that are loaded: a changed file makes the observed state
differ from the desired one, and the next pass reloads, once for any number of files, and also where the
agent was killed between writing a file and reloading. The digests are in STATE_DIR/processes.json, with the
process's start time; where that is lost, the cost is one reload too many.

**Falls.** A helper that died is started again at once, with ``again`` after its argv, up to four times; one that dies
over and over, each time within STEADY of its start, waits twice as long each time, and the reason is told.

**Deaths.** ``fileno()`` is readable when a helper has died, and ``died()`` takes the news; both may be used
from another thread. (It is an epoll of pidfds: a reader of single pidfds would have to follow every restart.)
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from linkspan.core.contracts import Support
from linkspan.core.errors import KernelError, LinkspanError, NotFound, Unavailable, of_errno
from linkspan.core.kinds import Event, Kind, Sort
from linkspan.core.shell import Shell
from linkspan.core.states.host import HOST, Key, State
from linkspan.core.states.programs import Process
from linkspan.kernel.drivers.files import digests
from linkspan.kernel.io.durable_files import Memory, boot_id
from linkspan.kernel.local_host import LocalHost
from linkspan.kernel.probe import dnsmasq

OWNER = "LINKSPAN_PROCESS"
STATE = "LINKSPAN_STATE"
BIRTH = 0.05
"""Seconds after which a start counts as one: a helper that refuses its configuration is gone within 20 ms."""
RELOAD = 2.0
"""Seconds that a reload command is waited for, once: attaches wait as well."""
LOG_LIMIT = 1 << 20
"""Bytes of output kept: a log past it is begun anew at the next start."""
STEADY = 10.0
"""Seconds after which a helper counts as well."""
LONGEST_WAIT = 30.0
"""Seconds between two starts of one that never gets well."""


class _Loaded(msgspec.Struct):
    started: int
    digests: dict[str, str]


class _Running(msgspec.Struct):
    pid: int
    pidfd: int
    started: int
    state: Process

    @property
    def since(self) -> float:
        """When it started, in seconds after boot."""
        return self.started / os.sysconf("SC_CLK_TCK")

    def alive(self) -> bool:
        """Tell whether it lives; a zombie does not: its pidfd is readable though nobody has reaped it."""
        return not self.wait(0)

    def wait(self, seconds: float) -> bool:
        """Wait for the end; tell whether it came."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(seconds * 1000))


class _Reload(msgspec.Struct):
    command: subprocess.Popen[bytes]
    digests: dict[str, str]


class _Falls(msgspec.Struct):
    """A series of deaths; times are seconds since boot. ``until`` is when the next start may be.

    One without a death is of a helper that was not there when it was looked for.
    """

    first: float
    count: int = 0
    until: float = 0.0


class ProcessDriver:
    """Starts, reloads, adopts and stops helper programs."""

    def __init__(self, state_dir: Path, grace: float = 5.0) -> None:
        """``grace`` is how many seconds a helper has to end after SIGTERM."""
        self._dir = state_dir
        self._grace = grace
        self._loaded: Memory[_Loaded] = Memory(
            state_dir / "processes.json", _Loaded, boot_id(), precious=False
        )
        self._falls: dict[str, _Falls] = {}
        self._running: dict[str, _Running] | None = None
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._reloads: dict[str, _Reload] = {}
        self._deaths = select.epoll()

    def probe(self) -> Support:
        """Whether the kernel has pidfds (Linux 5.3)."""
        if not hasattr(os, "pidfd_open"):
            return Support("", "no pidfd: Linux 5.3 is needed")
        return Support("kernel")

    def fileno(self) -> int:
        """Return a descriptor that is readable once a helper has died."""
        return self._deaths.fileno()

    def died(self) -> bool:
        """Tell whether any helper died since the last call; the descriptor is quiet afterwards."""
        return bool(self._deaths.poll(0))

    def close(self) -> None:
        """Close the descriptors; the helpers go on."""
        for name in list(self._running or ()):
            self._drop(name)
        self._deaths.close()

    def down(self, name: str) -> float | None:
        """Return for how many seconds a helper has not been well, None where it lives."""
        if name in self._living():
            return None
        return _now() - self._falls.setdefault(name, _Falls(_now())).first

    def pid(self, name: str) -> int:
        """Return a helper's process, 0 where it does not live."""
        running = self._living().get(name)
        return running.pid if running else 0

    def log(self, name: str) -> Path:
        """Return where a helper's output goes."""
        return self._dir / f"{name}.log"

    def observe(self, netns: int) -> Iterable[State]:
        """Yield the helpers that live; in ``files`` only those that they have loaded as they are now."""
        if netns != HOST:
            return []
        return [self._observed(r) for r in self._living().values()]

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Start, restart or reload, then stop."""
        errors: dict[Key, LinkspanError] = {}
        for states, act in ((put, self._put), (delete, self._delete)):
            for state in states:
                assert isinstance(state, Process)
                try:
                    act(state)
                except LinkspanError as error:
                    errors[state.key] = error
        return errors

    # ---- what runs

    def _living(self) -> dict[str, _Running]:
        """Return what lives by name. The processes are searched once: afterwards only we start any."""
        if self._running is None:
            self._running = {}
            for pid, state in self._found():
                with contextlib.suppress(OSError):
                    self._watch(pid, state)
        for name, running in list(self._running.items()):
            if not running.alive():
                self._fell(running)
                self._drop(name)
        for pid, child in list(self._children.items()):
            if child.poll() is not None:  # reaps it
                del self._children[pid]
        return self._running

    def _fell(self, running: _Running) -> None:
        falls = self._falls.get(running.state.name)
        if falls is None or not falls.count or _now() - running.since >= STEADY:
            falls = self._falls[running.state.name] = _Falls(_now())
        falls.count += 1
        falls.until = _now() + (min(2.0 ** (falls.count - 5), LONGEST_WAIT) if falls.count > 4 else 0.0)

    def _found(self) -> Iterator[tuple[int, Process]]:
        """Yield the leaders among the processes that carry our mark, with what they were started as."""
        for pid, environment in self._marked():
            with contextlib.suppress(OSError, msgspec.MsgspecError, KeyError):
                if os.getsid(pid) == pid:
                    yield pid, msgspec.json.decode(environment[STATE], type=Process)

    def _marked(self) -> Iterator[tuple[int, dict[str, bytes]]]:
        prefix = f"{self._dir}:".encode()
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                raw = (folder / "environ").read_bytes()
                if OWNER.encode() in raw:
                    pairs = (item.partition(b"=") for item in raw.split(b"\0"))
                    environment = {name.decode(errors="replace"): value for name, _, value in pairs}
                    if environment.get(OWNER, b"").startswith(prefix) and _at_home(folder):
                        yield int(folder.name), environment

    def _watch(self, pid: int, state: Process) -> _Running:
        pidfd = os.pidfd_open(pid)
        running = _Running(pid, pidfd, _start_time(pid), state)
        assert self._running is not None
        self._running[state.name] = running
        self._deaths.register(pidfd, select.EPOLLIN | select.EPOLLONESHOT)
        return running

    def _drop(self, name: str) -> None:
        assert self._running is not None
        os.close(self._running.pop(name).pidfd)  # which takes it out of the epoll, too
        if begun := self._reloads.pop(name, None):
            begun.command.kill()
            begun.command.wait()

    def _observed(self, running: _Running) -> Process:
        state = running.state
        loaded = self._loaded.entries.get(state.name)
        if not state.files or loaded is None or loaded.started != running.started:
            return msgspec.structs.replace(state, files=())
        now = digests(state.files)
        same = tuple(f for f in state.files if loaded.digests.get(f) == now[f])
        return msgspec.structs.replace(state, files=same)

    # ---- changes

    def _put(self, state: Process) -> None:
        running = self._living().get(state.name)
        if running is not None and running.state == state:
            observed = self._observed(running)
            if observed == state:
                return
            if state.reload:
                self._reload(state, running)
                return
            if state.hup:
                self._hang_up(state, running)
                return
        if running is not None:
            self._stop(running)
        else:
            self._refuse_haste(state.name)
            self._sweep(state.name)
        self._start(state)

    def _refuse_haste(self, name: str) -> None:
        """Raise Unavailable where a helper died so often that its next start has to wait."""
        falls = self._falls.get(name)
        if falls is not None and (wait := falls.until - _now()) > 0:
            raise Unavailable(
                f"{name} ended {falls.count} times soon after its start, and waits {wait:.0f} s for the next one: "
                f"{_tail(self.log(name))}",
                f"its output is in {self.log(name)}",
            )

    def _delete(self, state: Process) -> None:
        if running := self._living().get(state.name):
            self._stop(running)
        self._falls.pop(state.name, None)
        self.log(state.name).unlink(missing_ok=True)
        if self._loaded.entries.pop(state.name, None):
            self._loaded.save()

    def _start(self, state: Process) -> None:
        files = digests(state.files)  # before it reads them: a file that changes now is found changed later
        environment = {
            **os.environ,
            OWNER: f"{self._dir}:{state.name}",
            STATE: msgspec.json.encode(state).decode(),
        }
        log = self.log(state.name)
        argv = (*state.argv, *(state.again if state.name in self._loaded.entries else ()))
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as output:
                if output.tell() > LOG_LIMIT:
                    output.truncate(0)
                child = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd="/",
                    env=environment,
                    start_new_session=True,
                )
        except FileNotFoundError as error:
            what = f"start {state.name}: {state.argv[0]} is not there"
            raise NotFound(what, "is its package installed?") from error
        except OSError as error:
            raise of_errno(error.errno or 0, f"start {state.name} ({state.argv[0]})") from error
        self._children[child.pid] = child
        running = self._watch(child.pid, state)
        if running.wait(BIRTH):
            self._living()
            raise Unavailable(f"{state.name} ended at once: {_tail(log)}", f"its output is in {log}")
        self._loaded.entries[state.name] = _Loaded(running.started, files)
        self._loaded.save()

    def _hang_up(self, state: Process, running: _Running) -> None:
        files = digests(state.files)
        signal.pidfd_send_signal(running.pidfd, signal.SIGHUP)
        # Not saved: it happens often, and an agent that does not know it sends one signal too many.
        self._loaded.entries[state.name] = _Loaded(running.started, files)

    def _reload(self, state: Process, running: _Running) -> None:
        """Reload; a command that takes long is left running, and its end is taken when it is next asked for."""
        if begun := self._reloads.get(state.name):
            self._reloaded(state, running, begun, 0)
            if self._observed(running) == state:
                return
        files = digests(state.files)
        try:
            with self.log(state.name).open("ab") as output:
                command = subprocess.Popen(
                    state.reload, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd="/"
                )
        except OSError as error:
            raise of_errno(error.errno or 0, f"reload {state.name} ({state.reload[0]})") from error
        self._reloads[state.name] = _Reload(command, files)
        self._reloaded(state, running, self._reloads[state.name], RELOAD)

    def _reloaded(self, state: Process, running: _Running, begun: _Reload, seconds: float) -> None:
        log = self.log(state.name)
        try:
            code = begun.command.wait(seconds)
        except subprocess.TimeoutExpired as error:
            what = f"reload {state.name}: {state.reload[0]} has had no answer yet: {_tail(log)}"
            raise Unavailable(what, f"does process {running.pid} hang? output is in {log}") from error
        del self._reloads[state.name]
        if code:
            what = f"reload {state.name}: {state.reload[0]} ended with status {code}: {_tail(log)}"
            raise Unavailable(what, f"its output is in {log}")
        self._loaded.entries[state.name] = _Loaded(running.started, begun.digests)
        self._loaded.save()

    def _stop(self, running: _Running) -> None:
        """End it and what it started: SIGTERM, a bounded wait, SIGKILL. Raises KernelError where it stays."""
        name = running.state.name
        for number, seconds in ((signal.SIGTERM, self._grace), (signal.SIGKILL, self._grace)):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(running.pidfd, number)
            if running.wait(seconds):
                break
        else:
            raise KernelError(f"stop {name}: process {running.pid} does not end even after SIGKILL")
        self._drop(name)
        self._sweep(name)
        self._living()

    def _sweep(self, name: str) -> None:
        """End the children that a dead leader left behind."""
        mark = f"{self._dir}:{name}".encode()
        for pid, environment in self._marked():
            if environment[OWNER] == mark:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _at_home(folder: Path) -> bool:
    """Tell whether a process is of our users and network namespace: anybody may bear a mark, users and containers."""
    here = Path("/proc/thread-self/ns/net")
    return folder.stat().st_uid in (os.geteuid(), dnsmasq.uid()) and (folder / "ns/net").samefile(here)


def _start_time(pid: int) -> int:
    """Return when the process started, in clock ticks after boot (proc(5), field 22 of stat)."""
    text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    return int(text.rpartition(")")[2].split()[19])


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _tail(log: Path) -> str:
    """Return the last words of a log, for an error."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-3:] if log.exists() else []
    return " / ".join(line.strip() for line in lines)[-300:] or "it said nothing"


def driver(host: LocalHost) -> ProcessDriver:
    """Return the driver of helper programs."""
    return ProcessDriver(host.state_dir)


def _start(state: Process, _shell: Shell) -> tuple[str, ...]:
    return (f"setsid --fork {shlex.join(state.argv)} </dev/null",)


KINDS = (
    Kind(
        state=Process,
        rank=71,
        driver=driver,
        known_by="LINKSPAN_PROCESS in its environment, where it is of our user or of dnsmasq's",
        purpose="a helper program that outlives the agent",
        sort=Sort.PROGRAM,
        commands=_start,
        events=frozenset({Event.HELPER}),
        counted=False,
    ),
)
