"""Checks of `doctor` for each runtime, read from files below a folder of the test's own."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from linkspan.core.model import Network
from linkspan.diagnose.doctor.checks import Check, Look, Surroundings
from linkspan.runtimes import runtimes
from linkspan.runtimes.cni import runtime as cni
from linkspan.runtimes.docker import runtime as docker
from linkspan.runtimes.podman import runtime as podman
from support.diagnose.empty_host import EmptyHost

EXPOSED = Network(
    name="demo",
    pools=("10.77.0.0/16",),
    subnet_len={"4": 24},
    backend="vxlan",
    mtu=1450,
    expose=("docker", "podman"),
)


@pytest.fixture
def root() -> Iterator[Path]:
    """Return a machine's root, with all runtimes installed (short: a socket's path has at most 107 bytes)."""
    with tempfile.TemporaryDirectory(prefix="lke") as folder:
        for program in ("sbin/dockerd", "bin/podman", "bin/containerd"):
            put(Path(folder), f"usr/{program}")
        yield Path(folder)


def put(root: Path, path: str, text: str = "", mode: int = 0o755) -> None:
    """Write a file."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(mode)


def only(check: Look, root: Path, *networks: Network) -> Check:
    """Return the one finding of a check."""
    (found,) = check(EmptyHost(), Surroundings(networks, root=root))
    return found


def test_a_runtime_that_is_not_installed_is_not_spoken_of(tmp_path: Path) -> None:
    """Nobody wants to read of Podman on a host without it."""
    around = Surroundings([EXPOSED], root=tmp_path)
    for check in (docker.found, podman.found, cni.containerd):
        assert list(check(EmptyHost(), around)) == []


@pytest.mark.parametrize("name", ["docker", "podman"])
def test_a_runtime_that_is_not_set_up_is_a_fault_only_for_an_exposed_network(root: Path, name: str) -> None:
    """The command that sets it up is named in both cases."""
    ((_, check),) = runtimes()[name].checks
    for networks, status in (((), "skip"), ((EXPOSED,), "fail")):
        found = only(check, root, *networks)
        assert (found.status, found.fix) == (status, f"linkspan install {name}")
    assert "demo is exposed to it" in found.detail


def test_docker_s_plugin_socket_must_have_a_listener(root: Path) -> None:
    """A socket without a listener is distinguished from one with the agent behind it."""
    path = root / docker.LISTENING.path.lstrip("/")
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        assert only(docker.found, root).status == "ok"
    found = only(docker.found, root)
    assert found.status == "fail"
    assert "Connection refused" in found.detail
    assert "restart" in found.fix


def test_podman_s_plugin_must_be_where_it_looks(root: Path) -> None:
    """It must be there, executable, in a folder of its configuration, and the backend must be netavark."""
    plugin = "usr/local/libexec/netavark/linkspan"
    put(root, plugin, mode=0o644)
    assert only(podman.found, root).fix.startswith("chmod 755")
    put(root, plugin)
    assert only(podman.found, root).status == "ok"
    put(root, "etc/containers/containers.conf", '[network]\nnetavark_plugin_dirs = ["/srv/plugins"]\n')
    found = only(podman.found, root)
    assert (found.status, "/srv/plugins" in found.detail) == ("fail", True)
    assert "netavark_plugin_dirs" in found.fix
    put(root, "etc/containers/containers.conf", '[network]\nnetwork_backend = "cni"\n')
    assert "netavark" in only(podman.found, root).fix


@pytest.mark.parametrize(
    ("config", "status", "words", "fix"),
    [
        ("", "ok", "/opt/cni/bin", ""),
        ('disabled_plugins = ["cri"]', "warn", "CRI is off", "disabled_plugins"),
        ('[plugins."{0}".cni]\nbin_dir = "/srv/cni"', "fail", "/srv/cni", "cp /opt/cni/bin/linkspan /srv/cni/"),
        ('[plugins."{1}".cni]\nbin_dir = "/srv/cni"', "fail", "/srv/cni", "cp /opt/cni/bin/linkspan /srv/cni/"),
        ('[plugins."{0}".cni]\nconf_dir = "/srv/net.d"', "fail", "/srv/net.d", "/etc/cni/net.d"),
        ("this is no TOML", "ok", "/opt/cni/bin", ""),
    ],
)
def test_containerd_must_look_where_the_plugin_is(root: Path, config: str, status: str, words: str, fix: str) -> None:
    """Its configuration of either version counts."""
    assert only(cni.containerd, root).status == "skip"
    put(root, "etc/cni/net.d/10-linkspan-demo.conflist", "{}")
    for plugin in ("linkspan", "loopback"):
        put(root, f"opt/cni/bin/{plugin}")
    put(root, "etc/containerd/config.toml", config.format(*cni.CRI))
    found = only(cni.containerd, root)
    assert found.status == status
    assert words in found.detail
    assert fix in found.fix


def test_debian_s_containerd_has_a_plugin_folder_of_its_own(root: Path) -> None:
    """If /usr/lib/cni exists, the plugins must be there, loopback among them."""
    put(root, "etc/cni/net.d/10-linkspan-demo.conflist", "{}")
    put(root, "opt/cni/bin/linkspan")
    put(root, "usr/lib/cni/portmap")
    assert (only(cni.containerd, root).status, only(cni.containerd, root).fix) == (
        "fail",
        "linkspan install cni",
    )
    put(root, "usr/lib/cni/linkspan")
    assert "containernetworking-plugins" in only(cni.containerd, root).fix
    put(root, "usr/lib/cni/loopback")
    assert only(cni.containerd, root).status == "ok"
