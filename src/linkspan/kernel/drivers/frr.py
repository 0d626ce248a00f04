"""FRR: static routes of a router, set by vtysh on the router itself, or by ssh.

Our routes are recognised by their tag. The driver changes FRR's running configuration, as an operator would,
but not its file. So a router that restarts has no routes of ours, and gets them within one round.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterable, Mapping, Sequence

from linkspan.core.addresses import Prefix, prefix
from linkspan.core.driver_contract import Support
from linkspan.core.errors import Invalid, LinkspanError, NotFound, Unavailable
from linkspan.core.kinds import Kind
from linkspan.core.states.host import HOST, Key, State
from linkspan.core.states.openflow import RouterRoute

TAG = 0x4C53
"""Of our routes: the same two letters as in the flows' cookies."""
PATIENCE = 10.0
_ROUTE = re.compile(rf"^ipv?6? route (\S+) (\S+) tag {TAG}\b", re.MULTILINE)
_REFUSED = ("% ", "Unknown command", "is not running", "failed to connect")
_BATCH = 400
"""Commands in one call: an argument list has its limits (execve(2))."""


class FrrDriver:
    """RouterRoute, of the router at ``address``: vtysh:, vtysh:FOLDER (of its sockets) or ssh:[USER@]HOST[:PORT]."""

    def __init__(self, name: str, address: str, ssh: Mapping[str, str]) -> None:
        self.name = name
        self.address = address
        way, _, rest = address.partition(":")
        if way == "vtysh":
            self._words, self._remote = ["vtysh", *(["--vty_socket", rest] if rest else [])], False
        elif way == "ssh" and rest:
            self._words, self._remote = _ssh(rest, ssh), True
        else:
            raise Invalid(
                f"router {name}: address {address!r} is not understood",
                "write ssh:USER@ADDRESS[:PORT], or vtysh: for FRR on this machine",
            )

    def probe(self) -> Support:
        """Return whether the router answers."""
        try:
            self._vtysh("show version")
        except LinkspanError as error:
            return Support("", error.message)
        return Support("FRR")

    def observe(self, netns: int) -> Iterable[State]:
        """Return our routes in its running configuration; a prefix with two of them has no right one."""
        found = {} if netns != HOST else self._there()
        return [routes[0] if len(routes) == 1 else RouterRoute(routes[0].destination, b"") for routes in found.values()]

    def _there(self) -> dict[Key, list[RouterRoute]]:
        found: dict[Key, list[RouterRoute]] = {}
        for to, via in _ROUTE.findall(self._vtysh("show running-config")):
            one = RouterRoute(prefix(to), prefix(via).packed)
            found.setdefault(one.key, []).append(one)
        return found

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Put and remove routes; replace a route with another gateway, because FRR would keep both."""
        try:
            there, kept = self._there(), set(put)
            lines = [_line(one, "no ") for s in (*delete, *put) for one in there.get(s.key, ()) if one not in kept]
            lines += [_line(state) for state in put]
            for start in range(0, len(lines), _BATCH):
                self._vtysh("configure terminal", *lines[start : start + _BATCH])
        except LinkspanError as error:
            return {state.key: error for state in (*put, *delete)}
        return {}

    def _vtysh(self, *commands: str) -> str:
        words = [part for command in commands for part in ("-c", command)]
        argv = [*self._words, shlex.join(["vtysh", *words])] if self._remote else [*self._words, *words]
        what = f"router {self.name} at {self.address}"
        try:
            done = subprocess.run(
                argv, capture_output=True, text=True, check=False, timeout=PATIENCE, stdin=subprocess.DEVNULL
            )
        except FileNotFoundError as error:
            package = "openssh-client" if self._remote else "frr"
            raise NotFound(f"{argv[0]} is not installed", f"apt install {package}") from error
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"{what} does not answer within {PATIENCE:.0f} s") from error
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        if done.returncode:
            why = said[-1] if said else f"{argv[0]} ended with {done.returncode}"
            fix = "is its service running, and is this user in group frrvty?"
            if self._remote:
                fix = f"try it by hand: {shlex.join([*self._words, 'vtysh'])}"
            raise Unavailable(f"{what}: {why}", fix)
        if refused := next((line for line in done.stdout.splitlines() if line.startswith(_REFUSED)), ""):
            raise LinkspanError(f"{what} refuses: {refused.removeprefix('% ')}", "does it run staticd?")
        return done.stdout


def _ssh(target: str, options: Mapping[str, str]) -> list[str]:
    user_host, _, port = target.partition(":") if target.count(":") == 1 else (target, "", "")
    words = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=3"]
    for name, value in options.items():
        words += ["-o", f"{name}={value}"]
    return [*words, *(["-p", port] if port else []), user_host]


def _line(state: State, no: str = "") -> str:
    assert isinstance(state, RouterRoute)
    return no + route(state)


def route(state: RouterRoute) -> str:
    """Return a route in FRR's syntax."""
    via = Prefix(state.gateway, 0).address
    return f"{'ip' if state.destination.family == 4 else 'ipv6'} route {state.destination} {via} tag {TAG}"


KINDS = (
    Kind(
        state=RouterRoute,
        rank=81,
        known_by="tag 19539",
        purpose="where a prefix's host is",
        counted=False,
    ),
)
