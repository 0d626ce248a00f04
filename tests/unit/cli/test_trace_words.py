"""Last lines of `linkspan trace`."""

from __future__ import annotations

import base64
import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import typer

from linkspan.api.client import Client
from linkspan.cli import trace
from linkspan.cli.output import Format
from linkspan.core.errors import Invalid, LinkspanError


def _hop(action: str) -> dict[str, Any]:
    return {"host": "h1", "namespace": "host", "device": "", "port": "", "action": action, "seen": None, "mtu": 1500,
            "detail": "", "headers": []}  # fmt: skip


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            {"verdict": "unknown", "unknown": [{"at": "h2/host", "why": "it is silent"}], "broken_at": None},
            "unknown whether it is reachable; packets may pass nevertheless:\n  at h2/host: it is silent\n",
        ),
        (
            {"verdict": "broken", "unknown": [], "broken_at": "h2/host", "reason": "it is silent"},
            "broken at h2/host: it is silent\n",
        ),
    ],
)
def test_a_way_of_which_nobody_tells_is_not_called_broken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, found: dict[str, Any], said: str
) -> None:
    """The data path needs neither agents nor a controller, so their silence decides nothing; the exit code is 3."""
    found = found | {"reachable": False, "hops": [_hop("left")], "reply_hops": []}
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(Client, "call", lambda *words: found)
    with pytest.raises(typer.Exit) as ended:
        trace.trace("c1", "c2", "", False, Format.TABLE, "/run/no.sock")
    assert ended.value.exit_code == 3
    assert capsys.readouterr().out.endswith(said)


UNKNOWN = {"verdict": "unknown", "unknown": [{"at": "h1/host", "why": "a program decides"}], "broken_at": None,
           "reachable": False, "path_mtu": 1500, "reason": "a program decides", "hops": [_hop("left")],
           "reply_hops": []}  # fmt: skip
PROVED = UNKNOWN | {"verdict": "reachable", "unknown": [], "reachable": True, "reason": "a real packet was answered"}


@pytest.mark.parametrize(
    ("user", "asked", "said"),
    [
        (0, ["GET", "POST"], "reachable, with packets of up to 1500 bytes\nnote: a real packet was answered\n"),
        (1000, ["GET"], "  at h1/host: a program decides\n"),
    ],
)
def test_where_the_walk_does_not_tell_root_sends_a_packet(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, user: int, asked: list[str], said: str
) -> None:
    """Others may only look."""
    methods = []

    def call(_client: object, method: str, _url: str) -> dict[str, Any]:
        methods.append(method)
        return UNKNOWN if method == "GET" else PROVED

    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(Client, "call", call)
    with contextlib.suppress(typer.Exit):
        trace.trace("c1", "c2", "", False, Format.TABLE, "/run/no.sock")
    assert methods == asked
    assert capsys.readouterr().out.endswith(said)


def test_a_walk_that_no_packet_can_decide_stays_unknown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A packet that cannot be sent changes nothing in the walk's result."""

    def call(_client: object, method: str, _url: str) -> dict[str, Any]:
        if method == "POST":
            raise Invalid("192.0.2.2 is not on this host")
        return UNKNOWN

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(Client, "call", call)
    with pytest.raises(typer.Exit):
        trace.trace("192.0.2.2", "c2", "", False, Format.TABLE, "/run/no.sock")
    assert "unknown whether it is reachable" in capsys.readouterr().out


@pytest.mark.parametrize("listens", [True, False, None])
def test_the_last_line_says_that_nothing_listens(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, listens: bool | None
) -> None:
    """The packet arrives, and nobody takes the connection; None is a ping, or unknown."""
    monkeypatch.setattr(Client, "call", lambda *_words: PROVED | {"listens": listens})
    trace.trace("c1", "c2", "81/tcp", False, Format.TABLE, "/run/no.sock")
    last = capsys.readouterr().out.splitlines()[-1]
    said = last == "note: nothing listens on port 81/tcp there: start the service, or correct --port"
    assert said is (listens is False)


def test_a_capture_is_written_and_is_no_part_of_the_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A packet is sent for it, as for a live trace."""
    answers = {"GET": UNKNOWN, "POST": PROVED | {"pcap": base64.b64encode(b"packets").decode()}}
    monkeypatch.setattr(Client, "call", lambda _client, method, _url: answers[method])
    file = tmp_path / "one.pcapng"
    trace.trace("c1", "c2", "", False, Format.JSON, "/run/no.sock", file)
    assert file.read_bytes() == b"packets"
    assert json.loads(capsys.readouterr().out) == PROVED


@pytest.mark.parametrize(
    ("more", "name", "said"),
    [
        ({"pcap": "eHg="}, "missing/one.pcapng", "cannot write .*one.pcapng: No such file or directory"),
        ({}, "one.pcapng", "this host's agent is older, and captures nothing"),
    ],
)
def test_a_capture_that_cannot_be_written_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, str], name: str, said: str
) -> None:
    """It says why: the file, or an agent of the release before."""
    monkeypatch.setattr(Client, "call", lambda *words: PROVED | more)
    with pytest.raises(LinkspanError, match=said):
        trace.trace("c1", "c2", "", False, Format.JSON, "/run/no.sock", tmp_path / name)
