"""Users besides root who may change what root runs: on every way to it."""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path

import pytest

from linkspan.kernel.io import private_files
from linkspan.kernel.io.private_files import machines_root, writers

pytestmark = pytest.mark.root


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """Return a folder with a program that somebody else owns, behind links that only root may change."""
    for folder in ("opt", "srv/tools/bin", "srv/tools/lib"):
        (tmp_path / folder).mkdir(mode=0o755, parents=True)
    program = tmp_path / "srv/tools/lib/etcd"
    program.write_text("")
    program.chmod(0o755)
    os.chown(program, 528287, 0)
    (tmp_path / "srv/tools/bin/etcd").symlink_to("../lib/etcd")
    (tmp_path / "opt/bin").symlink_to(tmp_path / "srv/tools/bin")
    return tmp_path


def test_a_link_leads_on_from_the_folder_in_which_it_is(there: Path) -> None:
    """Not from the one by which it was found: opt/lib does not exist."""
    assert [*writers([there / "opt/bin/etcd"])] == [f"{there}/srv/tools/bin/../lib/etcd is owned by user 528287"]


def test_a_relative_path_is_checked_up_to_the_root(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner of a folder above can put another one in its place."""
    os.chown(there / "srv/tools/lib/etcd", 0, 0)
    assert [*writers([there / "opt/bin/etcd"])] == []
    os.chown(there / "srv", 528287, 0)
    monkeypatch.chdir(there / "srv/tools/lib")
    assert [*writers([Path("etcd")])] == [f"{there}/srv is owned by user 528287"]


def test_links_that_lead_to_each_other_end(there: Path) -> None:
    """By other names for the same folder, too."""
    (there / "opt/one").symlink_to("x/../two")
    (there / "opt/two").symlink_to("x/../one")
    (there / "opt/x").symlink_to(".")
    assert [*writers([there / "opt/one"])] == []


STAFF = 528288


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a program in a folder of the group staff, in which nobody is by all that can be listed."""
    group = grp.struct_group(("staff", "x", STAFF, []))
    alice = pwd.struct_passwd(("alice", "x", 1000, 100, "", "/home/alice", "/bin/sh"))
    monkeypatch.setattr(grp, "getgrgid", lambda _: group)
    monkeypatch.setattr(pwd, "getpwall", lambda: [alice])
    monkeypatch.setattr(os, "getgrouplist", lambda _, primary: [primary])
    monkeypatch.setattr(private_files, "_SOURCES", tmp_path / "nsswitch.conf")
    program = tmp_path / "bin/etcd"
    program.parent.mkdir()
    program.write_text("")
    os.chown(program.parent, 0, STAFF)
    program.parent.chmod(0o2775)
    return program


@pytest.mark.parametrize(
    ("name", "members", "primary", "refused"),
    [
        ("staff", [], 100, False),
        ("staff", ["alice"], 100, True),
        ("staff", [], STAFF, True),
        ("mail", [], 100, True),  # setgid programs write as this group
    ],
)
def test_debians_group_of_usr_local_may_write_while_nobody_is_in_it(
    shared: Path, monkeypatch: pytest.MonkeyPatch, name: str, members: list[str], primary: int, refused: bool
) -> None:
    """Its folders are root:staff 2775, and whoever is in that group may change what root runs."""
    group = grp.struct_group((name, "x", STAFF, members))
    alice = pwd.struct_passwd(("alice", "x", 1000, primary, "", "/home/alice", "/bin/sh"))
    monkeypatch.setattr(grp, "getgrgid", lambda _: group)
    monkeypatch.setattr(pwd, "getpwall", lambda: [alice])
    assert [*writers([shared])] == ([f"{shared.parent} may be written by group {name}"] if refused else [])


def test_a_user_whose_groups_only_the_user_says_is_in_it(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The group itself does not list a user of systemd's homes."""
    monkeypatch.setattr(os, "getgrouplist", lambda name, primary: [primary, STAFF] if name == "alice" else [primary])
    assert [*writers([shared])] == [f"{shared.parent} may be written by group staff"]


@pytest.mark.parametrize(
    ("sources", "service"),
    [
        ("passwd: files systemd\ngroup: files [SUCCESS=merge] systemd  # ldap\nhosts: files dns\n", ""),
        ("passwd: files\ngroup: files [NOTFOUND=continue SUCCESS=continue] sss\n", "sss"),
        ("passwd:files ldap\ngroup: files\n", "ldap"),
        ("passwd: files\ngroup: files\ninitgroups: files winbind\n", "winbind"),
    ],
)
def test_a_directory_service_may_have_users_in_it_whom_nobody_lists(
    shared: Path, tmp_path: Path, sources: str, service: str
) -> None:
    """Such services list no users, and a group that a file has, too, has the file's users alone."""
    (tmp_path / "nsswitch.conf").write_text(sources)
    words = f"{shared.parent} may be written by group staff, and {service} may say that users are in it"
    assert [one.partition(" (")[0] for one in writers([shared])] == ([words] if service else [])


@pytest.mark.parametrize(
    ("mapped", "is_root"), [("0 0 4294967295", True), ("0 1000 1", False), (None, True)], ids=["all", "one", "no file"]
)
def test_a_kernel_without_user_namespaces_has_one_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mapped: str | None, is_root: bool
) -> None:
    """It has no file that says which users a process's are."""
    file = tmp_path / "uid_map"
    if mapped is not None:
        file.write_text(f"         {mapped}\n")
    monkeypatch.setattr(private_files, "_UID_MAP", file)
    assert machines_root() is is_root
