"""A runtime is declared in one place: its file says everything, and nothing else names it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import linkspan
from linkspan import runtimes as package
from linkspan.api import runtimes as api
from linkspan.core.config import Config
from linkspan.core.errors import Invalid
from linkspan.core.model import Endpoint, Network
from linkspan.runtimes import check_exposure, checks, exposure_files, exposure_problem, paths, runtimes
from linkspan.runtimes.base import Service
from support.records.replicas import network

SOURCES = Path(linkspan.__file__).parent
KIOSK = '''
from linkspan.core.states.programs import File
from linkspan.diagnose.doctor.checks import Check
from linkspan.runtimes.base import BaseRuntime, Service
from linkspan.shim import build


class Kiosk(Service):
    async def answer(self, path, body, pid, uid):
        return 200, b"kiosk"


class KioskRuntime(BaseRuntime):
    name = "kiosk"
    path = "/kiosk"
    installs = "Install the plugin of Kiosk."
    inspects = True
    checks = (("Kiosk", lambda asked, around: [Check("Kiosk", "ok", "it finds linkspan")]),)

    def serve(self, agent, registry, config):
        return Kiosk()

    def files(self, site):
        yield File(str(site.root / "usr/lib/kiosk/linkspan"), b"plugin", 0o755)

    def exposing(self, network, config):
        yield File(f"/etc/kiosk/{network.name}", b"")


RUNTIME = KioskRuntime()
'''
ALLOWED = {
    "core/config.py": "an operator's settings",
    "learn/sandbox.py": "what forbids namespaces on a machine",
    "core/model.py": "records of earlier versions have endpoints without an engine: they are Docker's",
    "core/states/host.py": "device names of other programs",
    "demo/by_hand.py": "why a host drops forwarded packets",
    "endpoints/reconstruction.py": "of an endpoint whose record is lost only this is known",
    "kernel/drivers/iptables.py": "whose rules are in the way",
    "kernel/probe/iptables_rules.py": "a chain of Docker's firewall",
    "kernel/probe/translators.py": "chains that lead to other programs' own bridges only",
    "store/records.py": "a claim has no engine, only the interface's name",
}
"""Files outside runtimes/ and shim/ that name a runtime, and why; CONTRIBUTING.md names the first."""


@pytest.fixture
def kiosk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder with a runtime that consists of its one file, beside the others."""
    (tmp_path / "kiosk.py").write_text(KIOSK)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    runtimes.cache_clear()
    yield tmp_path
    runtimes.cache_clear()
    if sys.modules.pop(f"{package.__name__}.kiosk", None) is not None:
        del vars(package)["kiosk"]


def test_every_runtime_is_found() -> None:
    """By its file or its folder, in the order of their names."""
    assert list(runtimes()) == ["cni", "docker", "podman"]
    assert paths() == {"/cni", "/podman"}


def test_a_runtime_in_one_file_is_answered_exposed_and_checked(kiosk: Path) -> None:
    """The agent's socket has its route, `--expose` its name, a network its file, and `doctor` its check."""
    assert kiosk.exists()
    assert "/kiosk" in paths()
    assert [route.path for route in api.routes({"kiosk": Service()})] == ["/v1/retire", "/kiosk"]
    shown = network(expose=("kiosk",))
    check_exposure(shown)
    assert [file.path for file in exposure_files(shown, Config())] == ["/etc/kiosk/demo"]
    assert "Kiosk" in dict(checks())


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("install --help", "Install the plugin of Kiosk."),
        ("install kiosk --help", "--root"),
        ("attach --help", "kiosk:NAME"),
        ("network create --help", "kiosk"),
    ],
)
def test_a_runtime_in_one_file_has_its_commands(tmp_path: Path, command: str, words: str) -> None:
    """The command line knows it, too."""
    (tmp_path / "kiosk.py").write_text(KIOSK)
    code = (
        "import sys; from linkspan import runtimes; "
        f"runtimes.__path__.append({str(tmp_path)!r}); sys.argv[1:] = {command.split()!r}; "
        "from linkspan.cli.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert words in " ".join(re.sub(r"[^\x20-\x7e]", " ", done.stdout).split())


def test_the_command_line_loads_no_part_of_the_agent() -> None:
    """It reads the declarations at each start, so they import only what is cheap."""
    code = "import sys, linkspan.cli.main; print({'asyncio', 'aiohttp', 'linkspan.kernel.worker'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def _said(tree: ast.AST) -> Iterator[str]:
    """Yield the names and the strings of a module, without its docstrings and comments."""
    told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
            yield node.value
        for field in ("id", "attr", "name", "arg", "module"):
            if isinstance(word := getattr(node, field, None), str):
                yield word


def test_nothing_else_names_a_runtime() -> None:
    """A file that does would have to be changed for the next runtime."""
    words = "|".join(runtimes())
    names = re.compile(rf"(?<![a-z])({words})(?![a-z])", re.IGNORECASE)
    naming = set()
    for path in SOURCES.rglob("*.py"):
        where = path.relative_to(SOURCES)
        if where.parts[0] not in ("runtimes", "shim") and any(map(names.search, _said(ast.parse(path.read_text())))):
            naming.add(str(where))
    assert naming == set(ALLOWED)


def test_a_network_is_exposed_to_runtimes_that_can_have_it_only() -> None:
    """A runtime may refuse a network, and an unknown name is refused with the known ones."""
    with pytest.raises(Invalid, match="runtime 'lxc' is unknown") as refused:
        check_exposure(network(expose=("docker", "lxc")))
    assert refused.value.hint == "give one of cni, docker, podman"
    with pytest.raises(Invalid, match="cannot be exposed to Docker without an IPv4 pool"):
        check_exposure(network(pool="fd00:1::/56", gateways=("fd00:1::1",), expose=("docker",)))


def test_a_runtime_of_a_newer_version_keeps_no_network_away() -> None:
    """Its network works on this host, which says that it is not exposed there."""
    newer = network(expose=("docker", "kiosk-2"))
    assert exposure_problem(newer) == "not exposed on this host, whose linkspan knows no runtime kiosk-2"
    assert exposure_problem(network(expose=("docker",))) == ""
    assert list(exposure_files(newer, Config())) == []


@pytest.mark.parametrize("name", ["../x", "Docker", "a\n", "x" * 33, "", "x y"])
def test_a_record_s_runtime_is_a_plain_word(name: str) -> None:
    """Another host wrote it, and it is shown to people in commands to type."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({**msgspec.to_builtins(network()), "expose": [name]}, Network)
    if name:
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert({"id": "c1", "ifname": "eth0", "network": "demo", "engine": name}, Endpoint)
