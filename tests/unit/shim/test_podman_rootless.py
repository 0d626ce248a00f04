"""What the plugin says to a Podman that is not root's: one line, whatever it is called for."""

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
    """`network create` as `run`: no refusal of the agent's socket, and no word of an agent that would not run."""
    monkeypatch.setattr(posix, "geteuid", lambda: 1000)
    monkeypatch.setattr(linkspan_podman, "read_all", lambda: b"{}")
    with pytest.raises(linkspan_podman.Failed) as failed:
        linkspan_podman.carried(command, "/proc/self/ns/net")
    assert f"linkspan: {failed.value}" == SAID["error"]


@pytest.mark.root
def test_root_of_a_user_namespace_is_none() -> None:
    """Rootless Podman calls the plugin from a namespace of its own, where it is called root."""
    argv = ["unshare", "--user", "--map-root-user", sys.executable, "-I", "-S", str(PLUGIN), "create"]
    done = subprocess.run(argv, input=b"{}", capture_output=True, check=False)
    assert done.returncode == 1
    assert json.loads(done.stdout) == SAID
