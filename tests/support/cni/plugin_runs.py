"""Runs of the plugin, as a runtime would make them."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from linkspan.shim import build

CONF = {"cniVersion": "1.0.0", "name": "demo", "type": "linkspan"}
NETNS = "/proc/self/ns/net"
VERSIONS = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]
COMMANDS = ["ADD", "CHECK", "DEL", "GC", "STATUS"]
ERROR = b'{"cniVersion":"1.0.0","code":7,"msg":"network demo does not exist","details":""}'


class Outcome(NamedTuple):
    """Result of a run of the plugin."""

    code: int
    stdout: bytes
    stderr: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The error object of a run that failed."""
        assert self.code == 1, self
        return dict(json.loads(self.stdout))


class Plugin:
    """Runs one form of the plugin with nothing in its environment but what is given."""

    def __init__(self, path: Path, socket: Path) -> None:
        self.path = path
        self.socket = socket

    @property
    def queue(self) -> Path:
        """The folder of queued removals."""
        return self.socket.parent / "queue"

    def queued(self) -> list[dict[str, Any]]:
        """Return the queued removals; nothing else may lie there."""
        assert all(path.suffix == ".json" for path in self.queue.glob("*"))
        return [json.loads(path.read_text()) for path in sorted(self.queue.glob("*"))]

    def run(self, command: str, given: object = CONF, **environment: str | bytes) -> Outcome:
        """Run it; ``given`` is the configuration or stdin's bytes. An empty variable is not set."""
        values: dict[str, str | bytes] = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": "web",
            "CNI_IFNAME": "eth0",
            "CNI_NETNS": NETNS,
            "CNI_PATH": "/opt/cni/bin",
            "LINKSPAN_SOCKET": str(self.socket),
            **environment,
        }
        return self.run_bare({name: value for name, value in values.items() if value}, given)

    def run_bare(self, environment: dict[str, str | bytes], given: object) -> Outcome:
        """Run it with exactly this environment."""
        stdin = given if isinstance(given, bytes) else json.dumps(given, ensure_ascii=False).encode()
        ended = subprocess.run([self.path], env=environment, input=stdin, capture_output=True, timeout=120)
        return Outcome(ended.returncode, ended.stdout, ended.stderr)


def sanitizers() -> tuple[str, ...]:
    """Return the compiler's flags for checks at run time; none where it lacks their libraries."""
    flags = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    command = ["cc", *flags, "-x", "c", "-o", "/dev/null", "-"]
    if shutil.which("cc") is None:
        return ()
    tried = subprocess.run(command, input=b"int main(void) { return 0; }", capture_output=True)
    return flags if tried.returncode == 0 else ("-O1",)


def compiled(target: Path, *flags: str) -> Path:
    """Compile the plugin with all warnings as errors."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: apt-get install gcc libc6-dev")
    warnings = ("-std=gnu11", "-Wall", "-Wextra", "-Werror")
    command = [compiler, *warnings, *flags, "-o", str(target), str(build.SOURCE)]
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return target
