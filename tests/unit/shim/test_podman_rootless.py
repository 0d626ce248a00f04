"""Answer of the plugin to a rootless Podman: one line, for every call."""

from __future__ import annotations

import json
import posix
import subprocess
import sys
from pathlib import Path

import pytest

from linkspan.shim import linkspan_podman

PLUGIN = Path(linkspan_podman.__file__)
SAID = {"error": "linkspan: rootless Podman has no access to the host's networks; run it as root (sudo podman)"}


@pytest.mark.parametrize("command", ["create", "setup", "teardown", "info"])
def test_another_user_is_told_so_before_anything_is_tried(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`network create` like `run`: no error of the agent's socket, and none about an agent that does not run."""
    monkeypatch.setattr(posix, "geteuid", lambda: 1000)
    monkeypatch.setattr(linkspan_podman, "read_all", lambda: b"{}")
    with pytest.raises(linkspan_podman.Failed) as failed:
        linkspan_podman.carried(command, "/proc/self/ns/net")
    assert f"linkspan: {failed.value}" == SAID["error"]


@pytest.mark.root
def test_root_of_a_user_namespace_is_none() -> None:
    """Rootless Podman calls the plugin in a user namespace, where its user is called root."""
    argv = ["unshare", "--user", "--map-root-user", sys.executable, "-I", "-S", str(PLUGIN), "create"]
    done = subprocess.run(argv, input=b"{}", capture_output=True, check=False)
    assert done.returncode == 1
    assert json.loads(done.stdout) == SAID


def test_root_of_a_kernel_without_user_namespaces_is_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a kernel does not say which users a process has: it has all."""

    def missing(path: str, _flags: int) -> int:
        raise FileNotFoundError(path)

    monkeypatch.setattr(posix, "geteuid", lambda: 0)
    monkeypatch.setattr(posix, "open", missing)
    assert not linkspan_podman.rootless()
