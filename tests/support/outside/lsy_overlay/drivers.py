"""The drivers of both kinds, by ip(8), with their declarations."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from linkspan.core.addresses import mac, mac_text, prefix
from linkspan.core.driver_contract import Support
from linkspan.core.errors import KernelError, LinkspanError
from linkspan.core.kinds import Event, Kind, named
from linkspan.core.shell import Shell, address_text
from linkspan.core.states.host import HOST, Key, State
from linkspan.core.wire import VXLAN, Wire
from linkspan.kernel.io.batch import each
from linkspan.kernel.local_host import LocalHost
from lsy_overlay.states import HostRule, Overlay

PREFIX = "lsy"
PROTOCOL = 77
"""Of our rules; linkspan's own have 76."""


def _ip(*words: str) -> Any:
    """Run ip(8) and return what it prints as JSON. Raises KernelError with its own words."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise KernelError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return json.loads(done.stdout or "[]") if words[0] == "-j" else None


class OverlayDriver:
    """Overlay."""

    def probe(self) -> Support:
        """VXLAN is in every kernel that runs containers."""
        return Support("kernel")

    def observe(self, netns: int) -> Iterable[State]:
        """Return our devices."""
        if netns != HOST:
            return
        for link in _ip("-j", "-d", "link", "show", "type", "vxlan"):
            if not link:  # ip(8) prints an empty object for each link of another type
                continue
            name, data = link["ifname"], link["linkinfo"]["info_data"]
            if f"linkspan:{name}" in link.get("altnames", ()) and name.startswith(PREFIX):
                local = prefix(data.get("local") or data["local6"]).packed
                up = "UP" in link["flags"]
                yield Overlay(name, data["id"], mac(link["address"]), link["mtu"], data["port"], local, up)

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Make devices again, and remove them."""
        return each(put, self._put) | each(delete, self._delete)

    def _put(self, state: Overlay) -> None:
        self._delete(state)
        for command in _overlay(state):
            _ip(*command)

    def _delete(self, state: Overlay) -> None:
        if any(found.key == state.key for found in self.observe(HOST)):
            _ip("link", "del", state.name)


class HostRuleDriver:
    """HostRule."""

    def probe(self) -> Support:
        """Every kernel that serves containers has rules."""
        return Support("kernel")

    def observe(self, netns: int) -> Iterable[State]:
        """Return the rules with our protocol number."""
        for family in ("-4", "-6") if netns == HOST else ():
            for rule in _ip("-j", family, "rule", "show"):
                if str(rule.get("protocol")) == str(PROTOCOL):
                    yield HostRule(rule["priority"], prefix(f"{rule['src']}/{rule['srclen']}"))

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Add and remove rules."""
        return each(put, self._put) | each(delete, self._delete)

    def _put(self, state: HostRule) -> None:
        if state not in self.observe(HOST):
            _ip(*_rule(state, "add"))

    def _delete(self, state: HostRule) -> None:
        if state in self.observe(HOST):
            _ip(*_rule(state, "del"))


def _overlay(state: Overlay) -> list[list[str]]:
    """Return the words of ip(8) that make a device."""
    vxlan = ["id", str(state.vni), "dstport", str(state.port), "local", address_text(state.local), "nolearning"]
    name = state.name
    return [
        ["link", "add", name, "address", mac_text(state.mac), "mtu", str(state.mtu), "type", "vxlan", *vxlan],
        ["link", "property", "add", "dev", name, "altname", state.altname],
        ["link", "set", name, "up"],
    ]


def _rule(state: HostRule, verb: str) -> list[str]:
    words = ["rule", verb, "pref", str(state.priority), "from", str(state.prefix), "lookup", "main"]
    return [f"-{state.prefix.family}", *words, "protocol", str(PROTOCOL)]


def _make_overlay(state: Overlay, _shell: Shell) -> tuple[str, ...]:
    return tuple(shlex.join(["ip", *words]) for words in _overlay(state))


def _make_rule(state: HostRule, _shell: Shell) -> tuple[str, ...]:
    return (shlex.join(["ip", *_rule(state, "add")]),)


def _wire(state: Overlay) -> Wire:
    return Wire(state.name, VXLAN, state.local, state.port, state.vni)


def _overlays(_host: LocalHost) -> OverlayDriver:
    return OverlayDriver()


def _rules(_host: LocalHost) -> HostRuleDriver:
    return HostRuleDriver()


KINDS = (
    Kind(
        state=Overlay,
        rank=43,
        driver=_overlays,
        known_by="an alternative name `linkspan:NAME`, on a VXLAN device that is called lsy...",
        purpose="a tunnel to all other hosts, at UDP port 8473",
        commands=_make_overlay,
        makes=named,
        events=frozenset({Event.TUNNEL}),
        names=(f"{PREFIX}*",),
        resolves=True,
        wire=_wire,
    ),
    Kind(
        state=HostRule,
        rank=63,
        driver=_rules,
        known_by="protocol number 77",
        purpose="what comes from the pool is routed by the main table",
        commands=_make_rule,
        poll=True,
    ),
)
