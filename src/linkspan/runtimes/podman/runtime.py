"""Podman with netavark: it executes a plugin for each container, and has a file for each network."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from linkspan.core.config import Config
from linkspan.core.model import Network
from linkspan.core.states.programs import File
from linkspan.diagnose.doctor.checks import Check, Surroundings
from linkspan.runtimes.base import BaseRuntime, HostAgent, Service, Site, is_installed, readable_json
from linkspan.shim import build

if TYPE_CHECKING:
    from linkspan.diagnose.trace.kernel_view import KernelView
    from linkspan.endpoints.registry import Registry
    from linkspan.runtimes.adoption.outcome import Adopter, Ask

CREATED = "2026-01-01T00:00:00Z"
"""Podman wants a date; the same one on every host, so that the file does not change."""
NETAVARK = ("/usr/local/libexec", "/usr/libexec", "/usr/local/lib", "/usr/lib")
"""Folders with /netavark in which Podman looks for plugins by default, in this order (containers.conf(5))."""
PLUGIN = f"{NETAVARK[0]}/netavark/linkspan"
CONFS = ("/usr/share/containers/containers.conf", "/etc/containers/containers.conf")


def network_id(network: str) -> str:
    """Return the id of an exposed network, which distinguishes it from a user's own."""
    return hashlib.sha256(f"linkspan {network}".encode()).hexdigest()


def found(_asked: KernelView, around: Surroundings) -> Iterator[Check]:
    """Yield whether Podman finds the plugin; its configuration may name other folders."""
    if not is_installed(around, "podman"):
        return
    files = [around.file(path) for path in CONFS]
    files += sorted(around.file("/etc/containers/containers.conf.d").glob("*.conf"))
    network: dict[str, object] = {}
    for file in files:
        network |= _network_table(file)
    if network.get("network_backend") == "cni":
        fix = 'set network_backend = "netavark" in /etc/containers/containers.conf; podman system reset'
        yield Check("Podman", "fail", "its network backend is cni, which does not know driver linkspan", fix)
        return
    chosen = network.get("netavark_plugin_dirs")
    folders = [str(f) for f in chosen] if isinstance(chosen, list) else [f"{base}/netavark" for base in NETAVARK]
    plugins = [plugin for folder in folders if (plugin := around.file(f"{folder}/linkspan")).exists()]
    if plugins and os.access(plugins[0], os.X_OK):
        yield Check("Podman", "ok", f"{plugins[0]}")
    elif plugins:
        yield Check("Podman", "fail", f"{plugins[0]} is not executable", f"chmod 755 {plugins[0]}")
    elif isinstance(chosen, list) and around.file(PLUGIN).exists():
        fix = f'add "{NETAVARK[0]}/netavark" to netavark_plugin_dirs in containers.conf'
        yield Check("Podman", "fail", f"it looks for plugins in {', '.join(folders)} only", fix)
    else:
        yield RUNTIME.not_set_up(around, f"no plugin in {folders[0] if folders else 'any folder'}")


def _network_table(file: Path) -> Mapping[str, object]:
    """Return the table ``network`` of a containers.conf, empty if it is missing or cannot be read."""
    try:
        table = tomllib.loads(file.read_text(errors="replace")).get("network")
    except (OSError, tomllib.TOMLDecodeError):
        return {}
    return table if isinstance(table, Mapping) else {}


class _Record(msgspec.Struct):
    """Parts of Podman's file of a network."""

    name: str = ""
    id: str = ""
    driver: str = ""


class PodmanRuntime(BaseRuntime):
    """Podman with netavark: it executes a plugin for each container, and has a file for each network."""

    name = "podman"
    path = "/podman"
    installs = "Install the plugin by which Podman has networks of driver linkspan."
    inspects = True
    adopts = """Take over a bridge network of Podman's, with its addresses, published ports and containers.

    The network keeps its name, and each container its addresses. All running containers are without the network for
    as long as it takes to connect them again. `--undo` gives the network back, until `--confirm`.
    """
    checks = (("Podman", found),)

    def serve(self, agent: HostAgent, registry: Registry, config: Config) -> Service:  # noqa: ARG002 - a runtime's
        """Return the service."""
        from linkspan.runtimes.podman.podman_service import Podman

        return Podman(agent, registry.event_log)

    def files(self, site: Site) -> Iterable[File]:
        """Return the plugin for this interpreter, in the first of netavark's plugin folders."""
        yield File(str(site.root / PLUGIN.lstrip("/")), build.plugin(self.name, site.python, site.socket), 0o755)

    def exposing(self, network: Network, config: Config) -> Iterable[File]:
        """Return Podman's record of a network; its id is 64 hex digits, as `podman network create` would give one."""
        if not config.podman_networks:
            return
        content = {
            "name": network.name,
            "id": network_id(network.name),
            "driver": "linkspan",
            "created": CREATED,
            "ipv6_enabled": any(pool.family == 6 for pool in network.prefixes),
            "internal": network.internal,
            "dns_enabled": False,
            "options": {"network": network.name},
            "ipam_options": {"driver": "none"},
        }
        yield File(str(Path(config.podman_networks, f"{network.name}.json")), readable_json(content))

    def users(self, config: Config) -> list[tuple[str, str]]:
        """Return users' own networks of driver linkspan; linkspan removes those that it exposed itself."""
        from linkspan.runtimes.adoption.bridge_adopter import adopted
        from linkspan.runtimes.podman.podman_adoption import PodmanBridges

        back = adopted(PodmanBridges.file, Path(config.state_dir))
        owned = []
        for path in sorted(Path(config.podman_networks).glob("*.json")) if config.podman_networks else ():
            with contextlib.suppress(OSError, msgspec.MsgspecError):
                made = msgspec.json.decode(path.read_bytes(), type=_Record)
                if made.driver == "linkspan" and made.id != network_id(made.name):
                    undo, remove = f"linkspan adopt podman {made.name} --undo", f"podman network rm {made.name}"
                    owned.append((f"Podman network {made.name}", undo if made.name in back else remove))
        return owned

    def adopter(self, config: Config, ask: Ask) -> Adopter:
        """Return what takes over its bridge networks, as root's `podman` knows them."""
        from linkspan.runtimes.adoption.bridge_adopter import BridgeAdopter
        from linkspan.runtimes.podman.podman_adoption import PodmanBridges

        return BridgeAdopter(PodmanBridges(), Path(config.state_dir), ask)


RUNTIME = PodmanRuntime()
