"""What keeps a user from making a sandbox, and the way out."""

from __future__ import annotations

import os

import pytest

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
