"""The agent's settings: defaults, a TOML file, the command line, in this order."""

from __future__ import annotations

import contextlib
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec

from linkspan.core.addresses import HIDDEN, place, prefix
from linkspan.core.errors import Invalid, closest, of_validation
from linkspan.core.ipam import COOLDOWN
from linkspan.core.model import CAN_REACH, checked_name
from linkspan.core.own_command import own_command
from linkspan.core.remedies import reason, remedy
from linkspan.core.store_url import check_url

T = TypeVar("T", bound=msgspec.Struct)
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
Life = Annotated[float, msgspec.Meta(ge=60, le=3650 * 86400)]

SOCKET = "/run/linkspan/agent.sock"
LABS = Path("/run/linkspan-lab")
"""Each lab has a folder there, with a folder for each of its hosts."""
GROUP = "linkspan"
"""Group whose members may read from the agent, but change nothing."""
STATE_DIR = "/var/lib/linkspan"
CONFIG_FILE = "/etc/linkspan/agent.toml"
CONFIG = "LINKSPAN_CONFIG"
"""Environment variable with the path of the settings file, if it is not the default one and --config is not given."""
SETTINGS = "LINKSPAN_AGENT_SETTINGS"
"""Environment variable by which the command line passes the settings to the agent's process."""
SETTINGS_FILE = "LINKSPAN_AGENT_FILE"
"""The same, for the path of the file in which the agent keeps a setting that it changes itself."""


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every key of the file, with its default."""

    state_dir: str = STATE_DIR
    """Folder of the journal, the store, and the memory of the machine's original settings."""
    socket: str = SOCKET
    """Unix socket of the API; the folder `queue` beside it has DELs that arrive while no agent runs."""
    store: str = ""
    """URL of the store, sqlite:///abs/folder or etcd://h1:2379/prefix?ca=FILE; empty: in the state folder."""
    store_upkeep: Literal["none", "compact", "all"] = "compact"
    """What agents do to keep etcd small: compact its history; all: defragment it, too, and lift its alarm; or none."""
    host_id: str = ""
    """This host's id and name in the cluster; empty: an id that the agent makes, and the machine's name."""
    underlay: str = ""
    """Interface to the other hosts, or can-reach=IP; empty: the interface of the default route."""
    advertise: tuple[str, ...] = ()
    """Addresses at which other hosts reach this one, if not the interface's; none: a NAT lets nobody in."""
    docker_socket: str = ""
    """Unix socket of the Docker plugin, unless systemd passes it (`install docker`); empty: none."""
    docker_api: str = "/run/docker.sock"
    """Unix socket of Docker's engine, for networks that are exposed to Docker; empty: none."""
    podman_networks: str = "/etc/containers/networks"
    """Folder of Podman's networks, for networks that are exposed to Podman; empty: none."""
    cni_networks: str = "/etc/cni/net.d"
    """Folder of CNI configurations, for networks that are exposed to CNI; empty: none."""
    names: bool = True
    """Whether DNS answers containers' names; needs dnsmasq."""
    resolv_conf: str = "/etc/resolv.conf"
    """The file with the host's resolvers, which answer all names that are not a container's."""
    cooldown: Seconds = COOLDOWN
    """Seconds before a released address is given again."""
    reap_after: Seconds = 30.0
    """Seconds that a runtime has to detach a container whose namespace is gone, before the agent does it."""
    orphans_after: Seconds = 600.0
    """Seconds for which orphaned links stay: neither journal, store nor kernel says whose they are."""
    certificate_life: Life = 365 * 86400.0
    """Seconds for which certificates are valid that this host signs as a voter of linkspan's own etcd."""
    log_drops: bool = False
    """Whether connections that policies refuse are always logged (`linkspan drops`), and not only while one follows."""
    metrics: str = ""
    """ADDRESS:PORT for Prometheus besides the socket's /metrics; empty: none."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """debug, info, warning or error; the log is JSON lines on stderr."""


def load(path: str, overrides: Mapping[str, object]) -> Config:
    """Read the file (the default one may be missing), then apply the command line's values.

    Raises Invalid with the file's name and the key.
    """
    return sound(given(path, CONFIG_FILE, overrides), checked, path or CONFIG_FILE, overrides)


def salvaged(path: str, overrides: Mapping[str, object]) -> tuple[Config, str]:
    """Read as much as possible of a file that may be broken, and return it with the problem ("": none).

    For `uninstall`: a mistake in the file must not keep linkspan on the machine. As for ``load``, an
    explicitly named file that does not exist is an error.
    """
    try:
        return load(path, overrides), ""
    except Invalid as error:
        file = Path(path or CONFIG_FILE)
        if not file.is_file():
            raise
        problem = error.message
    values: dict[str, object] = {}
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(tomllib.TOMLDecodeError, Invalid):
            one = tomllib.loads(line)
            checked(one)
            values |= one
    return checked(values | {key: value for key, value in overrides.items() if value}), problem


def checked(values: Mapping[str, object]) -> Config:
    """Return ``given`` as settings. Raises Invalid with the key."""
    config = typed(values, Config, "linkspan agent")
    need_paths(config.state_dir, config.socket)
    listening_at(config.metrics)
    check_url(config.store)
    if config.underlay.startswith(CAN_REACH):
        try:
            prefix(config.underlay.removeprefix(CAN_REACH))
        except Invalid as error:
            what = f"setting underlay: {error.message}"
            raise Invalid(what, f"write it like {CAN_REACH}192.0.2.1, or give an interface's name") from error
    _check_told_to_others(config)
    return config


def need_paths(state_dir: str, socket: str) -> None:
    """Raise Invalid if a path that a daemon needs is empty."""
    for key, path in (("state_dir", state_dir), ("socket", socket)):
        if not path:
            raise Invalid(f"setting {key} is empty", "give a path, or leave the key out")


def listening_at(metrics: str) -> tuple[str, int]:
    """Return where to serve metrics: the address, '' for all, and the port, 0 for none.

    Raises Invalid.
    """
    address, _, port = metrics.rpartition(":")
    if not metrics:
        return "", 0
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536 or ":" not in metrics:
        raise Invalid(f"setting metrics: {metrics!r} is not ADDRESS:PORT", "write it like 127.0.0.1:9642 or [::1]:9642")
    return address.strip("[]"), int(port)


_MALLOC = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "131072"}
"""Settings of glibc's allocator (mallopt(3)). By default it raises both thresholds with the largest block that was ever
freed, and a listing of a large cluster has blocks of 15 MB: what came later would leave gaps in the heap for good."""
_PYTHON = {"PYTHONNODEBUGRANGES": "1"}
"""Settings of Python: a module's code takes 0.6 MB less without the column of each instruction, which only marks the
place within a line of a traceback."""


def process(settings: Config, file: str = "") -> tuple[list[str], dict[str, str]]:
    """Return the command that is the agent's process, and the variables that it needs in its environment.

    ``file`` is the path of the settings file ('': the default one).
    """
    variables = {
        SETTINGS: msgspec.json.encode(settings).decode(),
        SETTINGS_FILE: str(Path(file or CONFIG_FILE).absolute()),
        **_MALLOC,
        **_PYTHON,
    }
    return own_command("linkspan.daemon"), variables


def given(path: str, default: str, overrides: Mapping[str, object]) -> dict[str, object]:
    """Return a file's values, overridden by the command line's, unchecked. Raises Invalid with the file's name."""
    values: dict[str, object] = {}
    file = Path(path or default)
    if path or file.exists():
        try:
            values = tomllib.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            hint = remedy(error, file, "correct the path given by --config")
            raise Invalid(f"config file {file} cannot be read: {reason(error)}", hint) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            why = str(error)
            raise Invalid(f"config file {file}: {why[:1].lower()}{why[1:]}", "correct the file: it is TOML") from error
    values.update({key: value for key, value in overrides.items() if value})
    return values


