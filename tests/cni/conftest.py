"""Both forms of the plugin, and an agent for it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from linkspan.shim import build
from support.cni.agent_server import AgentServer
from support.cni.plugin_runs import Plugin, compiled


@pytest.fixture(scope="session")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the paths of the forms that could be made."""
    return {"folder": tmp_path_factory.mktemp("plugins")}


@pytest.fixture(params=["c", "python"])
def form(request: pytest.FixtureRequest, forms: dict[str, Path]) -> Path:
    """Each form of the plugin."""
    if request.param not in forms:
        path = forms["folder"] / request.param
        if request.param == "c":
            compiled(path, "-O2")
        else:
            path.write_bytes(build.script(sys.executable))
            path.chmod(0o755)
        forms[request.param] = path
    return forms[request.param]


@pytest.fixture
def plugin(form: Path, tmp_path: Path) -> Plugin:
    """One form of the plugin, whose agent is down."""
    return Plugin(form, tmp_path / "agent.sock")


@pytest.fixture
def agent(plugin: Plugin) -> Iterator[AgentServer]:
    """Serve as an agent that answers 200 and nothing else."""
    with AgentServer(plugin.socket) as server:
        yield server
