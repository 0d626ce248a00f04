"""The sandbox: mount, network, IPC, UTS and PID namespaces that end with one process, and need no root.

Without root they are in a user namespace, in which this user is root. The package's docstring says why it is made so.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from linkspan.core.errors import Denied, LinkspanError, NotFound
from linkspan.core.own_command import own_command, own_environment
from linkspan.core.remedies import reason
from linkspan.lab.commands import await_
from linkspan.learn import INSIDE

MARK = "LINKSPAN_LEARN_SANDBOX"
"""Environment variable of a sandbox's processes, with its name."""
NETNS = Path("/run/netns")
"""Folder of the named namespaces, of the sandbox for whoever is in it."""
RUN = "/run/learn"
"""Folder of a sandbox's own programs and files, on its own /run."""
PATIENCE = 60.0
"""Seconds for a script that makes a lesson's beginning or plays a solution."""
TYPED = f"{RUN}/typed"
"""The log of commands in logged shells, in a sandbox: entries of time (seconds of /proc/uptime), shell, and line."""
FIELD, ENTRY = "\x1f", "\x1e"
"""The ends of a field and of an entry of that log."""
COMMAND = 15
"""Seconds for one command of a check: a busy machine is slow, and only one that hangs is ended."""
TIMED_OUT = 124
"""Exit code of one that hangs. Larger ones are of one that cannot run, or that a signal ends at OUTPUT bytes."""
OUTPUT = 1_000_000
"""Bytes of one command's output that are read: a program of the sandbox may write without an end."""
_FILE = 64 * 2**20
"""Bytes of a file that a program of the sandbox writes, at most: its output is a file of the machine."""

_ENVIRONMENT = 4 * 2**20
"""Bytes of a process's environment that are read: more than a program is started with."""
_SYSTEM = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_HOME = "/tmp"  # noqa: S108 - a closed sandbox has its own
_NOT_ISOLATED = "cannot isolate the commands of a result: {why}"
_ISOLATES = (
    "verify on Linux 5.12 or later on x86-64, ARM64 or 64-bit RISC-V, where users may make user namespaces; "
    "or with --trust, on a machine to throw away"
)
_SPACES = ("--mount", "--net", "--ipc", "--uts")
"""Namespaces of a sandbox besides that of its processes: also that of the host's name, which root could change."""
_MADE = f"""set -e
mount -t tmpfs -o mode=755,size=64m tmpfs /run
mkdir -p /run/netns /run/lock {RUN}/bin
mount -t proc proc /proc 2>/dev/null || true
mount -t sysfs sysfs /sys 2>/dev/null || true
touch {RUN}/resolv.conf
[ ! -f /etc/resolv.conf ] || mount --bind {RUN}/resolv.conf /etc/resolv.conf 2>/dev/null || true
ip link set lo up
cd {RUN}/bin
printf '#!/bin/sh\\nexec "$@"\\n' > sudo
printf '#!/bin/sh\\nexec %s "$@"\\n' "$0" > linkspan
printf '#!/bin/sh\\nexec {RUN}/bin/linkspan learn "$@"\\n' > learn
if tool=$(command -v tcpdump); then printf '#!/bin/sh\\nexec %s -Z root "$@"\\n' "$tool" > tcpdump; fi
if tool=$(command -v dnsmasq); then printf '#!/bin/sh\\nexec %s --user= --group= "$@"\\n' "$tool" > dnsmasq; fi
chmod 755 ./*
echo made
"""
"""Makes /run and the wrappers: in a user namespace of one user tcpdump, dnsmasq and sudo cannot become another one.

A container may forbid new mounts of /proc and /sys; then those from outside are seen, which only `ps` shows. The
machine's DNS servers do not answer here, and python3's web server would look for its own name for ten seconds.
"""
_ENDING = f"head -c1 >{RUN}/left; [ ! -s {RUN}/left ] || sleep infinity; exit"
"""Waits until the maker has ended, or has left the sandbox; without exec, because this shell reaps orphans."""
_CLOSED_ENDING = "head -c1 >/dev/null; exit"
"""The same for a closed one, which nobody leaves: what runs in it might say so."""
_CLOSED_FIRST = 'exec 3<&0; sh -c "$0" "$1" <&3 3<&- &'
"""Starts a script with its ``$0`` as the first process of the PID namespace below, and ends.

So nothing of the user namespace below stays in the PID namespace around. A shell takes stdin from what it leaves.
"""
_EACH = f"""exec 4>&1 2>/dev/null
for command; do
  code=$({{ {{ timeout {COMMAND} sh -c "$command" 2>&1 </dev/null 3>&- 4>&-; echo $? >&3
  }} | tr -d '\\000' | head -c {OUTPUT} >&4; }} 3>&1)
  printf '\\0%d\\0' "${{code:-1}}" >&4
done"""
"""Prints the output of each command without zero bytes, then its exit code, each with a zero byte after it."""


