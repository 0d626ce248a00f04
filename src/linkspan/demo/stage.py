"""Stage of the tour: namespaces for a host, containers and the world outside, and their display.

Everything is made in namespaces that the tour adds and removes again; the machine's own is not touched. Their
names are recorded first, so that the next tour removes what an interrupted one left.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from rich.markup import escape

from linkspan.core.errors import LinkspanError
from linkspan.core.own_command import own_command
from linkspan.demo.language import Words
from linkspan.demo.screen import Screen, console
from linkspan.lab import commands

FOLDER = Path("/run/linkspan-demo")
HOST, OUTSIDE = "linkspan-demo", "linkspan-demo-outside"
PATIENCE = 60.0


class Stage(Screen):
    """Namespaces and the agent in one of them; ``typed`` runs commands as a reader would."""

    def __init__(self, words: Words) -> None:
        super().__init__(words)
        self._made = FOLDER / "namespaces"
        self._agent: subprocess.Popen[bytes] | None = None

    # Namespaces

    def clear(self) -> None:
        """End the agent and remove the namespaces of this tour, or of one that was interrupted or kept."""
        self._end_agent()
        self._end_helpers()
        if self._made.exists():
            for name in self._made.read_text(encoding="utf-8").split():
                with contextlib.suppress(LinkspanError):
                    commands.delete(name)
        shutil.rmtree(FOLDER, ignore_errors=True)

    def add(self, name: str) -> None:
        """Add a namespace with this name. Raises Conflict if somebody else's has it."""
        commands.refuse_taken(name)
        FOLDER.mkdir(mode=0o755, parents=True, exist_ok=True)
        with self._made.open("a", encoding="utf-8") as file:
            file.write(f"{name}\n")
        commands.add(name)

    def quietly(self, *argv: str) -> str:
        """Run a command of the stage itself and return its output. Raises LinkspanError if it fails."""
        return commands.run(*argv)

    # Display

    def typed(self, lines: Iterable[str], netns: str = HOST) -> None:
        """Show commands and run them in a namespace. Raises LinkspanError with the one that fails."""
        # the path of linkspan, if it is in a virtual environment
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        for command in lines:
            inside = ["nsenter", f"--net=/run/netns/{netns}", "sh", "-c", command]
            self.shown(command, inside, os.environ | {"LINKSPAN_SOCKET": str(self.socket), "PATH": path})

    def ping(self, netns: str, address: str, *, works: bool, why: str = "") -> None:
        """Ping, and show whether it is answered; the tour fails if that is unexpected."""
        # The kernel asks again for a neighbour that did not answer only after a second.
        command = ["ip", "netns", "exec", netns, "ping", "-c1", "-W3" if works else "-W1", address]
        console.print(f"  [cyan]$[/cyan] {escape(' '.join(command))}")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        answered = done.returncode == 0
        said = self.words("answered") if answered else self._refusal(done.stdout + done.stderr)
        self.verdict(answered == works, f"{said}{f': {why}' if why else ''}", good=answered)

    def _refusal(self, output: str) -> str:
        """Return ping's own words for a failure."""
        for sentence in (
            "Network is unreachable",
            "Packet filtered",
            "Destination Host Unreachable",
            "Destination Net Unreachable",
        ):
            if sentence in output:
                return sentence
        return self.words("no answer")

    # The agent

    @property
    def socket(self) -> Path:
        """Return the agent's socket."""
        return FOLDER / "agent.sock"

    def start_agent(self) -> None:
        """Start an agent in the host's namespace and wait until it says ready."""
        console.print("  [cyan]$[/cyan] linkspan agent &")
        command = [*own_command(), "agent"]
        options = ["--state-dir", str(FOLDER / "state"), "--socket", str(self.socket)]
        with (FOLDER / "agent.log").open("wb") as log:
            self._agent = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{HOST}", *command, *options],
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        assert self._agent.stdout is not None
        if self._agent.stdout.readline() != b"ready\n":
            log_text = (FOLDER / "agent.log").read_text(encoding="utf-8")
            raise LinkspanError(f"the agent did not start: {log_text.strip()[-500:]}")
        (FOLDER / "agent.pid").write_text(str(self._agent.pid), encoding="ascii")
        console.print("    [dim]ready[/dim]")

    def _end_agent(self) -> None:
        """End the agent of this tour, or of one that was kept (recognised by its socket in its command line)."""
        file = FOLDER / "agent.pid"
        if not file.exists():
            return
        pid = int(file.read_text(encoding="ascii"))
        with contextlib.suppress(OSError):
            if b"linkspan" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE
        while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
            if self._agent is not None and self._agent.poll() is not None:
                break
            time.sleep(0.05)

    def _end_helpers(self) -> None:
        """End the DNS servers: they outlive their agent, by design, and would outlive their namespace too."""
        found: list[str] = []
        with contextlib.suppress(LinkspanError):  # the namespace does not exist
            found = self.quietly("ip", "netns", "pids", HOST).split()
        for pid in found:
            with contextlib.suppress(OSError):
                if os.fsencode(FOLDER) in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(int(pid), signal.SIGTERM)
