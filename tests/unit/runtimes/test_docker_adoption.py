"""Adoptions that fail or are continued while linkspan has a network of the same name, with an engine in memory."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
from typer.testing import CliRunner

from linkspan.cli.main import app
from linkspan.core.errors import Conflict, LinkspanError, NotFound, Unavailable
from linkspan.runtimes import runtimes
from linkspan.runtimes.adoption.bridge_adopter import BridgeAdopter, adopted
from linkspan.runtimes.docker.docker_adoption import DockerBridges
from linkspan.runtimes.docker.docker_adoption_plan import Container, Described
from linkspan.runtimes.docker.docker_engine import Engine, Listed

T = TypeVar("T")
POOL = "172.31.0.0/16"


class MemoryEngine(Engine):
    """An engine with one network and no container."""

    def __init__(self) -> None:
        super().__init__("")
        self.told: list[dict[str, Any]] = [
            {"Id": "1", "Name": "shop", "Driver": "bridge", "IPAM": {"Config": [{"Subnet": POOL}]}}
        ]
        self.fails = False
        self.late: dict[str, Any] | None = None

    @property
    def drivers(self) -> list[str]:
        """Return the networks' drivers."""
        return [one["Driver"] for one in self.told]

    async def described(self, kind: type[T]) -> list[T]:
        """Return the networks, from the next call on also the one that is created ``late``."""
        late, self.late = self.late, None
        try:
            return self._told(kind)
        finally:
            self.told += [late] if late else []

    def _told(self, kind: type[T]) -> list[T]:
        return msgspec.convert(self.told, list[kind])  # type: ignore[valid-type]

    async def containers(self) -> list[Listed]:
        """Return no container."""
        return []

    async def delete(self, network: str) -> None:
        """Delete a network."""
        self.told = [one for one in self.told if one["Id"] != network]

    async def create(self, wish: Mapping[str, object]) -> None:
        """Create a network, unless ``fails``, or one of this name exists."""
        if self.fails:
            raise Unavailable("the engine ends")
        if any(one["Name"] == wish["Name"] for one in self.told):
            raise Unavailable("network with this name already exists")
        self.told.append({"Id": "2", **wish})


class MemoryAgent:
    """An agent with networks, by name with their pools; ``lives`` is how many calls it still answers."""

    def __init__(self, lives: int = 1000) -> None:
        self.networks: dict[str, list[str]] = {}
        self.lives = lives

    def __call__(self, method: str, url: str, body: Any = None) -> Any:
        """Answer what an adoption asks."""
        self.lives -= 1
        if self.lives < 0:
            raise Unavailable("no agent answers")
        name = url.rpartition("/")[2]
        if (method, url) == ("GET", "/v1/networks"):
            return [{"name": name, "pools": pools} for name, pools in self.networks.items()]
        if (method, url) == ("GET", "/v1/endpoints"):
            return []
        if method == "POST":
            self.networks[body["name"]] = body["pools"]
            return None
        if method == "DELETE" and name in self.networks:
            del self.networks[name]
            return None
        raise NotFound(f"{method} {url}")


@pytest.fixture
def engine() -> MemoryEngine:
    """Return an engine with the bridge network shop."""
    return MemoryEngine()


def _adopter(engine: Engine, agent: MemoryAgent, folder: Path) -> BridgeAdopter[Described, Container]:
    (folder / "plugin").touch()
    return BridgeAdopter(DockerBridges(engine, folder / "plugin"), folder, agent)


def _killed(engine: MemoryEngine, folder: Path) -> None:
    """Leave an adoption that has removed Docker's network, and made none of linkspan's."""
    engine.fails = True
    with pytest.raises(LinkspanError):
        _adopter(engine, MemoryAgent(lives=1), folder).adopt("shop", slow=False)
    engine.fails = False
    assert engine.drivers == []


def test_the_network_is_given_back_without_the_agent(engine: MemoryEngine, tmp_path: Path) -> None:
    """It has ended after the first look: no network of linkspan's was made, so there is none to delete."""
    with pytest.raises(Unavailable, match="stays Docker's bridge"):
        _adopter(engine, MemoryAgent(lives=1), tmp_path).adopt("shop", slow=False)
    assert engine.drivers == ["bridge"]
    assert adopted(DockerBridges.file, tmp_path) == frozenset()


