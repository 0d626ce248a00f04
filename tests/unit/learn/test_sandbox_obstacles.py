"""Obstacles that keep a user from making a sandbox, and the way out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from linkspan.core.errors import Denied
from linkspan.learn import sandbox


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kernel/apparmor_restrict_unprivileged_userns": "1"}, "kernel.apparmor_restrict_unprivileged_userns=0"),
        ({"kernel/unprivileged_userns_clone": "0"}, "kernel.unprivileged_userns_clone=1"),
        ({"user/max_user_namespaces": "0"}, "user.max_user_namespaces=10000"),
        ({}, "use sudo"),
    ],
)
def test_a_user_is_told_the_setting_and_how_to_change_it(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], said: str
) -> None:
    """Ubuntu's, Debian's and the kernel's own one; sudo always helps."""
    monkeypatch.setattr(sandbox, "_setting", lambda name: settings.get(name, ""))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert said in sandbox.obstacle()
    assert "sudo" in sandbox.obstacle()


def test_root_in_a_container_is_told_to_leave_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root needs no user namespace: what is missing is the container's."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "CAP_SYS_ADMIN" in sandbox.obstacle()


def test_a_machine_that_isolates_nothing_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root is no way out: it must not verify, but where the commands may do anything."""
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "x", "6.1", "", "s390x")))
    with pytest.raises(Denied, match="the numbers of this machine's system calls are not known") as caught:
        sandbox.make("x", closed=True)
    assert "x86-64" in caught.value.hint
    assert "--trust" in caught.value.hint
    assert "sudo" not in caught.value.hint


def test_a_closed_sandbox_needs_programs_of_the_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder of this user's own is covered when the program begins."""
    for name in ("unshare", "ip"):
        (tmp_path / name).symlink_to("/bin/true")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sandbox, "_SYSTEM", "/nonexistent")
    with pytest.raises(Denied, match="needs the program unshare"):
        sandbox.make("x", closed=True)


@pytest.mark.parametrize(
    ("version", "first"),
    [("4.4.0-19041-Microsoft", True), ("5.15.90.1-microsoft-standard-WSL2", False), ("6.12.1-amd64", False)],
)
def test_only_wsl_1_is_taken_for_it(monkeypatch: pytest.MonkeyPatch, version: str, first: bool) -> None:
    """Version 2 has namespaces, and the word in its kernel's name, too."""
    text = f"Linux version {version} (gcc version 5.4.0 (GCC) ) #1-Microsoft"
    monkeypatch.setattr(sandbox, "_setting", lambda _: "")
    monkeypatch.setattr(Path, "read_text", lambda *_, **_k: text)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert ("WSL 1" in sandbox.obstacle()) == first
