"""Checks of `doctor` for each runtime, read from files below a folder of the test's own."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from linkspan.backends import BACKENDS
from linkspan.core.model import Network, Underlay
from linkspan.diagnose.doctor import engine_checks, host_checks
from linkspan.diagnose.doctor.checks import Check, Look, Surroundings
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
    for check in (engine_checks.docker, engine_checks.podman, engine_checks.containerd):
        assert list(check(EmptyHost(), around)) == []


@pytest.mark.parametrize("name", ["docker", "podman"])
def test_a_runtime_that_is_not_set_up_is_a_fault_only_for_an_exposed_network(root: Path, name: str) -> None:
    """The command that sets it up is named in both cases."""
    check = getattr(engine_checks, name)
    for networks, status in (((), "skip"), ((EXPOSED,), "fail")):
        found = only(check, root, *networks)
        assert (found.status, found.fix) == (status, f"linkspan install {name}")
    assert "demo is exposed to it" in found.detail


def test_docker_s_plugin_socket_must_have_a_listener(root: Path) -> None:
    """A socket without a listener is distinguished from one with the agent behind it."""
    path = root / engine_checks.DOCKER_SOCKET.lstrip("/")
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        assert only(engine_checks.docker, root).status == "ok"
    found = only(engine_checks.docker, root)
    assert found.status == "fail"
    assert "Connection refused" in found.detail
    assert "restart" in found.fix


def test_podman_s_plugin_must_be_where_it_looks(root: Path) -> None:
    """It must be there, executable, in a folder of its configuration, and the backend must be netavark."""
    plugin = "usr/local/libexec/netavark/linkspan"
    put(root, plugin, mode=0o644)
    assert only(engine_checks.podman, root).fix.startswith("chmod 755")
    put(root, plugin)
    assert only(engine_checks.podman, root).status == "ok"
    put(root, "etc/containers/containers.conf", '[network]\nnetavark_plugin_dirs = ["/srv/plugins"]\n')
    found = only(engine_checks.podman, root)
    assert (found.status, "/srv/plugins" in found.detail) == ("fail", True)
    assert "netavark_plugin_dirs" in found.fix
    put(root, "etc/containers/containers.conf", '[network]\nnetwork_backend = "cni"\n')
    assert "netavark" in only(engine_checks.podman, root).fix


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
    assert only(engine_checks.containerd, root).status == "skip"
    put(root, "etc/cni/net.d/10-linkspan-demo.conflist", "{}")
    for plugin in ("linkspan", "loopback"):
        put(root, f"opt/cni/bin/{plugin}")
    put(root, "etc/containerd/config.toml", config.format(*engine_checks.CRI))
    found = only(engine_checks.containerd, root)
    assert found.status == status
    assert words in found.detail
    assert fix in found.fix


def test_debian_s_containerd_has_a_plugin_folder_of_its_own(root: Path) -> None:
    """If /usr/lib/cni exists, the plugins must be there, loopback among them."""
    put(root, "etc/cni/net.d/10-linkspan-demo.conflist", "{}")
    put(root, "opt/cni/bin/linkspan")
    put(root, "usr/lib/cni/portmap")
    assert (only(engine_checks.containerd, root).status, only(engine_checks.containerd, root).fix) == (
        "fail",
        "linkspan install cni",
    )
    put(root, "usr/lib/cni/linkspan")
    assert "containernetworking-plugins" in only(engine_checks.containerd, root).fix
    put(root, "usr/lib/cni/loopback")
    assert only(engine_checks.containerd, root).status == "ok"


@pytest.mark.parametrize(("mtu", "status"), [(1500, "ok"), (1499, "fail")])
def test_an_mtu_that_the_way_to_the_hosts_does_not_carry_is_found(mtu: int, status: str) -> None:
    """VXLAN adds 50 bytes over IPv4."""
    here = Underlay("eth0", ("192.0.2.1/24",), mtu)
    (found,) = host_checks.mtus(EmptyHost(), Surroundings([EXPOSED], underlay=here, backends=BACKENDS))
    assert found.status == status
    assert (f"--mtu {mtu - 50}" in found.fix) == (status == "fail")
