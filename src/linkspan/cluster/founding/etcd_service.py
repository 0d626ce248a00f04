"""linkspan's own etcd as a process: found, started, kept alive and restarted, as a helper or by systemd.

Without systemd it is a helper that outlives the agent, as all others do, but with a memory of its own: the reconciler
must not end it, because an agent that starts has no records before etcd answers. With systemd it is a unit with a user
of its own, whose folder belongs to that user.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

from linkspan.cluster.founding import data_folder
from linkspan.cluster.founding.data_folder import Note
from linkspan.cluster.founding.trust_files import Voter
from linkspan.core.errors import Denied, LinkspanError, NotFound, Unavailable
from linkspan.core.own_command import own_command
from linkspan.core.states.host import HOST
from linkspan.core.states.programs import Process
from linkspan.kernel.drivers.processes import ProcessDriver
from linkspan.kernel.io.durable_files import write
from linkspan.kernel.io.private_files import machines_root, writers

log = logging.getLogger("linkspan.cluster.founding.etcd_service")

UNIT_NAME = "linkspan-etcd.service"
UNIT_FILE = Path("/etc/systemd/system", UNIT_NAME)
USER = "linkspan-etcd"
HELPER_FOLDER, UNIT_FOLDER = "etcd", Path("/var/lib/linkspan-etcd")
"""The folder of etcd's files: in the state folder, or with systemd that of the unit's user."""
NAME = "etcd"
"""The name of the helper, and of its log."""
VOTER = "voter-"
"""How the names of voters in etcd begin; the host's id follows."""
GRACE = 1.0
"""Seconds that etcd has to end: it would wait seven for open watches, and loses nothing when it is killed."""
JOB_SECONDS = 30.0
"""Seconds for a job of systemd; it goes on after that. A voter without a quorum is not ready before it has one."""
LOOK_EVERY = 1.0
"""Seconds between two checks that the helper lives."""
LARGEST = 64 << 10
"""Largest certificate or key that is read, in bytes."""
FILES = ("server.pem", "server.key", "peer.pem", "peer.key", "client-ca.pem", "peer-ca.pem", "revoked.der")
"""What etcd reads, besides its data."""

_UNIT = """\
[Unit]
Description=linkspan's etcd: the records of all hosts
After=network-online.target
Wants=network-online.target
StartLimitIntervalSec=0

[Service]
Type=notify
User={user}
ExecCondition=+{condition}
ExecStart={command}
Restart=always
RestartSec=1
TimeoutStopSec=1
LimitNOFILE=65536
StateDirectory={folder}
StateDirectoryMode=0700
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes

[Install]
WantedBy=multi-user.target
"""


def tool(name: str) -> str:
    """Return the path of a program of etcd's: the one of this installation, else the machine's. '' if missing."""
    own = Path(sys.prefix, "bin", name)  # a package's, beside the Python that runs this
    return str(own) if os.access(own, os.X_OK) else shutil.which(name) or ""


def program() -> str:
    """Return the path of etcd. Raises NotFound."""
    if not (found := tool("etcd")):
        what = "etcd is not installed, and linkspan's package has none"
        raise NotFound(what, "apt install etcd-server (its own service is not needed: systemctl disable --now etcd)")
    return found


def require_trusted() -> None:
    """Refuse an etcd that others than root may change: root asks it for its version. Raises Denied, or NotFound.

    Only a host that becomes a voter asks this. One that is a voter already keeps its etcd.
    """
    found = program()
    if machines_root() and (why := next(writers([Path(found)]), "")):
        what = f"others than root may change etcd, which this host would run: {why}"
        raise Denied(what, "chown root, chmod go-w; or remove it and install etcd-server")


def unit(command: str, condition: str) -> str:
    """Return the text of the unit; ``command`` is etcd's whole command line, ``condition`` what must succeed first."""
    return _UNIT.format(user=USER, command=command, condition=condition, folder=UNIT_FOLDER.name)


def sysusers() -> str:
    """Return the unit's user (sysusers.d(5))."""
    return f'u {USER} - "etcd of linkspan" {UNIT_FOLDER}\n'


def folder(state_dir: Path, voter: Voter) -> Path:
    """Return the folder of etcd's files."""
    return UNIT_FOLDER if voter.systemd else state_dir / HELPER_FOLDER


def beside(etcds: Path) -> Path:
    """Return the folder beside etcd's, on the same disk, in which a restore is prepared."""
    return etcds.with_name(f"{etcds.name}.restoring")


