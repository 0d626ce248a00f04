"""scripts/shape.py: what it finds in a project that has lost its shape."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "shape.py"


@pytest.fixture
def shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Give the script, looking at an empty project."""
    spec = importlib.util.spec_from_file_location("shape", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "SOURCE", tmp_path / "src" / "linkspan")
    return module


@pytest.fixture
def complaints(shape: ModuleType) -> Callable[[str, str], list[str]]:
    """Give what it says of a project with this one file."""

    def of(name: str, text: str) -> list[str]:
        path = shape.ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return list(shape.complaints())

    return of


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("kernel/drivers/routes.py", "from linkspan.endpoints import registry"),
        ("kernel/drivers/links.py", "from linkspan.backends import vxlan"),
        ("kernel/io/netlink.py", "from linkspan.kernel.drivers import links"),
        ("kernel/probe/underlay.py", "from linkspan.kernel.drivers.routes import default_link"),
        ("kernel/probe/underlay.py", "from linkspan.kernel.local_host import LocalHost"),
        ("kernel/drivers/links.py", "from linkspan.kernel.machine import Machine"),
        ("kernel/local_host.py", "from linkspan.kernel.kinds import kinds"),
        ("core/model.py", "import linkspan.kernel.io.netlink"),
        ("core/reconcile.py", "from linkspan.agent import agent"),
        ("agent/status.py", "if TYPE_CHECKING:\n    from linkspan.api.app import App"),
        ("backends/bridge.py", "def f():\n    from linkspan.kernel.drivers import links"),
        ("diagnose/trace/walk.py", "from linkspan.diagnose.doctor.checks import Check"),
        ("diagnose/trace/walk.py", "from linkspan.backends import vxlan"),
        ("diagnose/trace/walk.py", "from linkspan.kernel.io.netlink import Socket"),
        ("lab/build.py", "from linkspan.daemon import main"),
        ("lab/build.py", "from linkspan.sundries import some"),
        ("ipip_endpoint.py", "from linkspan.core import addresses"),
        ("ipip_endpoint.py", "import msgspec"),
        ("shim/linkspan_cni.py", "import aiohttp"),
        ("shim/build.py", "from linkspan.core import errors"),
        ("daemon.py", "from linkspan.lab import build"),
        ("backends/bridge.py", "import socket"),
        ("backends/bridge.py", "import tempfile"),
        ("backends/bridge.py", "from linkspan.core.database import opened"),
        ("backends/bridge.py", "from linkspan.core.extensions import extended"),
        ("backends/bgp/backend.py", "from os import path"),
        ("backends/bridge.py", "x = open('/etc/hosts')"),
        ("agent/agent.py", "from . import plans"),
        ("sundries.py", ""),
        ("sundries/some.py", "import os"),
    ],
)
def test_finds_what_goes_upwards(complaints: Callable[[str, str], list[str]], name: str, line: str) -> None:
    """An import from above or beside, I/O in a backend, a relative import, no folder: one complaint each."""
    (complaint,) = complaints(f"src/linkspan/{name}", line)
    assert complaint.startswith(f"src/linkspan/{name}")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("endpoints/attach.py", "from linkspan.kernel.io import namespaces\nfrom linkspan import __version__"),
        ("kernel/drivers/routes.py", "import socket\nfrom linkspan.core.states.host import Route"),
        ("kernel/machine.py", "from linkspan.kernel.drivers.links import LinkDriver"),
        ("kernel/drivers/links.py", "from linkspan.kernel.local_host import LocalHost"),
        ("kernel/drivers/sysctl.py", "from linkspan.kernel.probe.forwarders import present"),
        ("cli/main.py", "from linkspan.agent.agent import Agent"),
        ("backends/bridge.py", "import hashlib\nfrom linkspan.core.states.host import Bridge"),
        ("backends/__init__.py", "from linkspan.core.extensions import extended"),
        ("daemon.py", "from linkspan.api.server import serving"),
        ("ipip_endpoint.py", "import mmap"),
        ("shim/build.py", "import marshal\nfrom linkspan.shim import linkspan_cni"),
    ],
)
def test_lets_pass_what_goes_downwards(complaints: Callable[[str, str], list[str]], name: str, line: str) -> None:
    """Imports of the same folder and of those below are as they should be."""
    assert complaints(f"src/linkspan/{name}", line) == []


