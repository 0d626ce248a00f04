"""`linkspan bgp peers`: the warning about a mesh that is too large."""

from __future__ import annotations

from typing import Any

import pytest

from linkspan.api.client import Client
from linkspan.cli.bgp import peers
from linkspan.cli.output import Format


def _session(number: int, *, mesh: bool) -> dict[str, Any]:
    """Return a session with host N, as the agent tells it."""
    numbers = dict.fromkeys(("sent", "received", "accepted", "filtered"), 1)
    return {
        "peer": f"h{number}", "mesh": mesh, "address": "192.0.2.2", "local_as": 64512, "remote_as": 64512,
        "state": "established", "since": 0.0, "filtered_by": {}, "why": "", **numbers,
    }  # fmt: skip


@pytest.mark.parametrize(("mesh", "others", "warned"), [(99, 50, False), (100, 0, True)])
def test_a_mesh_of_more_than_a_hundred_hosts_is_warned_of(
    mesh: int, others: int, warned: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """This host is one of the mesh; configured peers are not. The JSON stays a list of sessions."""
    found = [_session(n, mesh=n < mesh) for n in range(mesh + others)]
    monkeypatch.setattr(Client, "call", lambda *_words: found)
    peers(Format.TABLE, "/nowhere")
    said = " ".join(capsys.readouterr().out.split())
    assert (f"warning: {mesh + 1} hosts form a full mesh, and each has {mesh} BGP sessions" in said) is warned
    assert ("linkspan host set --all bgp.mesh=false" in said) is warned
    peers(Format.JSON, "/nowhere")
    assert "warning" not in capsys.readouterr().out