def sound(
    values: Mapping[str, object], check: Callable[[Mapping[str, object]], T], file: str, overrides: Mapping[str, object]
) -> T:
    """Return what ``check`` makes of ``given``. Raises Invalid, with the file's name if the mistake is in it."""
    try:
        return check(values)
    except Invalid as error:
        try:
            check({key: value for key, value in overrides.items() if value})
        except Invalid as alone:
            if alone.message == error.message:
                raise
        raise error.within(f"config file {file}") from error


def typed(values: Mapping[str, object], kind: type[T], command: str) -> T:
    """Return ``given`` as settings of a type. Raises Invalid with the key."""
    hint = f"`{command} --print-config` shows every key"
    known = {field.name: field.type for field in msgspec.structs.fields(kind)}
    for key, value in values.items():
        if key not in known:
            raise Invalid(f"setting {key} does not exist", closest(key, known, hint))
        for name, text in value.items() if isinstance(value, dict) and known[key] == dict[str, str] else ():
            if not isinstance(text, str):
                raise Invalid(f"setting {key}.{name}: expected text, got {text!r}", "write it in quotes")
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise of_validation(error, kind, "setting ", hint) from error


def _check_told_to_others(config: Config) -> None:
    """Refuse values that the cluster's records must not have, because every other host reads them."""
    if config.host_id:
        checked_name(config.host_id, "setting host_id:")
    for text in config.advertise:
        try:
            if text != HIDDEN:
                place(text)
        except Invalid as error:
            raise Invalid(
                f"setting advertise: {text!r} is not an IP address",
                f"write it like 203.0.113.7 or 203.0.113.7:51820, or {HIDDEN} if a NAT lets nobody in",
            ) from error
    if HIDDEN in config.advertise and len(config.advertise) > 1:
        raise Invalid(f"setting advertise: {HIDDEN} excludes addresses", "leave the addresses out")


def as_toml(values: Mapping[str, object]) -> str:
    """Return settings as a TOML file, plain values before tables; ``load`` reads it if it is valid."""
    tables = {key: value for key, value in values.items() if isinstance(value, dict)}
    lines = [_line(key, value) for key, value in values.items() if key not in tables]
    for key, table in tables.items():
        lines += ["", f"[{key}]", *(_line(*item) for item in table.items())]
    return "\n".join(lines) + "\n"


def _line(key: str, value: object) -> str:
    bare = re.fullmatch(r"[A-Za-z0-9_-]+", key)
    return f"{key if bare else msgspec.json.encode(key).decode()} = {msgspec.json.encode(value).decode()}"


def shown(kind: type[msgspec.Struct], values: Mapping[str, object]) -> dict[str, object]:
    """Return every key of the settings with its value, then ``given`` values of unknown keys."""
    return {**msgspec.structs.asdict(kind()), **values}
