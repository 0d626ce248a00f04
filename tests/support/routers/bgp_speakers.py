"""BGP speakers that are not linkspan's, for tests: BIRD or FRR in a namespace, each with a folder of its own."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

from support.polling import explained, until

FRR = Path("/usr/lib/frr")
"""Where FRR's daemons are (Debian, Ubuntu); vtysh is on the PATH."""
PATIENCE = 60.0


def needs(*speakers: str) -> None:
    """Skip the test where one of the speakers, ``bird`` or ``frr``, is not installed."""
    there = {"bird": shutil.which("bird"), "frr": (FRR / "bgpd").exists() and shutil.which("vtysh")}
    for name in speakers:
        if not there[name]:
            pytest.skip(f"{name} is not installed")


class _Speaker:
    """Daemons in one namespace; ``folder`` has their configuration, sockets and logs, until they are closed."""

    def __init__(self, netns: str) -> None:
        self.netns = netns
        self.folder = Path(tempfile.mkdtemp(prefix="speaker-", dir="/run"))
        self.folder.chmod(0o755)
        self.processes: list[subprocess.Popen[bytes]] = []

    def _spawn(self, *argv: str) -> None:
        with self._log.open("ab") as log:
            command = ["nsenter", f"--net=/run/netns/{self.netns}", *argv]
            self.processes.append(subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL))

    @property
    def _log(self) -> Path:
        return self.folder / "log"

    def log(self) -> str:
        """Return what the daemons have said."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def _await_socket(self, path: Path) -> None:
        """Wait until somebody listens at the unix socket."""

        def listens() -> bool:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as tried:
                tried.connect(str(path))
                return True
            assert self.processes[-1].poll() is None, "the daemon ended"
            return False

        with explained(self.log):
            until(listens, f"somebody listens at {path}", PATIENCE)

    def kill(self) -> None:
        """End the daemons at once, without a word to their peers (SIGKILL)."""
        for process in self.processes:
            process.kill()
            process.wait()
        self.processes.clear()

    def close(self) -> None:
        """End the daemons in order (SIGTERM), and by force where that takes long."""
        for process in reversed(self.processes):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()
        shutil.rmtree(self.folder, ignore_errors=True)


class Bird(_Speaker):
    """A BIRD: ``config`` is its whole bird.conf."""

    def __init__(self, netns: str, config: str) -> None:
        super().__init__(netns)
        self.socket = self.folder / "bird.ctl"
        self.write(config)

    def write(self, config: str) -> None:
        """Write another configuration, which counts from the next start or ``ask("configure")``."""
        (self.folder / "bird.conf").write_text(config)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.socket.unlink(missing_ok=True)
        self._spawn("bird", "-f", "-c", str(self.folder / "bird.conf"), "-s", str(self.socket))
        self._await_socket(self.socket)

    def ask(self, *words: str) -> str:
        """Return the answer to a command of birdc's."""
        command = ["birdc", "-s", str(self.socket), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    def established(self, protocol: str) -> bool:
        """Return whether the session is up."""
        return "Established" in self.ask("show", "protocols", protocol)


class Frr(_Speaker):
    """FRR's bgpd and, unless ``kernel`` is False, zebra, which puts its routes into the kernel."""

    def __init__(self, netns: str, config: str, *, kernel: bool = True) -> None:
        super().__init__(netns)
        self._kernel = kernel
        shutil.chown(self.folder, "frr", "frr")  # whom the daemons run as
        (self.folder / "frr.conf").write_text(config)

    def start(self) -> None:
        """Start the daemons, and wait until they answer."""
        for name in (("zebra",) if self._kernel else ()) + ("bgpd",):
            vty = self.folder / f"{name}.vty"
            vty.unlink(missing_ok=True)
            options = ["-f", str(self.folder / "frr.conf"), "-i", str(self.folder / f"{name}.pid")]
            options += ["--vty_socket", str(self.folder), "-P", "0", "--log", f"file:{self._log}"]
            zebra = ["-z", str(self.folder / "zserv.api")] if self._kernel else ["-Z"]
            self._spawn(str(FRR / name), *options, *zebra)
            self._await_socket(vty)

    def ask(self, *commands: str) -> str:
        """Return the answer to vtysh's commands, each a whole line."""
        argv = ["vtysh", "--vty_socket", str(self.folder), "-d", "bgpd"]
        argv += [word for command in commands for word in ("-c", command)]
        return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=True).stdout

    def established(self, address: str) -> bool:
        """Return whether the session with the neighbour is up."""
        return "BGP state = Established" in self.ask(f"show bgp neighbors {address}")
