"""IPsec's states as commands: what swanctl would be given, with secrets shown as ``***``.

A connection's configuration is written as a file below the state folder, in which swanctl finds it; a child is one
section more of it.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from linkspan.addresses import whole
from linkspan.associations import PRIVATE, IpsecChild, IpsecConnection, IpsecCredential, IpsecLink
from linkspan.kernel.charon import configuration
from linkspan.state import GROUP

HIDDEN = "***"
FOLDER = '"${STATE_DIR:-/var/lib/linkspan}/ipsec"'
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


def command(state: IpsecCredential | IpsecConnection | IpsecChild) -> str:
    """Return the command that makes the state; ``swanctl --load-all`` after the last one loads them."""
    match state:
        case IpsecCredential("psk", path):
            text = f"secrets {{ ike-linkspan {{ secret = {HIDDEN} }} }}"
            return f"echo {shlex.quote(text)} >>{FOLDER}/swanctl.conf  # what is in {path}"
        case IpsecCredential(kind, path):
            note = f"  # {HIDDEN}" if kind in PRIVATE else ""
            return f"install -D -m 0600 {shlex.quote(path)} -t {FOLDER}/{_PLACES[kind]}{note}"
        case IpsecConnection():
            words = configuration(state, ())
            return _appended(state.name, {key: value for key, value in words.items() if key != "children"})
        case IpsecChild(connection, here, there):
            ways = "everything" if here == there == whole(here.family) else f"{here} === {there}"
            section = {"children": {state.name: {"local_ts": [str(here)], "remote_ts": [str(there)]}}}
            return f"{_appended(connection, section)}  # {ways}"


def _appended(connection: str, section: Mapping[str, Any]) -> str:
    text = f"connections {{ {_quoted(connection)} {{ {' '.join(_lines(section))} }} }}"
    return f"echo {shlex.quote(text)} >>{FOLDER}/swanctl.conf"


def _lines(section: Mapping[str, Any]) -> Iterable[str]:
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield f"{_quoted(key)} {{ {' '.join(_lines(value))} }}"
        else:
            yield f"{key} = {','.join(value) if isinstance(value, list) else value};"


def _quoted(name: str) -> str:
    return f'"{name}"' if set("/=.: ") & set(name) else name
