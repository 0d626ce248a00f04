"""Checks of each installed container runtime: can it find linkspan."""

from __future__ import annotations

import os
import socket
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

from linkspan.diagnose.doctor.checks import Check, Checks, Surroundings
from linkspan.diagnose.trace.questions import Questions

BINARIES = ("/usr/bin", "/usr/sbin", "/usr/local/bin")
DOCKER_SOCKET = "/run/docker/plugins/linkspan.sock"
"""Path at which Docker's engine looks for a plugin (moby, pkg/plugins)."""
NETAVARK = ("/usr/local/libexec", "/usr/libexec", "/usr/local/lib", "/usr/lib")
"""Folders with /netavark in which Podman looks for plugins by default (containers.conf(5))."""
PODMAN_CONFS = ("/usr/share/containers/containers.conf", "/etc/containers/containers.conf")
CONTAINERD_CONF = "/etc/containerd/config.toml"
CRI = ("io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime")
"""The CRI's name in a configuration of version 2, and of version 3."""
CNI_CONFS = "/etc/cni/net.d"
DEBIAN, USUAL = "/usr/lib/cni", "/opt/cni/bin"
"""Folders in which Debian's containerd, and all others, look for pods' plugins."""


def _is_installed(around: Surroundings, program: str) -> bool:
    return any(around.file(f"{folder}/{program}").exists() for folder in BINARIES)


def _exposed(around: Surroundings, runtime: str) -> str:
    return ", ".join(network.name for network in around.networks if runtime in network.expose)


def _read(file: Path) -> Mapping[str, object]:
    """Return a TOML file, empty if it is missing or cannot be read."""
    try:
        return tomllib.loads(file.read_text(errors="replace"))
    except (OSError, tomllib.TOMLDecodeError):
        return {}


def _part(values: object, *keys: str) -> Mapping[str, object]:
    """Return a table inside of tables, {} if it is missing."""
    for key in keys:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values if isinstance(values, Mapping) else {}


def _not_set_up(around: Surroundings, runtime: str, detail: str) -> Check:
    """Return a failed check if a network is exposed to the runtime, else a skipped one."""
    name, fix = runtime.capitalize(), f"linkspan install {runtime}"
    if exposed := _exposed(around, runtime):
        return Check(name, "fail", f"{detail}, and {exposed} is exposed to it", fix)
    return Check(name, "skip", f"installed, and not set up for linkspan: {detail}", fix)


def docker(_asked: Questions, around: Surroundings) -> Iterator[Check]:
    """Yield whether somebody listens at the socket that Docker's engine calls."""
    if not _is_installed(around, "dockerd"):
        return
    path = around.file(DOCKER_SOCKET)
    if not path.exists():
        yield _not_set_up(around, "docker", f"{path} is missing")
        return
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(5)
        try:
            caller.connect(str(path))
        except OSError as error:
            fix = "systemctl restart linkspan-docker.socket linkspan (without systemd: restart the agent)"
            yield Check("Docker", "fail", f"nobody answers at {path}: {error.strerror or error}", fix)
            return
    yield Check("Docker", "ok", f"the engine finds linkspan at {path}")


def podman(_asked: Questions, around: Surroundings) -> Iterator[Check]:
    """Yield whether Podman finds the plugin; its configuration may name other folders."""
    if not _is_installed(around, "podman"):
        return
    files = [around.file(path) for path in PODMAN_CONFS]
    files += sorted(around.file("/etc/containers/containers.conf.d").glob("*.conf"))
    network: dict[str, object] = {}
    for file in files:
        network |= _part(_read(file), "network")
    if network.get("network_backend") == "cni":
        fix = 'set network_backend = "netavark" in /etc/containers/containers.conf; podman system reset'
        yield Check("Podman", "fail", "its network backend is cni, which does not know driver linkspan", fix)
        return
    chosen = network.get("netavark_plugin_dirs")
    folders = [str(f) for f in chosen] if isinstance(chosen, list) else [f"{base}/netavark" for base in NETAVARK]
    found = [plugin for folder in folders if (plugin := around.file(f"{folder}/linkspan")).exists()]
    if found and os.access(found[0], os.X_OK):
        yield Check("Podman", "ok", f"{found[0]}")
    elif found:
        yield Check("Podman", "fail", f"{found[0]} is not executable", f"chmod 755 {found[0]}")
    elif isinstance(chosen, list) and around.file(f"{NETAVARK[0]}/netavark/linkspan").exists():
        fix = f'add "{NETAVARK[0]}/netavark" to netavark_plugin_dirs in containers.conf'
        yield Check("Podman", "fail", f"it looks for plugins in {', '.join(folders)} only", fix)
    else:
        yield _not_set_up(around, "podman", f"no plugin in {folders[0] if folders else 'any folder'}")


def containerd(_asked: Questions, around: Surroundings) -> Iterator[Check]:
    """Yield whether containerd finds pods' plugins in the configured folder; `ctr` and nerdctl use /opt/cni/bin."""
    if not _is_installed(around, "containerd"):
        return
    if not list(around.file(CNI_CONFS).glob("*linkspan*")):
        yield Check("containerd", "skip", "installed, and not set up for linkspan", "linkspan install cni")
        return
    values = _read(around.file(CONTAINERD_CONF))
    restart = "systemctl restart containerd"
    disabled = values.get("disabled_plugins")
    if isinstance(disabled, list) and {"cri", *CRI} & {str(name) for name in disabled}:
        fix = f"remove cri from disabled_plugins in {CONTAINERD_CONF}; {restart}"
        yield Check("containerd", "warn", "its CRI is off: `ctr` and nerdctl work, Kubernetes does not", fix)
        return
    cni = {k: v for name in CRI for k, v in _part(values, "plugins", name, "cni").items()}
    bare = DEBIAN if around.file(DEBIAN).is_dir() else USUAL
    folder, confs = str(cni.get("bin_dir") or bare), str(cni.get("conf_dir") or CNI_CONFS)
    if confs.rstrip("/") != CNI_CONFS:
        fix = f'set conf_dir = "{CNI_CONFS}" in {CONTAINERD_CONF}; {restart}'
        yield Check("containerd", "fail", f"it looks for networks in {confs}, not in {CNI_CONFS}", fix)
    elif not around.file(f"{folder}/linkspan").exists():
        fix = "linkspan install cni" if folder in (DEBIAN, USUAL) else f"cp {USUAL}/linkspan {folder}/"
        yield Check("containerd", "fail", f"it looks for pods' plugins in {folder}, but linkspan is not there", fix)
    elif not around.file(f"{folder}/loopback").exists():
        fix = f"apt install containernetworking-plugins (and cp {DEBIAN}/loopback {folder}/ if that is another folder)"
        detail = f"it has no plugin loopback in {folder}, without which no pod starts; `ctr` and nerdctl work"
        yield Check("containerd", "warn", detail, fix)
    else:
        yield Check("containerd", "ok", f"pods' plugins are in {folder}")


CHECKS: Checks = (
    ("containerd", containerd),
    ("Docker", docker),
    ("Podman", podman),
)