PICTURE = """
## The folders
```
 demo  lab    how do I try it?
 store        what is kept?  |  kernel: what is here?
                             |  kernel/io: netlink
 diagnose     doctor: why?   |  plan: what? trace: where?
```
### Where
"""


def test_the_picture_has_the_folders_as_the_script_has_them(
    shape: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In columns, beside each other, and inside another one; what is missing, too much or out of order is named."""
    names = ("demo", "lab", "store kernel", "kernel/io", "diagnose/doctor diagnose/plan diagnose/trace")
    for levels, wrong in (
        (names, []),
        ((*names, "core"), ["core is not in the picture of the folders"]),
        (names[1:], ["demo is no folder, but in the picture of the folders"]),
        (names[::-1], ["the picture has the folders in another order than LEVELS in scripts/shape.py"]),
    ):
        known = {folder: level for level, folders in enumerate(levels) for folder in folders.split()}
        monkeypatch.setattr(shape, "LEVEL", known)
        assert [line.removeprefix("ARCHITECTURE.md: ") for line in shape.unlike_the_picture(PICTURE)] == wrong


def test_finds_a_circle_of_files(complaints: Callable[[str, str], list[str]]) -> None:
    """Three files of one folder that import each other in turn, one of them for types only: one complaint."""
    assert complaints("src/linkspan/cluster/leases.py", "from linkspan.cluster import blocks") == []
    assert complaints("src/linkspan/cluster/blocks.py", "from linkspan.cluster.peers import Peers") == []
    (complaint,) = complaints(
        "src/linkspan/cluster/peers.py", "if TYPE_CHECKING:\n    from linkspan.cluster.leases import Leases"
    )
    names = ("blocks", "peers", "leases", "blocks")
    assert complaint == "a circle of imports: " + " -> ".join(f"linkspan.cluster.{name}" for name in names)


OWNER = """
class Registry:
    def __init__(self):
        self.pools = {}

class Fight(Struct):
    pause: float = 0
"""


@pytest.mark.parametrize(
    "line",
    ["registry.pools = {}", "self._registry.pools = {}", "registry.pools, x = {}, 1", "registry.pools |= {}"],
)
def test_finds_an_attribute_that_is_set_from_outside(complaints: Callable[[str, str], list[str]], line: str) -> None:
    """A parameter's, or that of a part; the complaint has the line."""
    (complaint,) = complaints("src/linkspan/endpoints/update.py", f"{OWNER}\ndef follow(self, registry):\n    {line}\n")
    assert complaint.startswith("src/linkspan/endpoints/update.py:10: sets ")


@pytest.mark.parametrize(
    "line",
    [
        "self.pools = {}",
        "fight.pause = 1",
        "made = Registry(); made.pools = {}",
        "context.check_hostname = False",
        "registry.follow({})",
        "def later(self): self.pools = {}",
    ],
)
def test_lets_pass_what_is_set_by_its_owner(complaints: Callable[[str, str], list[str]], line: str) -> None:
    """The own object, a record, an object made in the function and a library's object may be set."""
    assert complaints("src/linkspan/endpoints/update.py", f"{OWNER}\ndef follow(self, registry):\n    {line}\n") == []


def test_finds_a_folder_too_many(
    complaints: Callable[[str, str], list[str]], shape: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of folders is bounded; those inside a folder do not count."""
    monkeypatch.setattr(shape, "FOLDERS", 1)
    assert complaints("src/linkspan/kernel/io/netlink.py", "") == []
    assert complaints("src/linkspan/core/model.py", "") == ["src/linkspan: 2 folders, more than 1"]


def test_finds_a_unit_test_that_mirrors_no_folder(complaints: Callable[[str, str], list[str]]) -> None:
    """Only the modules beside the folders have their tests beside the folders of tests."""
    for name in ("store/test_replica.py", "scripts/test_shape.py", "bench/test_call_times.py", "test_ipip_endpoint.py"):
        assert complaints(f"tests/unit/{name}", "") == []
    (complaint,) = complaints("tests/unit/test_leases.py", "")
    assert complaint.startswith("tests/unit/test_leases.py: ")


def test_finds_helpers_of_tests_outside_their_folder(complaints: Callable[[str, str], list[str]]) -> None:
    """A helper is in tests/support, and no test file is another one's helper."""
    for name in ("lab/conftest.py", "support/lab/lab_runs.py"):
        assert complaints(f"tests/{name}", "") == []
    (complaint,) = complaints("tests/lab/clusters.py", "")
    assert complaint == "tests/lab/clusters.py: what tests import is in tests/support"


def test_finds_a_test_file_that_another_imports(complaints: Callable[[str, str], list[str]]) -> None:
    """The complaint has the line of the import."""
    (complaint,) = complaints("tests/lab/test_it.py", "import os\nfrom test_other import Run\n")
    assert complaint == "tests/lab/test_it.py:2: imports test_other; put what both use into tests/support"


@pytest.mark.parametrize("suffix", ["py", "c"])
def test_finds_a_file_that_is_too_long(
    complaints: Callable[[str, str], list[str]], shape: ModuleType, suffix: str
) -> None:
    """A file of 700 lines passes; one line more is a complaint that names the file and the limit."""
    assert complaints(f"bench/long.{suffix}", "\n" * 700) == []
    (complaint,) = complaints(f"bench/long.{suffix}", "\n" * 701)
    assert complaint == f"bench/long.{suffix}: 701 lines, more than 700: split it along a noun"
    assert shape.lengths() == [(701, shape.ROOT / "bench" / f"long.{suffix}")]


def test_finds_test_files_of_one_name(complaints: Callable[[str, str], list[str]]) -> None:
    """Pytest refuses to import the second one, and a run without its folder would not notice."""
    assert complaints("tests/lab/test_it.py", "") == []
    (complaint,) = complaints("tests/unit/lab/test_it.py", "")
    assert complaint == "tests/unit/lab/test_it.py: named as tests/lab/test_it.py, and pytest imports one of them"


def test_finds_paths_of_a_machine(complaints: Callable[[str, str], list[str]], tmp_path: Path) -> None:
    """A path into the checkout's folder, or into a user's home, is found with its line."""
    found = complaints("README.md", f"\nsee {tmp_path.parent}/other\nand /home/" + "jo/x\n")
    assert [complaint.split(":")[:2] for complaint in found] == [["README.md", "2"], ["README.md", "3"]]


@pytest.mark.parametrize("name", ["kernel/gone", "kernel/drivers/gone.py", "docs/gone.md"])
def test_finds_a_name_of_a_file_that_is_gone(complaints: Callable[[str, str], list[str]], name: str) -> None:
    """A page or a comment that names a file leads there, or does not pass."""
    own = "docs/page.md"
    told = complaints(own, f"The file `{name}` says more than `{own}`.\n")
    assert told == [f"docs/page.md:1: names {name}, which does not exist"]


def test_finds_a_module_that_the_page_does_not_name_and_one_that_is_gone(shape: ModuleType, tmp_path: Path) -> None:
    """In folders, in those inside them, and beside them."""
    for name in ("fresh.py", "kernel/__init__.py", "kernel/late.py", "kernel/io/__init__.py", "kernel/io/batch.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    listed = "### flat\n`old`\n\n### `kernel/io/` (all)\n`batch` and\n`gone`\n"
    page = f"\n## Every module\n{listed}\n## More\n### flat\n`fresh`\n"
    assert [line.split()[1:3] for line in shape.unnamed(page, tmp_path)] == [
        ["fresh", "is"], ["old", "is"], ["kernel/late", "is"], ["kernel/io/gone", "is"],
    ]  # fmt: skip


def test_names_the_longest_chain_of_imports(shape: ModuleType) -> None:
    """A newcomer who follows the imports reads so many files at most."""
    below = {"a": ["b", "c"], "b": ["c"], "c": [], "d": ["c"]}
    assert shape.longest_chain(below) == ("a", "b", "c")
    assert shape.longest_chain({}) == ()