@pytest.mark.parametrize("pool", ["10.9.0.0/16", POOL], ids=["other pool", "same pool"])
def test_a_network_made_meanwhile_is_neither_taken_nor_deleted(
    engine: MemoryEngine, tmp_path: Path, pool: str
) -> None:
    """Somebody made it while an adoption was interrupted: it stays, both onwards and backwards."""
    _killed(engine, tmp_path)
    agent = MemoryAgent()
    agent.networks["shop"] = [pool]
    adopter = _adopter(engine, agent, tmp_path)
    with pytest.raises(Conflict, match="linkspan has a network of this name"):
        adopter.adopt("shop", slow=False)
    assert adopter.preview("shop").done == ()
    adopter.undo("shop")
    assert agent.networks == {"shop": [pool]}
    assert engine.drivers == ["bridge"]


def test_another_bridge_of_the_name_is_neither_removed_nor_forgotten(engine: MemoryEngine, tmp_path: Path) -> None:
    """Compose made it while an adoption was interrupted: that one is for the network before, and can be forgotten."""
    _killed(engine, tmp_path)
    other = {"Id": "9", "Name": "shop", "Driver": "bridge", "IPAM": {"Config": [{"Subnet": "10.9.0.0/24"}]}}
    engine.told = [other]
    agent = MemoryAgent()
    adopter = _adopter(engine, agent, tmp_path)
    for call in (functools.partial(adopter.adopt, slow=False), adopter.preview, adopter.undo):
        with pytest.raises(Conflict, match="another one") as refused:
            call("shop")
        assert "--confirm" in refused.value.hint
    assert engine.told == [other]
    adopter.confirm("shop")
    assert "10.9.0.0/24" in adopter.adopt("shop", slow=False).done[0].what
    engine.told = [other]  # somebody removed linkspan's, and this adoption is finished
    agent.networks.clear()
    assert "10.9.0.0/24" in adopter.preview("shop").done[0].what
    adopter.undo("shop")
    assert engine.told[0]["IPAM"]["Config"][0]["Subnet"] == "10.9.0.0/24"


def test_the_same_bridge_made_anew_is_adopted_and_given_back_as_it_is_now(engine: MemoryEngine, tmp_path: Path) -> None:
    """With its labels of today. An adoption that is not finished and could be is not forgotten."""
    _killed(engine, tmp_path)
    adopter = _adopter(engine, MemoryAgent(), tmp_path)
    with pytest.raises(Conflict, match="not finished"):
        adopter.confirm("shop")
    engine.told = [
        {"Id": "9", "Name": "shop", "Driver": "bridge", "IPAM": {"Config": [{"Subnet": POOL}]}, "Labels": {"a": "b"}}
    ]
    adopter.adopt("shop", slow=False)
    adopter.undo("shop")
    assert (engine.drivers, engine.told[0]["Labels"]) == (["bridge"], {"a": "b"})


def test_a_killed_adoption_is_undone_while_no_agent_answers(
    engine: MemoryEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command takes the state folder from the settings; without one it says so."""
    _killed(engine, tmp_path)
    settings = tmp_path / "agent.toml"
    settings.write_text(f'state_dir = "{tmp_path}"\n')
    docker = runtimes()["docker"]
    monkeypatch.setattr(type(docker), "adopter", lambda _, found, ask: _adopter(engine, ask, Path(found.state_dir)))
    monkeypatch.setattr("linkspan.cli.adopt.require_root", lambda: None)
    words = ["adopt", "docker", "shop", "--undo", "--config", str(settings), "--socket", str(tmp_path / "none")]
    done = CliRunner().invoke(app(["adopt"]), words)
    assert (done.exit_code, engine.drivers) == (0, ["bridge"]), done.output


def test_a_network_that_the_engine_creates_after_all_is_removed(
    engine: MemoryEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request timed out, and the bridge must come back."""
    create = engine.create

    async def slowly(wish: Mapping[str, object]) -> None:
        if wish["Driver"] == "linkspan":
            engine.late = {"Id": "3", **wish}
            raise Unavailable("timed out")
        await create(wish)

    monkeypatch.setattr(engine, "create", slowly)
    agent = MemoryAgent()
    with pytest.raises(Unavailable, match="stays Docker's bridge"):
        _adopter(engine, agent, tmp_path).adopt("shop", slow=False)
    assert (engine.drivers, agent.networks) == (["bridge"], {})


def test_undo_deletes_the_network_that_the_adoption_made(engine: MemoryEngine, tmp_path: Path) -> None:
    """It is known as such when an interrupted adoption is continued, too."""
    agent = MemoryAgent()
    adopter = _adopter(engine, agent, tmp_path)
    engine.fails = True
    with pytest.raises(Unavailable, match="the engine ends"):
        adopter.adopt("shop", slow=False)
    assert agent.networks == {}
    engine.fails = False
    assert adopter.adopt("shop", slow=False).left == ()
    assert (engine.drivers, agent.networks) == (["linkspan"], {"shop": [POOL]})
    adopter.undo("shop")
    assert (engine.drivers, agent.networks) == (["bridge"], {})
