"""OpenFlow: flows of one switch, by ovs-ofctl, which speaks OpenFlow 1.3 over unix, TCP and TLS (from Open vSwitch).

A batch of changes is one bundle: the switch applies all of it at once, or nothing, and packets meet either
the old flows or the new ones. The same is true of the frames that look for hosts and links. Our flows are
recognised by the cookie, which a deletion names too. So the driver touches no foreign flow, nor one that is
no longer ours.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence

from linkspan.core.driver_contract import Support
from linkspan.core.errors import Invalid, LinkspanError, NotFound, Unavailable
from linkspan.core.kinds import Kind
from linkspan.core.states.host import HOST, Key, State
from linkspan.core.states.openflow import OWN_COOKIE, OWNER, Counted, Flow, Port

PATIENCE = 5
"""Seconds within which a switch must answer: ovs-ofctl itself gives up then."""
_NOTES = 100
_LEADING = re.compile(r"(?P<name>cookie|duration|table|n_packets|n_bytes)=(?P<value>[^,\s]+),?\s*")
_TIMES = re.compile(
    r"(?:idle_timeout|hard_timeout|idle_age|hard_age|importance)=\d+,?\s*|(?:send_flow_rem|reset_counts)\s*"
)
_PORT = re.compile(r"^\s*(\d+|LOCAL)\((.+?)\): addr:", re.MULTILINE)
_REFUSED = re.compile(r"Error (\w+) for: OFPT_FLOW_MOD [^:]*: \w+ (?:table:)?(.*)")
_OLD = re.compile(r"peer supports versions? ([^)]*)\)")


class OpenFlowDriver:
    """Flow, of the switch at ``address`` (unix:PATH, tcp:IP[:PORT] or ssl:IP[:PORT])."""

    def __init__(self, name: str, address: str, tls: Mapping[str, str]) -> None:
        self.name = name
        self.address = address
        self._tls = [f"--{key}={path}" for key, path in tls.items()] if address.startswith("ssl:") else []
        self.notes: tuple[tuple[int, str], ...] = ()
        """The MACs noted by the switch at its ports, as last observed."""
        self.counted: dict[Key, Counted] = {}
        """Our flows with their counters, as last observed."""
        self._looked = False

    def probe(self) -> Support:
        """Return whether the switch answers."""
        try:
            self.ports()
        except LinkspanError as error:
            return Support("", error.message)
        return Support("OpenFlow 1.3")

    def observe(self, netns: int) -> Iterable[State]:
        """Return our flows."""
        if netns != HOST:
            return ()
        if not self._looked:
            self.look()
        self._looked = False
        return [one.flow for one in self.counted.values()]

    def look(self) -> None:
        """Read our flows, counters and notes; the next observation gets them."""
        found = list(self.dump(OWN_COOKIE))
        self.notes = tuple(
            note for one in found if one.flow.table == _NOTES and (note := _note(one.flow)) is not None
        )
        self.counted = {one.flow.key: one for one in found if one.flow.table != _NOTES}
        self._looked = True

    def dump(self, match: str = "") -> Iterator[Counted]:
        """Yield flows with their counters, also foreign ones unless ``match`` excludes them."""
        for line in self._run("--no-names", "dump-flows", self.address, *([match] if match else [])).splitlines():
            if "cookie=" in line:
                yield parsed(line)

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Put and delete in one bundle: all, or nothing."""
        self._looked = False
        lines = [f"delete_strict {_deletion(flow)}" for flow in delete if isinstance(flow, Flow)]
        lines += [f"add {added(flow)}" for flow in put if isinstance(flow, Flow)]
        if not lines:
            return {}
        try:
            self._run("--bundle", "add-flows", self.address, "-", given="\n".join(lines) + "\n")
        except LinkspanError as error:
            return {state.key: error for state in (*put, *delete)}
        return {}

    def ports(self) -> tuple[Port, ...]:
        """Return the switch's ports, except the local one of its own machine."""
        said = self._run("dump-ports-desc", self.address)
        parts = _PORT.split(said)[1:]
        found = []
        for number, name, rest in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
            if number != "LOCAL":
                down = "PORT_DOWN" in rest or "LINK_DOWN" in rest
                found.append(Port(int(number), name, up=not down))
        return tuple(sorted(found, key=lambda port: port.number))

    def send(self, frames: Iterable[tuple[bytes, Sequence[int]]]) -> None:
        """Send frames, each through some ports."""
        lines = [
            f"packet-out in_port=controller packet={frame.hex()} actions={','.join(f'output:{n}' for n in ports)}"
            for frame, ports in frames
            if ports
        ]
        if lines:
            self._run("bundle", self.address, "-", given="\n".join(lines) + "\n")

    def _run(self, *words: str, given: str | None = None) -> str:
        argv = ["ovs-ofctl", "-O", "OpenFlow13", f"--timeout={PATIENCE}", *self._tls, *words]
        try:
            done = subprocess.run(
                argv, input=given, capture_output=True, text=True, check=False, timeout=PATIENCE + 2
            )
        except FileNotFoundError as error:
            raise NotFound("ovs-ofctl is not installed", "apt install openvswitch-common") from error
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"switch {self.name} at {self.address} does not answer") from error
        if done.returncode:
            raise self._error(done.stderr.strip() or f"ovs-ofctl ended with {done.returncode}")
        return done.stdout

    def _error(self, said: str) -> LinkspanError:
        what = f"switch {self.name} at {self.address}"
        if old := _OLD.search(said):
            fix = "enable OpenFlow 1.3: ovs-vsctl set bridge BRIDGE protocols=OpenFlow13"
            return Invalid(f"{what} speaks OpenFlow {_version(old[1])}, and 1.3 is needed", fix)
        if refused := _REFUSED.search(said):
            fix = "its own log has details; is it a recent Open vSwitch?"
            return LinkspanError(f"{what} refuses a flow ({refused[1]}): table={refused[2]}", fix)
        why = said.splitlines()[-1].removeprefix("ovs-ofctl: ")
        if "connect" in why or "Alarm clock" in said or "timeout" in why.lower() or "closed" in why:
            fix = "does it run, and may this machine reach its management address?"
            why = "it does not answer in time" if "Alarm clock" in said else why
            return Unavailable(f"{what}: {why}", fix)
        return LinkspanError(f"{what}: {why}")