class EtcdService:
    """The etcd of one voter."""

    def __init__(self, state_dir: Path, host: str, voter: Voter, advertised: str = "") -> None:
        """``advertised`` is ADDRESS:PORT for clients as other members tell it; '': where it listens."""
        self._host = host
        self._voter = voter
        self._advertised = advertised or voter.clients
        self.folder = folder(state_dir, voter)
        self.problem = ""
        """Why etcd could not be started."""
        self._turn = asyncio.Lock()
        """One start or stop at a time: between the two of a restart nobody else starts etcd."""
        self._helpers = ProcessDriver(state_dir / HELPER_FOLDER, GRACE)

    @property
    def name(self) -> str:
        """Return the voter's name in etcd."""
        return f"{VOTER}{self._host}"

    @property
    def trouble(self) -> str:
        """Return a sentence if etcd could not be started, '' otherwise."""
        return f"this voter's etcd does not run: {self.problem}" if self.problem else ""

    @property
    def log(self) -> str:
        """Return where etcd's output is, in words."""
        return f"journalctl -u {UNIT_NAME}" if self._voter.systemd else str(self._helpers.log(NAME))

    @property
    def place(self) -> str:
        """Return HOST:PORT at which etcd is for clients."""
        return self._voter.clients

    def close(self) -> None:
        """Forget the helper; it keeps running."""
        self._helpers.close()

    @property
    def data(self) -> Path:
        """Return the folder of etcd's data."""
        return self.folder / "data"

    def prepare(self, member: str = "") -> None:
        """Make an empty data folder for the first start; ``member`` is etcd's id of one that joins a cluster.

        Data of an earlier membership is renamed, never used. Raises LinkspanError.
        """
        if not member and (self.data / data_folder.MEMBER).is_dir():
            return  # an init that broke off
        data_folder.prepare(self.data, Note(self._host, data_folder.minor_of(program()), member), self.owner())

    def check(self) -> None:
        """Return if etcd may be started with the data that this host has. Raises LinkspanError with the reason."""
        data_folder.check(self.data, self._host, program(), self.owner())

    def condition(self) -> tuple[str, ...]:
        """Return the command line by which systemd asks the same as ``check``. Raises NotFound if there is no etcd."""
        return (*own_command(data_folder.__name__), str(self.data), self._host, program())

    def argv(self) -> tuple[str, ...]:
        """Return etcd's command line. Raises NotFound if there is no etcd."""
        clients, peers = f"https://{self._voter.clients}", f"https://{self._voter.peers}"
        joins = self._voter.joins
        return (
            program(),
            *("--name", self.name, "--data-dir", str(self.folder / "data")),
            *("--listen-client-urls", clients, "--advertise-client-urls", f"https://{self._advertised}"),
            *("--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers),
            *("--initial-cluster", joins or f"{self.name}={peers}", "--initial-cluster-token", self.name),
            *("--initial-cluster-state", "existing" if joins else "new"),
            *("--cert-file", self._file("server.pem"), "--key-file", self._file("server.key")),
            *("--trusted-ca-file", self._file("client-ca.pem"), "--client-cert-auth"),
            *("--client-crl-file", self._file("revoked.der")),
            *("--peer-cert-file", self._file("peer.pem"), "--peer-key-file", self._file("peer.key")),
            *("--peer-trusted-ca-file", self._file("peer-ca.pem"), "--peer-client-cert-auth"),
            # Passwords are random and long, and a login at the default cost takes 50 ms of etcd's processor.
            *("--bcrypt-cost", "4", "--log-level", "warn"),
        )

    def _file(self, name: str) -> str:
        return str(self.folder / name)

    def put(self, name: str, content: bytes) -> None:
        """Write a file that etcd reads, for its user alone. Raises Unavailable with its name."""
        assert name in FILES
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            owner = self.owner()
            os.chown(self.folder, *owner, follow_symlinks=False)
            write(self.folder / name, content, 0o600, owner)
        except OSError as error:
            raise Unavailable(f"{self.folder / name}: {(error.strerror or '').lower()}", "etcd needs it") from error

    def read(self, name: str) -> bytes:
        """Return a file that etcd reads. Raises Unavailable with its name.

        The folder may belong to etcd's user, who may put a link or a pipe there.
        """
        assert name in FILES
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            with os.fdopen(os.open(self.folder / name, flags), "rb") as file:
                return file.read(LARGEST)
        except OSError as error:
            raise Unavailable(f"{self.folder / name}: {(error.strerror or '').lower()}", "etcd needs it") from error

    def owner(self) -> tuple[int, int]:
        """Return the uid and gid of etcd's files. Raises Unavailable if its user is missing."""
        if not self._voter.systemd:
            return os.geteuid(), os.getegid()
        try:
            found = pwd.getpwnam(USER)
        except KeyError as error:
            raise Unavailable(f"user {USER} does not exist", "systemd-sysusers makes it") from error
        return found.pw_uid, found.pw_gid

    async def start(self) -> None:
        """Start etcd unless it runs. Raises LinkspanError."""
        async with self._turn:
            if self._voter.systemd:
                await _whole(self.check)
                await _whole(_systemctl, "start", "--no-block", UNIT_NAME)  # systemd keeps it alive
            else:
                await _whole(self._put)

    def _put(self) -> None:
        """Start the helper unless it runs; one of another version of linkspan keeps running."""
        if any(True for _ in self._helpers.observe(HOST)):
            return
        self.check()
        wanted = Process(NAME, self.argv())
        for error in self._helpers.apply([wanted], ()).values():
            raise error

    def _anew(self) -> None:
        """End the helper, and start it again: an agent that stops in between would leave it ended."""
        self.stop()
        self._put()

    async def restart(self) -> None:
        """Restart etcd, which ends every connection to it. Raises LinkspanError.

        What could not be started again, as after another etcd was installed, is not ended.
        """
        async with self._turn:
            await _whole(self.check)
            if self._voter.systemd:
                await _whole(_systemctl, "restart", UNIT_NAME)
            else:
                await _whole(self._anew)

    @contextlib.asynccontextmanager
    async def stopped(self) -> AsyncIterator[None]:
        """Stop etcd, and let nobody start it in the block. The caller starts it. Raises LinkspanError."""
        async with self._turn:
            if self._voter.systemd:
                await asyncio.to_thread(_systemctl, "stop", UNIT_NAME)
            else:
                await asyncio.to_thread(self.stop)
                self._helpers.forgive(NAME)  # it may have died often with the data that are replaced now
            yield

    async def end(self) -> None:
        """End etcd if it runs, and let nothing start it by itself: its data are not used any more.

        Raises LinkspanError.
        """
        async with self._turn:
            if self._voter.systemd and UNIT_FILE.exists():
                await asyncio.to_thread(_systemctl, "disable", "--now", UNIT_NAME)
                with contextlib.suppress(LinkspanError):  # it may have ended well
                    await asyncio.to_thread(_systemctl, "reset-failed", UNIT_NAME)  # it was killed after GRACE
            await asyncio.to_thread(self.stop)

    def clear(self, names: Iterable[str] = FILES) -> None:
        """Remove what etcd reads besides its data, such as its keys. Raises Unavailable with a name."""
        for name in names:
            try:
                (self.folder / name).unlink(missing_ok=True)
            except OSError as error:
                raise Unavailable(f"{self.folder / name}: {(error.strerror or '').lower()}", "remove it") from error

    def stop(self) -> None:
        """End the helper; systemd's unit is not concerned. Raises LinkspanError."""
        for error in self._helpers.apply((), [*self._helpers.observe(HOST)]).values():
            raise error

    async def keep(self) -> None:
        """Start etcd, and a helper again whenever it ended; systemd does that for its unit."""
        while True:
            try:
                await self.start()
            except LinkspanError as error:  # a failure of etcd itself is in its log, and the store's in `status`
                if not self.problem:
                    log.warning("etcd is not started: %s", error.told)
                self.problem = error.told
            else:
                self.problem = ""
                if self._voter.systemd:
                    return
            await asyncio.sleep(LOOK_EVERY)


async def _whole(work: Callable[..., None], *words: str) -> None:
    """Do something in a thread to its end, also if the caller is cancelled: it must not start etcd after ``end``."""
    doing = asyncio.create_task(asyncio.to_thread(work, *words))
    try:
        await asyncio.shield(doing)
    except asyncio.CancelledError:
        await asyncio.gather(doing, return_exceptions=True)
        raise


def _systemctl(verb: str, *words: str) -> None:
    """Let systemd do something. Raises Unavailable, also if that takes more than JOB_SECONDS."""
    argv = ["systemctl", verb, *words]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=JOB_SECONDS)
    except subprocess.TimeoutExpired as error:
        what = f"{' '.join(argv)}: it takes more than {JOB_SECONDS:g} s"
        raise Unavailable(what, f"journalctl -u {UNIT_NAME}") from error
    if done.returncode:
        why = done.stderr.strip() or f"it ended with {done.returncode}"
        raise Unavailable(f"{' '.join(argv)}: {why}", f"journalctl -u {UNIT_NAME}")