_LOG = f"""; shopt -s cmdhist lithist; HISTCONTROL=; HISTSIZE=100000
__typed() {{
  local up entry=$(HISTTIMEFORMAT= builtin history 1)
  [[ $entry =~ ^\\ *[0-9]+.\\ (.*)$ ]] || return
  builtin read -r up _ </proc/uptime
  printf '%s\\x1f%s\\x1f%s\\x1e' "$up" $$ "${{BASH_REMATCH[1]}}" >> {TYPED}
}}
PS0='$(__typed)'"""
"""For bash: what is printed before a line runs is nothing, and to find that out it runs the function.

The time counts sleep of the machine, and nobody sets that clock.
"""


class Sandbox:
    """A sandbox that exists; ``init`` is the pid of its first process, 0 for the one that this process is in."""

    def __init__(
        self,
        init: int,
        name: str = "",
        pipe: int = -1,
        around: int = 0,
        process: subprocess.Popen[str] | None = None,
    ) -> None:
        """``pipe``: the end of the pipe that keeps a sandbox alive, -1 if none does.

        ``around``: pid of the first process of the PID namespace around a closed one, 0 if it is not closed. It is in
        the user namespace around, too. ``process`` is the one that this process started for it.
        """
        self.init = init
        self.around = around
        self._name = name
        self._pipe = pipe
        self._process = process

    def entering(self) -> list[str]:
        """Return the words before a command that runs in the sandbox.

        Whoever enters a mount namespace is in its root folder. With --wd, nsenter would open the folder before, which
        is then the machine's, and relative paths lead out of the sandbox.

        The command ends with this process, because what runs in the sandbox may stop it: a stopped one that is left
        would keep the namespaces. Whoever enters a user namespace loses that, so it is asked for after it.
        """
        if not self.init:
            return []
        target = f"--target={self.init}"
        user = [] if os.geteuid() == 0 else ["nsenter", target, "--user", "--preserve-credentials"]
        ends = ["setpriv", "--pdeathsig=KILL"]
        return [*user, *ends, "nsenter", target, *_SPACES, "--pid"]

    def environment(self) -> dict[str, str]:
        """Return the environment of commands in the sandbox: its wrappers come first, then the system's programs.

        Nothing of this user's own environment is in a closed one: it may name keys, and change what a shell does. Lines
        write to the home folder, and / is read-only there.
        """
        base = {"HOME": _HOME, "TERM": "xterm"} if self.around else own_environment()
        return base | {"PATH": f"{RUN}/bin:{self.path()}", INSIDE: "yes", "LC_ALL": "C.UTF-8"}

    def path(self) -> str:
        """Return a PATH with the system's programs.

        This user's own folders are not in that of a closed one: they are covered there, and anybody may write to them.
        """
        return _SYSTEM if self.around else system_path()

    def results(self, commands: Sequence[str]) -> list[tuple[int, str]]:
        """Run shell commands one after the other; return exit code and output of each. At most COMMAND seconds each.

        Raises LinkspanError if the sandbox is gone.
        """
        with tempfile.TemporaryFile() as said:
            self._run(["sh", "-c", _EACH, "sh", *commands], said, PATIENCE + COMMAND * len(commands))
            said.seek(0)
            pieces = said.read().decode(errors="replace").split("\0")[:-1]
        if len(pieces) != 2 * len(commands):
            raise LinkspanError("the sandbox is gone", "`linkspan learn start` makes it again")
        return [(int(code), output.rstrip("\n")) for output, code in zip(pieces[::2], pieces[1::2], strict=True)]

    def script(self, text: str) -> tuple[int, str]:
        """Run a shell script that ends at its first error; return its exit code and its output.

        Programs that it leaves in the background continue, and keep nobody waiting: its output is a file.
        """
        with tempfile.TemporaryFile() as said:
            code = self._run(["sh", "-ec", text], said, PATIENCE)
            said.seek(0)
            return code, said.read().decode(errors="replace").strip()

    def write(self, file: str, line: str) -> None:
        """Write a line into a file of the sandbox.

        Nothing keeps what the command prints: the shell may be a program that was put over the machine's, and the
        machine would keep all that it writes, for as long as another program there holds the file open.
        """
        self._run(["sh", "-ec", f"printf '%s\\n' {shlex.quote(line)} > {file}"], subprocess.DEVNULL, PATIENCE)

    def _run(self, argv: Sequence[str], said: IO[bytes] | int, seconds: float) -> int:
        """Run a command with its output in a file; return the exit code.

        It has no controlling terminal: a program of the sandbox could type there.
        """
        try:
            done = subprocess.run(
                [*limits(), *self.entering(), *argv],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                check=False,
                timeout=seconds,
                start_new_session=True,
                env=self.environment(),
            )
        except subprocess.TimeoutExpired as error:
            raise LinkspanError(f"a command in the sandbox did not end within {seconds:g} s") from error
        return done.returncode

    def shell(self, greeting: str, *, logged: bool = False) -> tuple[list[str], dict[str, str]]:
        """Return the words and the environment of the reader's shell in the sandbox.

        ``greeting`` is the prompt's first word. The key that redraws the line is for messages (terminal.py). A
        ``logged`` one writes down each line before it runs, which only bash does.
        """
        rc = (
            f"PS1={shlex.quote(f'[{greeting}] # ')}; unset PROMPT_COMMAND; next() {{ exit {NEXT}; }}; "
            'bind \'"\\e[5577~": redraw-current-line\' 2>/dev/null; alias ls="ls --color=auto"; HISTFILE='
        ) + (_LOG if logged else "")
        self.write(f"{RUN}/bashrc", rc)
        found = f"command -v bash >/dev/null && exec bash --rcfile {RUN}/bashrc -i; exec sh -i"
        return [*self.entering(), "sh", "-c", found], self.environment()

    def end(self) -> bool:
        """End the sandbox with everything in it, and wait until it is gone; return whether it was still there."""
        lives = self._lives()
        first = self.around or self.init
        if lives:
            with contextlib.suppress(ProcessLookupError):
                os.kill(first, signal.SIGKILL)
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1
        if lives:
            await_(lambda: not _is_init(first))
        if self._process is not None:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):  # the kernel may still take down its namespaces
                self._process.wait(PATIENCE)
        return lives

    def _lives(self) -> bool:
        """Return whether the sandbox is still there: its pid may be another process's, if another window has ended it.

        What runs in the sandbox may have removed its mark. So the one that made it knows it by its parent.
        """
        if self._process is None:
            return self.init in _marked(self._name)
        first = self.around or self.init
        return _is_init(first) and _parent(first) == self._process.pid

    def leave(self) -> None:
        """Let the sandbox outlive this process."""
        os.write(self._pipe, b".")
        os.close(self._pipe)
        self._pipe = -1
        if self._process is not None:
            _left.append(self._process)


