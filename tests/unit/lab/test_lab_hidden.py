"""A lab of another user's: what cannot be checked is not called dead."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from linkspan.cli import lab
from linkspan.cli.output import Format
from linkspan.core.errors import Denied
from linkspan.lab import record, topology


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> record.Lab:
    """Give a lab with a router and controllers, as a file: none of its processes runs."""
    monkeypatch.setattr(record, "LABS", tmp_path)
    found = topology.planned(topology.Wishes(lab="theirs", backend="sdn", hosts=2))
    found.save()
    return found


def test_processes_of_another_user_are_unknown(
    made: record.Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For their owner they are dead; for another user their state is unknown."""
    assert {host["agent"] for host in lab._described(made)["hosts"]} == {"dead"}
    monkeypatch.setattr(os, "geteuid", lambda: made.folder.stat().st_uid + 1)
    told = lab._described(made)
    assert {host["agent"] for host in told["hosts"]} == {"unknown: permission denied"}
    assert [one["alive"] for one in told["controllers"]] == [None]
    lab._show(made, Format.TABLE)
    said = capsys.readouterr().out
    assert "dead" not in said
    assert said.count("unknown: permission denied") == 3


def test_its_namespaces_are_not_entered(made: record.Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the refused command, the lab and its owner."""
    made.require_own("test")
    monkeypatch.setattr(os, "geteuid", lambda: made.folder.stat().st_uid + 1)
    with pytest.raises(Denied, match="test: lab theirs is") as refused:
        lab.try_("theirs", Format.TABLE)
    assert "sudo" in refused.value.hint