def _version(text: str) -> str:
    """Return OpenFlow's version number for people: 0x01 is 1.0 on the wire."""
    found = [int(word, 16) for word in re.findall(r"0x[0-9a-f]+", text)]
    return ", ".join(f"1.{number - 1}" for number in found) or text


def added(flow: Flow) -> str:
    """Return a flow in the syntax of add-flow."""
    return f"cookie={flow.cookie:#x},{flow.text} actions={flow.actions}"


def _deletion(flow: Flow) -> str:
    return f"cookie={flow.cookie:#x}/-1,{flow.text}"


def parsed(line: str) -> Counted:
    """Return a line of dump-flows as a flow with its counters."""
    head, _, actions = line.strip().partition("actions=")
    values = {found["name"]: found["value"] for found in _LEADING.finditer(head)}
    rest = _TIMES.sub("", _LEADING.sub("", head)).strip().strip(",")
    parts = [part.strip() for part in rest.split(",") if part.strip()]
    priority = next((int(p.removeprefix("priority=")) for p in parts if p.startswith("priority=")), 32768)
    match = tuple(sorted(part for part in parts if not part.startswith("priority=")))
    cookie = int(values.get("cookie", "0"), 16)
    flow = Flow(int(values.get("table", "0")), priority, match, actions, cookie)
    age = float(values.get("duration", "0").rstrip("s"))
    return Counted(flow, int(values["n_packets"]), int(values["n_bytes"]), cookie >> 48 == OWNER, age)


def _note(flow: Flow) -> tuple[int, str] | None:
    found = dict(part.split("=", 1) for part in flow.match if "=" in part)
    port = found.get("in_port", "")
    return (int(port), found.get("dl_src", "")) if port.isdigit() else None


KINDS = (
    Kind(
        state=Flow,
        rank=80,
        known_by="the first 16 bits of the cookie, 0x4c53; the next 8 are the kind of flow",
        purpose="what a switch does with matching packets",
        counted=False,
    ),
)
