"""A controller's settings: defaults, a TOML file, the command line, in this order."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import msgspec

from linkspan.config import read
from linkspan.errors import Invalid
from linkspan.model import checked_name

FILE = "/etc/linkspan/controller.toml"
SOCKET = "/run/linkspan/controller.sock"
STATE_DIR = "/var/lib/linkspan-controller"
ENVIRONMENT = "LINKSPAN_CONTROLLER_SETTINGS"
"""The environment variable by which the command line hands the settings to the controller's process."""
_SWITCH = re.compile(r"unix:/.+|(?:tcp|ssl):(?:\[[0-9a-fA-F:.]+\]|[0-9.]+)(?::\d{1,5})?")


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every key of the file, with its default."""

    store: str = ""
    """URL of the store that the agents have, etcd://h1:2379,h2:2379/prefix or sqlite:///abs/folder."""
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
    """For ssl: switches, as ovs-ofctl has them: private-key, certificate, ca-cert, each a path."""
    ssh: dict[str, str] = {}
    """Options for ssh: routers, as ssh_config(5) has them: IdentityFile, UserKnownHostsFile."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """debug, info, warning or error; the log is JSON lines on stderr."""


def load(path: str, overrides: Mapping[str, object]) -> Settings:
    """Read the file (the default one may be missing) and lay the command line's values over it. Raises Invalid."""
    found = read(path, FILE, overrides, Settings, "linkspan controller")
    _check(found)
    return found


def _check(found: Settings) -> None:
    if not found.store:
        raise Invalid("a controller needs the store that the agents have", "give --store etcd://HOST:2379/PREFIX")
    if not found.switches and not found.routers:
        raise Invalid("there is nothing to control", "give --switch sw1=tcp:192.0.2.250:6653")
    for name, address in found.switches.items():
        checked_name(name, "switch")
        if not _SWITCH.fullmatch(address):
            raise Invalid(
                f"switch {name}: address {address!r} is not understood",
                "write tcp:IP:PORT, ssl:IP:PORT or unix:/PATH, [IP] where it is IPv6",
            )
    for name in found.routers:
        checked_name(name, "router")


def as_toml(found: Settings) -> str:
    """Return the settings as a file that ``load`` reads: what is no table first."""
    values = msgspec.structs.asdict(found)
    lines = [f"{k} = {msgspec.json.encode(v).decode()}" for k, v in values.items() if not isinstance(v, dict)]
    for key, table in values.items():
        if isinstance(table, dict):
            lines += ["", f"[{key}]", *(f"{k} = {msgspec.json.encode(v).decode()}" for k, v in table.items())]
    return "\n".join(lines) + "\n"
