"""CNI, for containerd, CRI-O, nerdctl and Kubernetes: a plugin that they execute, and a conflist for each network."""

from __future__ import annotations

import os
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from linkspan.core.config import SOCKET, Config
from linkspan.core.model import Network
from linkspan.core.states.programs import File
from linkspan.diagnose.doctor.checks import Check, Surroundings
from linkspan.runtimes.base import BaseRuntime, HostAgent, Service, Site, is_installed, readable_json
from linkspan.shim import build

if TYPE_CHECKING:
    from linkspan.diagnose.trace.kernel_view import KernelView
    from linkspan.endpoints.registry import Registry

VERSION = "1.0.0"
"""Version in a conflist: Debian's containerd 1.7 accepts no newer result."""
CAPABILITIES = (
    "portMappings",
    "ips",
    "mac",
    "bandwidth",
    "dns",
    "aliases",
    "io.kubernetes.cri.pod-annotations",
)
CONFS = "/etc/cni/net.d"
SUFFIXES = (".conf", ".conflist", ".json")
USUAL, DEBIAN = "/opt/cni/bin", "/usr/lib/cni"
"""Folders in which all others, and Debian's containerd, look for pods' plugins; `ctr` always uses the first."""
CONTAINERD_CONF = "/etc/containerd/config.toml"
CRI = ("io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime")
"""The CRI's name in a configuration of version 2, and of version 3."""


def configuration(_asked: KernelView, around: Surroundings) -> Iterator[Check]:
    """Yield whether runtimes use our configuration: they take the first by name, and execute its plugin."""
    folder = around.file(CONFS)
    confs = sorted(p for p in folder.glob("*") if p.suffix in SUFFIXES)
    ours = [p for p in confs if "linkspan" in _types(p)]
    if not ours:
        yield Check("CNI configuration", "skip", f"none of linkspan's in {folder}", "")
        return
    if confs[0] != ours[0]:
        detail = f"runtimes use {confs[0].name}, which sorts before {ours[0].name}"
        yield Check("CNI configuration", "warn", detail, f"mv {confs[0]} {confs[0]}.disabled")
    else:
        yield Check("CNI configuration", "ok", f"{ours[0].name} is the first of {len(confs)}")
    plugin = around.file(f"{USUAL}/linkspan")
    if not plugin.exists():
        missing = f"{plugin} is missing, and {ours[0].name} names it"
        yield Check("CNI plugin", "fail", missing, "linkspan install cni")
    elif not os.access(plugin, os.X_OK):
        yield Check("CNI plugin", "fail", f"{plugin} is not executable", f"chmod 755 {plugin}")
    else:
        yield Check("CNI plugin", "ok", f"{plugin}")


def _types(conf: Path) -> set[str]:
    """Return the plugins that a configuration names; none if it cannot be read."""
    try:
        read = msgspec.json.decode(conf.read_bytes())
    except (OSError, msgspec.DecodeError):
        return set()
    plugins = read.get("plugins", [read]) if isinstance(read, dict) else []
    return {str(p.get("type")) for p in plugins if isinstance(p, dict)} if isinstance(plugins, list) else set()


