"""IPsec's states as commands: what swanctl would be given, with secrets shown as ``***``.

A connection's configuration is written as a file below the state folder, in which swanctl finds it; a child is one
section more of it. Each says the state folder's path as the shell reads it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from linkspan.core.addresses import whole
from linkspan.core.states.host import GROUP, State
from linkspan.core.states.ipsec import (
    ANYWHERE,
    CONTROL,
    PRIVATE,
    IpsecChild,
    IpsecConnection,
    IpsecCredential,
    IpsecLink,
)
from linkspan.kernel.drivers.ipsec import configuration, of_children

HIDDEN = "***"
FOLDER, CONF = "ipsec", "swanctl.conf"
_ODD = re.compile(r"[^0-9a-z]+")
"""What no section's name may have, in a file."""
_PLACES = {"key": "private", "certificate": "x509", "ca": "x509ca", "crl": "x509crl"}
PURPOSES: dict[type, str] = {
    IpsecLink: "a device by which packets go to be encrypted by IPsec",
    IpsecCredential: "what this host proves itself by to others, or checks them by",
    IpsecConnection: "how this host and another prove themselves to each other",
    IpsecChild: "what the two then encrypt for each other",
}


def link(state: IpsecLink) -> Iterator[str]:
    """Return the commands that make the device, or find the daemon's own."""
    name = shlex.quote(state.name)
    if state.tun:
        yield f"until ip link show {name} >/dev/null 2>&1; do sleep 0.1; done"
    else:
        yield f"ip link add {name} type xfrm external"
    yield f"ip link property add dev {name} altname {shlex.quote(state.altname)}"
    yield f"ip link set {name} mtu {state.mtu} group {GROUP}{' up' if state.up else ''}"


def command(state: IpsecCredential | IpsecConnection | IpsecChild, state_dir: str) -> str:
    """Return the command that makes the state; what ``ending`` returns loads it."""
    folder = f"{state_dir}/{FOLDER}"
    match state:
        case IpsecCredential("psk", path):
            # The key goes from file to file, in base64 (swanctl.conf(5)), and nobody sees it.
            text = " ".join(map(shlex.quote, ("secrets { ike-linkspan {", f"secret = {HIDDEN}", "} }")))
            key = f"0s$(tr -d '\\n' <{shlex.quote(path)} | base64 -w0)"
            return f"(umask 077; printf '%s\\n' {text} | sed \"s|[*]*[*]|{key}|\" >>{folder}/{CONF})"
        case IpsecCredential(kind, path):
            note = f"  # {HIDDEN}" if kind in PRIVATE else ""
            return f"install -D -m 0600 {shlex.quote(path)} -t {folder}/{_PLACES[kind]}{note}"
        case IpsecConnection():
            own = {key: value for key, value in configuration(state, ()).items() if key != "children"}
            # Both hosts begin: the later one succeeds, where no agent begins anew for the earlier one.
            begins = {"start_action": "start"} if state.remote != ANYWHERE else {}
            children = of_children(state) | begins
            sections = {f"of-{state.name}": children, "connections": {state.name: own}}
            return _appended(sections, folder)
        case IpsecChild(connection, here, there):
            ways = "everything" if here == there == whole(here.family) else f"{here} === {there}"
            own = {"local_ts": [str(here)], "remote_ts": [str(there)]}
            name = f"{_ODD.sub('-', state.name)} : of-{connection}"
            return f"{_appended({'connections': {connection: {'children': {name: own}}}}, folder)}  # {ways}"


def ending(states: Iterable[State], state_dir: str) -> str:
    """Return the command by which all is loaded in the end, '' where there is nothing of IPsec's."""
    if not any(isinstance(state, IpsecConnection | IpsecCredential) for state in states):
        return ""
    folder = f"{state_dir}/{FOLDER}"
    waits = f"until [ -S {folder}/{CONTROL} ]; do sleep 0.1; done"
    return f"{waits}; SWANCTL_DIR={folder} swanctl --load-all --noprompt --uri unix://{folder}/{CONTROL}"


def _appended(sections: Mapping[str, Any], folder: str) -> str:
    return f"printf '%s\\n' {' '.join(map(shlex.quote, _lines(sections)))} >>{folder}/{CONF}"


def _lines(section: Mapping[str, Any]) -> Iterable[str]:
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield f"{key} {{"
            yield from _lines(value)
            yield "}"
        else:
            yield f"{key} = {','.join(value) if isinstance(value, list) else value}"
