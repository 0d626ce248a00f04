"""A controller's settings: defaults, a TOML file, the command line, in this order."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import msgspec

from linkspan.core.config import given, listening_at, need_paths, sound, typed
from linkspan.core.errors import Invalid
from linkspan.core.model import checked_name

FILE = "/etc/linkspan/controller.toml"
SOCKET = "/run/linkspan/controller.sock"
STATE_DIR = "/var/lib/linkspan-controller"
ENVIRONMENT = "LINKSPAN_CONTROLLER_SETTINGS"
"""Environment variable by which the command line passes the settings to the controller's process."""
_SWITCH = re.compile(r"unix:/.+|(?:tcp|ssl):(?:\[[0-9a-fA-F:.]+\]|[0-9.]+)(?::\d{1,5})?")
_SSH = re.compile(r"[A-Za-z][A-Za-z0-9]*")
_PORT = re.compile(r"(?:^[^:]+|\]):\d+$")
OPENFLOW, SSH = 6653, 22
"""Default ports of devices (IANA)."""
TLS = ("private-key", "certificate", "ca-cert")
"""The three files that ovs-ofctl needs for ssl: switches (ovs-ofctl(8))."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every key of the file, with its default."""

    store: str = ""
    """URL of the agents' store, etcd://h1:2379,h2:2379/prefix or sqlite:///abs/folder."""
    name: str = ""
    """This controller's name among the others; empty: the machine's."""
    state_dir: str = STATE_DIR
    """Folder of the snapshot: what the controller knows while the store is away."""
    socket: str = SOCKET
    """Unix socket that `linkspan controller status` asks."""
    metrics: str = ""
    """ADDRESS:PORT for Prometheus; empty: the socket's /metrics alone."""
    switches: dict[str, str] = {}
    """Addresses of the switches by name: tcp:IP:PORT, ssl:IP:PORT or unix:/PATH."""
    routers: dict[str, str] = {}
    """Addresses of routers with FRR by name: ssh:USER@HOST[:PORT], or vtysh: on this machine."""
    tls: dict[str, str] = {}
    """For ssl: switches, as ovs-ofctl has them: private-key, certificate and ca-cert, each a path."""
    ssh: dict[str, str] = {}
    """Options for ssh: routers, as ssh_config(5) has them: IdentityFile, UserKnownHostsFile."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """debug, info, warning or error; the log is JSON lines on stderr."""


def load(path: str, overrides: Mapping[str, object]) -> Settings:
    """Read the file (the default one may be missing), then apply the command line's values. Raises Invalid."""
    return complete(sound(given(path, FILE, overrides), checked, path or FILE, overrides))


def checked(values: Mapping[str, object]) -> Settings:
    """Return ``given`` as settings. Raises Invalid with the key of an invalid value."""
    found = typed(values, Settings, "linkspan controller")
    listening_at(found.metrics)
    need_paths(found.state_dir, found.socket)
    for name, address in found.switches.items():
        checked_name(name, "switch")
        if not _SWITCH.fullmatch(address):
            raise Invalid(
                f"switch {name}: address {address!r} is not understood",
                "write tcp:IP:PORT, ssl:IP:PORT or unix:/PATH, [IP] for IPv6",
            )
    for name in found.routers:
        checked_name(name, "router")
    for key in found.tls:
        if key not in TLS:
            raise Invalid(f"setting tls.{key}: the key does not exist", f"[tls] has {', '.join(TLS)}")
    for key in found.ssh:
        if not _SSH.fullmatch(key):
            raise Invalid(f"setting ssh.{key}: the key does not exist", "ssh_config(5) has them: IdentityFile")
    _check_encrypted(found)
    return found


def services(found: Settings) -> tuple[str, ...]:
    """Return HOST:PORT of each device that is programmed over the network, and of the controller's own metrics."""
    addresses = [(text.partition(":")[2], OPENFLOW) for text in found.switches.values() if not text.startswith("unix:")]
    routers = (text.removeprefix("ssh:") for text in found.routers.values() if text.startswith("ssh:"))
    addresses += [(text.rpartition("@")[2], SSH) for text in routers]
    addresses += [(found.metrics, 0)] if found.metrics.rpartition(":")[0] else []
    return tuple(text if _PORT.search(text) else f"{text}:{default}" for text, default in addresses)


def _check_encrypted(found: Settings) -> None:
    """Refuse what ovs-ofctl would refuse: it needs all three files."""
    switch = next((name for name, address in found.switches.items() if address.startswith("ssl:")), "")
    missing = [key for key in TLS if not found.tls.get(key)]
    if switch and missing:
        raise Invalid(
            f"switch {switch}: {found.switches[switch]} needs {', '.join(TLS)} in [tls]; "
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing",
            "give the controller's own key and certificate, and the certificate of the switches' "
            "authority, each as a path",
        )


def complete(found: Settings) -> Settings:
    """Return the settings; raise Invalid if a required one is missing."""
    if not found.store:
        raise Invalid("a controller needs the agents' store", "give --store etcd://HOST:2379/PREFIX")
    if not found.switches and not found.routers:
        raise Invalid("there is nothing to control", "give --switch sw1=tcp:192.0.2.250:6653")
    return found