_left: list[subprocess.Popen[str]] = []
"""Processes that outlive this one: Python warns of those that it forgets."""
NEXT = 42
"""Exit code of a shell in which the reader typed `next`."""


def make(name: str, *, closed: bool = False) -> Sandbox:
    """Make a sandbox. It ends with this process, even if that is killed, unless that has left it (`leave`).

    In a ``closed`` one files are read-only, and homes and sockets are hidden (closed_files.py). Some system calls are
    forbidden, from then on to this process, too (closed_calls.py). Root has no closed one.
    Raises Denied, with the reason and the way out, if the machine does not allow it.
    """
    user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    path = _SYSTEM if closed else system_path()
    for program, package in (("unshare", "util-linux"), ("setpriv", "util-linux"), ("ip", "iproute2")):
        if shutil.which(program, path=path) is None:
            raise Denied(f"a sandbox needs the program {program}", f"apt install {package}")
    shut_in: Callable[[], None] | None = None
    words = ["unshare", *user, *_SPACES, "--pid", "--fork", "--kill-child", "sh", "-c"]
    ending = _ENDING
    if closed:
        from linkspan.learn import closed_calls, closed_files  # only a teacher needs ctypes

        try:
            closed_calls.forbid()  # to this process, because each command that enters later is its child
        except OSError as error:
            raise Denied(_NOT_ISOLATED.format(why=error.strerror), _ISOLATES) from error
        shut_in = closed_files.enter
        ending = _CLOSED_ENDING
        words = ["unshare", "--pid", "--fork", "--kill-child", "sh", "-c", closed_files.OWN_PROC, "sh"]
        words += ["unshare", *user, *_SPACES, "--pid", "sh", "-c", _CLOSED_FIRST]
    reading, pipe = os.pipe()
    try:
        process = subprocess.Popen(
            [*words, _MADE + ending, shlex.join(own_command())],
            stdin=reading,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=({} if closed else own_environment()) | {"PATH": path, MARK: name},
            preexec_fn=shut_in,
            start_new_session=True,
            text=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        os.close(pipe)
        if isinstance(error, OSError):
            raise Denied(f"this machine makes no sandbox: {reason(error)}", obstacle()) from error
        why = "the kernel refuses its namespaces or mounts"  # Popen does not say why `enter` has failed
        raise Denied(_NOT_ISOLATED.format(why=why), _restriction() or _ISOLATES) from error
    finally:
        os.close(reading)
    assert process.stdout is not None
    assert process.stderr is not None
    said = process.stdout.readline()
    if said != "made\n":
        why = (process.stderr.read().strip().splitlines() or ["unshare failed"])[-1]
        os.close(pipe)
        process.kill()
        process.wait()
        raise Denied(f"this machine makes no sandbox: {why}", obstacle())
    process.stdout.close()
    process.stderr.close()
    inits: list[int] = []

    def seen() -> bool:  # while it becomes another program, its environment cannot be read
        inits[:] = [pid for pid in _marked(name) if _parent(pid) == process.pid]
        if closed:
            inits.extend(pid for first in inits for pid in _processes() if _parent(pid) == first and _is_init(pid))
        return len(inits) == 1 + closed

    if not await_(seen):
        os.close(pipe)
        process.kill()
        process.wait()
        raise LinkspanError("the sandbox ended at once")
    return Sandbox(inits[-1], name, pipe, inits[0] if closed else 0, process)


@contextlib.contextmanager
def passing(name: str, *, closed: bool = False) -> Iterator[Sandbox]:
    """Make a sandbox for a while."""
    made = make(name, closed=closed)
    try:
        yield made
    finally:
        made.end()


def found(name: str) -> Sandbox:
    """Return the sandbox with this name; inside of one, that one. Raises NotFound if there is none."""
    if os.environ.get(INSIDE):
        return Sandbox(0)
    for pid in _marked(name):
        return Sandbox(pid, name)
    raise NotFound("there is no sandbox", "`linkspan learn start N` makes one")


def end_all(name: str) -> int:
    """End all sandboxes with this name; return their number."""
    there = [Sandbox(pid, name) for pid in _marked(name)]
    for one in there:
        one.end()
    return len(there)


def obstacle() -> str:
    """Return what probably keeps this user from making namespaces, and the way out."""
    if os.geteuid() == 0:
        return "a container without CAP_SYS_ADMIN cannot make namespaces: run it on the machine itself"
    return _restriction() or "use sudo"


def _restriction() -> str:
    """Return what of this machine is known to keep users from making namespaces, and the way out; else nothing."""
    if _setting("kernel/apparmor_restrict_unprivileged_userns") == "1":
        return (
            "AppArmor restricts user namespaces here (Ubuntu): use sudo, or "
            "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0"
        )
    if _setting("kernel/unprivileged_userns_clone") == "0":
        return "user namespaces are off: use sudo, or sudo sysctl kernel.unprivileged_userns_clone=1"
    if _setting("user/max_user_namespaces") == "0":
        return "user namespaces are off: use sudo, or sudo sysctl user.max_user_namespaces=10000"
    if Path("/proc/version").read_text().partition(" (")[0].endswith("-Microsoft"):  # WSL 2: microsoft-standard-WSL2
        return "WSL 1 has no namespaces: wsl --set-version DISTRIBUTION 2"
    if Path("/.dockerenv").exists():
        return "Docker's seccomp profile forbids it: docker run --privileged, or run it on the machine itself"
    return ""


def _setting(name: str) -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys", name).read_text().strip()
    return ""


def limits() -> list[str]:
    """Return the words before a command, with which its files have an end and a crash of it is written nowhere.

    The kernel starts the machine's handler of crashes (core_pattern) in spite of a limit of 0, and not with one of 1.
    """
    return [
        "prlimit",
        f"--fsize={_at_most(resource.RLIMIT_FSIZE, _FILE)}",
        f"--core={_at_most(resource.RLIMIT_CORE, 1)}",
    ]


def _at_most(limit: int, wanted: int) -> int:
    """Return a limit: this user may be allowed less."""
    _, given = resource.getrlimit(limit)
    return wanted if given == resource.RLIM_INFINITY else min(wanted, given)


def system_path() -> str:
    """Return a PATH with the system's programs first: a user's may lack /usr/sbin (Debian)."""
    return f"{_SYSTEM}:{os.environ.get('PATH', '')}"


def _marked(name: str) -> list[int]:
    """Return the pids of the inits of this user's sandboxes with a name.

    Whoever enters a sandbox runs the programs that are mounted there, so nobody else's may be taken for one. The mark
    is only text. So init and `unshare`, its parent, must both have this user's id, and the parent must be in this
    process's PID namespace: neither another user nor root of a container has such a pair.
    """
    found = []
    for pid in _processes():
        if _is_init(pid) and _own(pid):
            parent = _parent(pid)
            if _own(parent) and _beside(parent) and _has_mark(parent, name) and _has_mark(pid, name):
                found.append(pid)
    return found


def _processes() -> list[int]:
    return [int(one.name) for one in Path("/proc").iterdir() if one.name.isdigit()]


def number_around(pid: int) -> str:
    """Return a process's number in the PID namespace around its own, '0' if it is gone."""
    return (_status(pid, "NSpid:") or ["0", "0"])[-2]


def _has_mark(pid: int, name: str) -> bool:
    """Return whether a process has the mark; its environment has any length, because a program can change it."""
    with contextlib.suppress(OSError), Path(f"/proc/{pid}/environ").open("rb") as file:
        return f"{MARK}={name}".encode() in file.read(_ENVIRONMENT).split(b"\0")
    return False


def _own(pid: int) -> bool:
    return all(_status(pid, "Uid:")[n : n + 1] == [str(os.geteuid())] for n in range(2))


def _beside(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/ns/pid").stat().st_ino == Path("/proc/self/ns/pid").stat().st_ino
    return False


def _is_init(pid: int) -> bool:
    """Return whether a process lives and is the first one of a PID namespace below this one."""
    pids = _status(pid, "NSpid:")
    return len(pids) > 1 and pids[-1] == "1" and _status(pid, "State:")[:1] != ["Z"]


def _parent(pid: int) -> int:
    return int((_status(pid, "PPid:") or ["0"])[0])


def _status(pid: int, name: str) -> list[str]:
    """Return the words of a line in a process's status, none if it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(errors="replace").split("\n"):  # a name is any bytes
            if line.startswith(name):
                return line.split()[1:]
    return []