def containerd(_asked: KernelView, around: Surroundings) -> Iterator[Check]:
    """Yield whether containerd finds pods' plugins in the configured folder; `ctr` and nerdctl use /opt/cni/bin."""
    if not is_installed(around, "containerd"):
        return
    if not list(around.file(CONFS).glob("*linkspan*")):
        yield Check("containerd", "skip", "installed, and not set up for linkspan", "linkspan install cni")
        return
    values = _containerd_settings(around)
    restart = "systemctl restart containerd"
    disabled = values.get("disabled_plugins")
    if isinstance(disabled, list) and {"cri", *CRI} & {str(name) for name in disabled}:
        fix = f"remove cri from disabled_plugins in {CONTAINERD_CONF}; {restart}"
        yield Check("containerd", "warn", "its CRI is off: `ctr` and nerdctl work, Kubernetes does not", fix)
        return
    cni = {k: v for name in CRI for k, v in _part(values, "plugins", name, "cni").items()}
    bare = DEBIAN if around.file(DEBIAN).is_dir() else USUAL
    folder, confs = str(cni.get("bin_dir") or bare), str(cni.get("conf_dir") or CONFS)
    if confs.rstrip("/") != CONFS:
        fix = f'set conf_dir = "{CONFS}" in {CONTAINERD_CONF}; {restart}'
        yield Check("containerd", "fail", f"it looks for networks in {confs}, not in {CONFS}", fix)
    elif not around.file(f"{folder}/linkspan").exists():
        fix = "linkspan install cni" if folder in (DEBIAN, USUAL) else f"cp {USUAL}/linkspan {folder}/"
        yield Check("containerd", "fail", f"it looks for pods' plugins in {folder}, but linkspan is not there", fix)
    elif not around.file(f"{folder}/loopback").exists():
        fix = f"apt install containernetworking-plugins (and cp {DEBIAN}/loopback {folder}/ if that is another folder)"
        detail = f"it has no plugin loopback in {folder}, without which no pod starts; `ctr` and nerdctl work"
        yield Check("containerd", "warn", detail, fix)
    else:
        yield Check("containerd", "ok", f"pods' plugins are in {folder}")


def _containerd_settings(around: Surroundings) -> Mapping[str, object]:
    """Return containerd's settings, empty if they are missing or cannot be read."""
    try:
        return tomllib.loads(around.file(CONTAINERD_CONF).read_text(errors="replace"))
    except (OSError, tomllib.TOMLDecodeError):
        return {}


def _part(values: object, *keys: str) -> Mapping[str, object]:
    """Return a table inside of tables, {} if it is missing."""
    for key in keys:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values if isinstance(values, Mapping) else {}


def conflist(network: str, socket: str) -> bytes:
    """Return CNI's configuration of a network."""
    conf: dict[str, object] = {"type": "linkspan", "capabilities": dict.fromkeys(CAPABILITIES, True)}
    if socket != SOCKET:
        conf["socket"] = socket
    return readable_json({"cniVersion": VERSION, "name": network, "plugins": [conf]})


class CniRuntime(BaseRuntime):
    """Every runtime that speaks CNI."""

    name = "cni"
    path = "/cni"
    installs = "Install the CNI plugin and a conflist for one network, for containerd, CRI-O, nerdctl and Kubernetes."
    for_one_network = True
    checks = (("CNI configuration", configuration), ("containerd", containerd))

    def serve(self, agent: HostAgent, registry: Registry, config: Config) -> Service:
        """Return the service."""
        from linkspan.runtimes.cni.cni_service import CniService

        return CniService(agent, registry, Path(config.socket).parent / "queue")

    def files(self, site: Site) -> Iterable[File]:
        """Return the plugin, in the folder of the runtimes, and after it the conflist that names it.

        The interpreter is that of a plugin that cannot be compiled.
        """
        with tempfile.TemporaryDirectory() as folder:
            plugin = Path(folder) / "plugin"
            build.install(plugin, site.python)
            content = plugin.read_bytes()
        for place in (USUAL, DEBIAN):
            if place == USUAL or (site.root / place.lstrip("/")).is_dir():
                yield File(str(site.root / place.lstrip("/") / "linkspan"), content, 0o755)
        conf = site.root / CONFS.lstrip("/") / _conf(site.network)
        yield File(str(conf), conflist(site.network, site.socket))

    def note(self, files: Sequence[Path]) -> str:
        """Return that runtimes take another file than the one that was installed."""
        folder = files[-1].parent
        names = sorted(path.name for path in folder.iterdir() if path.suffix in SUFFIXES)
        return f"runtimes take the first file of {folder}, which is {names[0]} now" if len(names) > 1 else ""

    def exposing(self, network: Network, config: Config) -> Iterable[File]:
        """Return the network's conflist."""
        if config.cni_networks:
            path = Path(config.cni_networks, _conf(network.name))
            yield File(str(path), conflist(network.name, config.socket))


def _conf(network: str) -> str:
    return f"10-linkspan-{network}.conflist"


RUNTIME = CniRuntime()
