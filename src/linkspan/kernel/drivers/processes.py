"""Helper processes that outlive the agent.

A process is ours by ``LINKSPAN_PROCESS=STATE_DIR:NAME`` in its environment, beside the whole state with which
it was started. So an agent with no memory knows everything about running helpers, and no pid file can be
wrong. Its children inherit the environment, but each helper leads a session of its own (setsid), and only a
leader counts. A helper must therefore stay in the foreground.

**Files.** A helper has ``loaded`` a file if the digest taken when it was last started or reloaded is the
file's digest now. Observed ``files`` are those that are loaded. A changed file makes the observed state
differ from the desired one, so the next pass reloads, once for any number of files, and also if the agent was
killed between writing a file and reloading. The digests are in STATE_DIR/processes.json, with the process's
start time; if that is lost, the cost is one superfluous reload.

**Falls.** A helper that died is started again at once, with ``again`` after its argv, up to four times. One
that keeps dying, each time within STEADY of its start, waits twice as long each time, and the reason is
reported.

**Deaths.** ``fileno()`` is readable when a helper has died, and ``died()`` consumes that; both may be used
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

from linkspan.core.driver_contract import Support
from linkspan.core.errors import KernelError, LinkspanError, NotFound, Unavailable, of_errno
from linkspan.core.kinds import Event, Kind, Sort
from linkspan.core.shell import Shell
from linkspan.core.states.host import HOST, Key, State
from linkspan.core.states.programs import Process
from linkspan.kernel.drivers.files import Digests
from linkspan.kernel.io.durable_files import Memory, boot_id
from linkspan.kernel.io.process_stat import started
from linkspan.kernel.local_host import LocalHost
from linkspan.kernel.probe import dnsmasq

OWNER = "LINKSPAN_PROCESS"
STATE = "LINKSPAN_STATE"
BIRTH = 0.05
"""Seconds after which a start counts as successful: a helper that refuses its configuration ends within 20 ms."""
RELOAD = 2.0
"""Seconds to wait for a reload command, once: attaches wait as well."""
LOG_LIMIT = 1 << 20
"""Largest log in bytes: a larger one is truncated at the next start."""
LOOKED_AT, TOLD = 20, 300
"""Last lines of a log that are looked at for an error, and characters of them that it quotes."""
SEVERE = ("error", "fatal", "panic")
"""Levels of a log of JSON that say why a helper ended."""
STEADY = 10.0
"""Seconds after which a helper counts as stable."""
LONGEST_WAIT = 30.0
"""Seconds between two starts of a helper that never becomes stable."""


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
        """Return when it started, in seconds after boot."""
        return self.started / os.sysconf("SC_CLK_TCK")

    def alive(self) -> bool:
        """Return whether it lives; a zombie does not: its pidfd is readable before anybody has reaped it."""
        return not self.wait(0)

    def wait(self, seconds: float) -> bool:
        """Wait for its end; return whether it ended."""
        return _ended(self.pidfd, seconds)


class _Reload(msgspec.Struct):
    command: subprocess.Popen[bytes]
    digests: dict[str, str]


class _Falls(msgspec.Struct):
    """A series of deaths; times are seconds since boot. ``until`` is the time of the next start.

    A series without a death is for a helper that was missing when it was looked for.
    """

    first: float
    count: int = 0
    until: float = 0.0


class ProcessDriver:
    """Starts, reloads, adopts and stops helper programs."""

    def __init__(self, state_dir: Path, grace: float = 5.0) -> None:
        """Take ``grace``, the seconds that a helper has to end after SIGTERM."""
        self._dir = state_dir
        self._grace = grace
        self._loaded: Memory[_Loaded] = Memory(
            state_dir / "processes.json", _Loaded, boot_id(), precious=False
        )
        self._digests = Digests()
        self._falls: dict[str, _Falls] = {}
        self._running: dict[str, _Running] | None = None
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._reloads: dict[str, _Reload] = {}
        self._deaths = select.epoll()

    def probe(self) -> Support:
        """Return whether the kernel has pidfds (Linux 5.3)."""
        if not hasattr(os, "pidfd_open"):
            return Support("", "no pidfd: Linux 5.3 is needed")
        return Support("kernel")

    def fileno(self) -> int:
        """Return a descriptor that is readable once a helper has died."""
        return self._deaths.fileno()

    def died(self) -> bool:
        """Return whether any helper died since the last call; the descriptor is quiet afterwards."""
        return bool(self._deaths.poll(0))

    def close(self) -> None:
        """Close the descriptors; the helpers keep running."""
        for name in list(self._running or ()):
            self._drop(name)
        self._deaths.close()

    def down(self, name: str) -> float | None:
        """Return for how many seconds a helper has been down, None if it lives."""
        if name in self._living():
            return None
        return _now() - self._falls.setdefault(name, _Falls(_now())).first

    def pid(self, name: str) -> int:
        """Return a helper's process id, 0 if it does not live."""
        running = self._living().get(name)
        return running.pid if running else 0

    def forgive(self, name: str) -> None:
        """Forget that a helper died often: what it died of is repaired, and its next start need not wait."""
        self._falls.pop(name, None)

    def log(self, name: str) -> Path:
        """Return the path of a helper's output."""
        return self._dir / f"{name}.log"

    def observe(self, netns: int) -> Iterable[State]:
        """Yield the running helpers; ``files`` has only those that they have loaded in their present version."""
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
        """Return the running helpers by name. Search the processes only once: afterwards only we start any."""
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
            if child.poll() is not None:  # this reaps it
                del self._children[pid]
        return self._running

    def _fell(self, running: _Running) -> None:
        falls = self._falls.get(running.state.name)
        if falls is None or not falls.count or _now() - running.since >= STEADY:
            falls = self._falls[running.state.name] = _Falls(_now())
        falls.count += 1
        falls.until = _now() + (min(2.0 ** (falls.count - 5), LONGEST_WAIT) if falls.count > 4 else 0.0)

    def _found(self) -> Iterator[tuple[int, Process]]:
        """Yield the session leaders among processes with our mark, with the state that started each."""
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
        running = _Running(pid, pidfd, started(pid), state)
        assert self._running is not None
        self._running[state.name] = running
        self._deaths.register(pidfd, select.EPOLLIN | select.EPOLLONESHOT)
        return running

    def _drop(self, name: str) -> None:
        assert self._running is not None
        os.close(self._running.pop(name).pidfd)  # this removes it from the epoll, too
        if begun := self._reloads.pop(name, None):
            begun.command.kill()
            begun.command.wait()

    def _observed(self, running: _Running, now: Mapping[str, str] | None = None) -> Process:
        """Return a helper's state; ``now`` has the digests of its files, if the caller knows them."""
        state = running.state
        loaded = self._loaded.entries.get(state.name)
        if not state.files or loaded is None or loaded.started != running.started:
            return msgspec.structs.replace(state, files=())
        now = self._digests.of(state.files) if now is None else now
        same = tuple(f for f in state.files if loaded.digests.get(f) == now[f])
        return msgspec.structs.replace(state, files=same)

    # ---- changes

    def _put(self, state: Process) -> None:
        running = self._living().get(state.name)
        if running is not None and running.state == state:
            files = self._digests.of(state.files)  # before it reads them again: a later change is found later
            if self._observed(running, files) == state:
                return
            if state.reload:
                self._reload(state, running)
                return
            if state.hup:
                self._hang_up(state, running, files)
                return
        if running is not None:
            self._stop(running)
        else:
            self._refuse_haste(state.name)
            self._sweep(state.name)
        self._start(state)

    def _refuse_haste(self, name: str) -> None:
        """Raise Unavailable if a helper died so often that its next start must wait."""
        falls = self._falls.get(name)
        if falls is not None and (wait := falls.until - _now()) > 0:
            raise Unavailable(
                f"{name} ended {falls.count} times soon after its start; next start in {wait:.0f} s: "
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
        files = self._digests.of(state.files)  # before it reads them: a file that changes now is found changed later
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
            what = f"start {state.name}: {state.argv[0]} does not exist"
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

    def _hang_up(self, state: Process, running: _Running, files: dict[str, str]) -> None:
        signal.pidfd_send_signal(running.pidfd, signal.SIGHUP)
        # Not saved: it happens often, and an agent without it only sends one signal too many.
        self._loaded.entries[state.name] = _Loaded(running.started, files)

    def _reload(self, state: Process, running: _Running) -> None:
        """Reload; a command that takes long keeps running, and the next call collects its result."""
        if begun := self._reloads.get(state.name):
            self._reloaded(state, running, begun, 0)
            if self._observed(running) == state:
                return
        files = self._digests.of(state.files)
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
        """End it and its children: SIGTERM, a bounded wait, SIGKILL. Raises KernelError if it stays."""
        name = running.state.name
        for number, seconds in ((signal.SIGTERM, self._grace), (signal.SIGKILL, self._grace)):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(running.pidfd, number)
            if running.wait(seconds):
                break
        else:
            raise KernelError(f"stop {name}: process {running.pid} does not end even after SIGKILL")
        self._drop(name)
        self._sweep(name, running.pid)
        self._living()

    def _sweep(self, name: str, session: int = 0) -> None:
        """End the children that a dead leader left behind, and wait: they may hold what the next one opens.

        ``session`` is the leader's. It shows the children, too, that are about to end and have no environment any more.
        """
        mark = f"{self._dir}:{name}".encode()
        left = {pid for pid, environment in self._marked() if environment[OWNER] == mark}
        for pid in left | set(_members(session) if session else ()):
            with contextlib.suppress(ProcessLookupError):
                pidfd = os.pidfd_open(pid)
                try:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    _ended(pidfd, self._grace)
                finally:
                    os.close(pidfd)


def _at_home(folder: Path) -> bool:
    """Return whether a process is in our namespace with one of our users: anybody can forge a mark."""
    here = Path("/proc/thread-self/ns/net")
    return folder.stat().st_uid in (os.geteuid(), dnsmasq.uid()) and (folder / "ns/net").samefile(here)


def _ended(pidfd: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _members(session: int) -> Iterator[int]:
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if os.getsid(int(folder.name)) == session:
                yield int(folder.name)


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class _Line(msgspec.Struct):
    """A line of a helper that writes its log as JSON, as etcd does."""

    level: str
    msg: str
    error: str = ""


def _said(line: str) -> tuple[bool, str]:
    """Return whether a line of a log says that it is an error, and its text."""
    try:
        found = msgspec.json.decode(line, type=_Line)
    except msgspec.DecodeError:
        return False, line.strip()
    return found.level in SEVERE, ": ".join(filter(None, (found.msg, found.error)))


def _tail(log: Path) -> str:
    """Return the last lines of a log, for an error: errors alone, if some of the last lines say that they are."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    said = [_said(line) for line in lines[-LOOKED_AT:]]
    texts = [text for severe, text in said if severe] or [text for _, text in said]
    told = texts[-1:]
    for text in texts[-2:-4:-1]:
        if len(text) + sum(map(len, told)) > TOLD:
            break
        told.insert(0, text)
    return " / ".join(told)[-TOLD:] or "it printed nothing"


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
        known_by="LINKSPAN_PROCESS in its environment, if its user is ours or dnsmasq's",
        purpose="a helper program that outlives the agent",
        sort=Sort.PROGRAM,
        commands=_start,
        events=frozenset({Event.HELPER}),
        counted=False,
    ),
)
