"""WireGuard device: its key, its peers, and the prefixes of each.

How `wg` reaches the device, and what it shows of it, is in ``kernel/probe/wireguard_device``.

A batch is one observation and at most three commands, however many peers change: one for the key, one for all peers
that come or change, one for all that go. If `wg` refuses the second, each peer is put by itself, so that the one that
is wrong is named and costs no other peer its entry. A peer is written as a whole, except its endpoint,
which is written only if it is new or the host's record changed. The device's endpoint may be another one,
because the peer has roamed; the last written one is remembered (``told.json``), and is what is observed. A
peer without an endpoint, which contacts this host itself, gets its last seen address when the device starts
again.

A keepalive makes a session at once. If two devices that learn of each other start at the same time, their
first messages cross, neither is answered, and both wait 5 s for the next. So the device with the smaller key
leaves the first message to the other, and sets its keepalive in an observation half a second later.
"""

from __future__ import annotations

import functools
import shlex
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from linkspan.core.desired import Desired
from linkspan.core.driver_contract import Support
from linkspan.core.errors import Conflict, KernelError, LinkspanError, NotFound, Unavailable
from linkspan.core.kinds import Event, Kind, on_device
from linkspan.core.shell import HIDDEN, Shell
from linkspan.core.states.host import HOST, Key, State
from linkspan.core.states.wireguard import DEVICE, AllowedIp, Tools, WireguardKey, WireguardPeer, key_id
from linkspan.kernel.drivers import tunnels
from linkspan.kernel.io.durable_files import Memory
from linkspan.kernel.io.link_messages import IFNAME, MTU, ifinfo
from linkspan.kernel.io.netlink import SETLINK, Message, text, u32
from linkspan.kernel.io.private_files import apart
from linkspan.kernel.io.sockets import Sockets
from linkspan.kernel.local_host import LocalHost
from linkspan.kernel.probe import keys, port_owners
from linkspan.kernel.probe.keys import KeyFolder
from linkspan.kernel.probe.wireguard_device import Device, Seen, Table

FOLDER = "wireguard"
"""The folder of this host's keys in the state folder."""
READY = 5.0
"""Seconds that wireguard-go may take until it answers: 30 ms on an idle machine (measured)."""
FIRST_WORD = 0.5
"""Seconds that the device with the smaller key waits for the other."""
_OFF = "off"
_IN_USE = "Address already in use"


class _Told(msgspec.Struct):
    endpoint: str = ""
    shared_file: str = ""
    seen: str = ""


class WireguardDriver:
    """WireguardKey, WireguardPeer and AllowedIp."""

    def __init__(self, sockets: Sockets, folder: Path, support: Callable[[], Support]) -> None:
        """Take ``support``, which returns how the device is served here."""
        self.keys = KeyFolder(folder)
        self._sockets = sockets
        self._support = support
        self.device = Device(folder / "run", support)
        self._told: Memory[_Told] = Memory(folder / "told.json", _Told, precious=False)
        self._later: dict[str, tuple[float, int]] = {}
        """The keepalives of new peers that are set later, with their times."""

    def probe(self) -> Support:
        """Return support: the kernel, or wireguard-go."""
        return self._support()

    def program(self) -> tuple[str, ...]:
        """Return the command that starts the device in user space, () if the kernel has WireGuard."""
        inside = self.device.inside()
        return (*inside, "wireguard-go", "-f", DEVICE) if inside else ()

    def prepare(self) -> None:
        """Reserve the folder of the keys for root, and make the one for wireguard-go's socket."""
        apart(self.keys.folder)
        if self._support().by == "user space":
            apart(self.device.folder)

    def observe(self, netns: int) -> Iterable[State]:
        """Return what the device has; most hosts have no device, and are asked each second."""
        found = self.device.table() if netns == HOST and self._there() else None
        if found is None:
            return
        mtu = self._sockets.mtu(HOST, DEVICE)
        if found.public or found.peers:
            yield WireguardKey(DEVICE, found.public, found.port, mtu)
        self._note(found)
        later = self._greeted(found)
        key = functools.cache(_key)
        for peer in found.peers.values():
            told = self._told.entries.get(peer.public, _Told(peer.endpoint))
            endpoint = told.endpoint if peer.endpoint or not told.endpoint else ""
            keepalive = later.get(peer.public, peer.keepalive)
            yield WireguardPeer(DEVICE, peer.public, endpoint, keepalive, _shared_file(peer, told, key))
            for one in peer.allowed:
                yield AllowedIp(DEVICE, one, peer.public)

    def stamp(self) -> object:
        """Return None while there is no device; what is on one counts time, and is observed each second."""
        return object() if self._there() else None

    def _there(self) -> bool:
        try:
            self._sockets.index(HOST, DEVICE)
        except KernelError:
            return False
        return True

    def _note(self, found: Table) -> None:
        """Remember where peers are seen."""
        changed = False
        for peer in found.peers.values():
            told = self._told.entries.get(peer.public)
            if told is not None and peer.endpoint and told.seen != peer.endpoint:
                told.seen, changed = peer.endpoint, True
        if changed:
            self._told.save()

    def _greeted(self, found: Table) -> dict[str, int]:
        """Set the keepalives that have waited, and return them."""
        later = {public: one for public, one in self._later.items() if public in found.peers}
        due = [public for public, (since, _) in later.items() if time.monotonic() >= since]
        words = [w for one in due for w in ("peer", one, "persistent-keepalive", str(later[one][1]))]
        if words:
            self.device.wg("set", DEVICE, *words)
        self._later = {public: one for public, one in later.items() if public not in due}
        return {public: seconds for public, (_, seconds) in later.items()}

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Configure the device, each part on its own: its key, peers with their prefixes, and removed peers."""
        failed: dict[Key, LinkspanError] = {}
        try:
            table = self._awaited() if put else self.device.table()
        except LinkspanError as error:
            return {state.key: error for state in put}
        if table is None:
            return failed  # removed with its device
        for state in put:
            if isinstance(state, WireguardKey):
                try:
                    self._put_key(state)
                    table.public = state.public
                except LinkspanError as error:
                    failed[state.key] = error
        touched = self._laid(table, put, delete, failed)
        removed = {s.public for s in delete if isinstance(s, WireguardPeer) and s.public in table.peers}
        refused = self._add({public: text for public, text in touched.items() if public not in removed})
        try:
            if removed:
                self.device.wg("set", DEVICE, *(word for one in removed for word in ("peer", one, "remove")))
            for public in removed:
                self._told.entries.pop(public, None)
            if touched or removed:
                self._told.save()
        except LinkspanError as error:
            refused |= dict.fromkeys((*touched, *removed), error)
        for state in (*put, *delete):
            if isinstance(state, WireguardPeer | AllowedIp) and state.public in refused:
                failed.setdefault(state.key, refused[state.public])
        return failed

    def _add(self, sections: Mapping[str, str]) -> dict[str, LinkspanError]:
        """Write these peers (as `wg` reads them, by key) by one command; return the refused ones.

        `wg` refuses all because of one. Then each is written by itself, as long as the device answers.
        """
        if not sections:
            return {}
        try:
            self.device.wg("addconf", DEVICE, "/proc/self/fd/0", given="".join(sections.values()))
        except KernelError as error:
            if len(sections) == 1 or self.device.table() is None:
                return dict.fromkeys(sections, error)
            refused: dict[str, LinkspanError] = {}
            for public, text in sections.items():
                refused |= self._add({public: text})
            return refused
        except LinkspanError as error:
            return dict.fromkeys(sections, error)
        return {}

    def _put_key(self, state: WireguardKey) -> None:
        path = self.keys.holding(state.public)
        if path is None:
            raise NotFound(
                f"no file in {self.keys.folder} has the private key of {state.public[:10]}",
                "restore it from a backup, or make another: linkspan host rotate-keys",
            )
        try:
            self.device.wg("set", DEVICE, "private-key", str(path), "listen-port", str(state.port))
        except LinkspanError as error:
            if _IN_USE not in error.message:
                raise
            who = port_owners.holder("udp", "", state.port) or "another"
            raise Conflict(
                f"UDP port {state.port}, which WireGuard needs, is in use by {who}",
                "stop that program, or give this host another port: linkspan host set --host NAME wireguard.port=51821",
            ) from error
        if self._sockets.mtu(HOST, DEVICE) != state.mtu:
            body = ifinfo() + text(IFNAME, DEVICE) + u32(MTU, state.mtu)
            self._sockets.at(HOST).request(Message(SETLINK, 0, body, f"set the MTU of {DEVICE}"))

    def _laid(
        self, table: Table, put: Sequence[State], delete: Sequence[State], failed: dict[Key, LinkspanError]
    ) -> dict[str, str]:
        """Change the table as desired, and return the peers that change as `wg` reads them."""
        told: dict[str, WireguardPeer | None] = {}
        there = set(table.peers)
        holders = {one: peer for peer in table.peers.values() for one in peer.allowed}
        key = functools.cache(keys.key)  # all peers may share one file
        for state in put:
            if isinstance(state, WireguardPeer):
                table.peers.setdefault(state.public, Seen(state.public))
                told[state.public] = state
        for state in delete:
            if isinstance(state, AllowedIp) and state.public in table.peers:
                if holders.get(state.prefix) is table.peers[state.public]:
                    holders.pop(state.prefix).allowed.discard(state.prefix)
                told.setdefault(state.public, None)
        for state in put:
            if not isinstance(state, AllowedIp):
                continue
            if state.public not in table.peers:
                what = f"{state.prefix}: the device has no peer with key {state.public[:10]} yet"
                failed[state.key] = Unavailable(what)
                continue
            if holder := holders.get(state.prefix):
                holder.allowed.discard(state.prefix)
            holders[state.prefix] = table.peers[state.public]
            holders[state.prefix].allowed.add(state.prefix)
            told.setdefault(state.public, None)
        sections = {}
        for public, wanted in told.items():
            try:
                new = wanted is not None and public not in there and public > table.public
                sections[public] = self._section(table.peers[public], wanted, key, waits=new)
            except LinkspanError as error:
                if wanted is not None:
                    failed[wanted.key] = error
        return sections

    def _section(
        self, peer: Seen, wanted: WireguardPeer | None, key: Callable[[Path], str], *, waits: bool
    ) -> str:
        lines = ["[Peer]", f"PublicKey = {peer.public}"]
        if wanted is not None:
            before = self._told.entries.get(peer.public, _Told())
            shared = key(Path(wanted.shared_file)) if wanted.shared_file else ""
            if shared != peer.shared:
                lines.append(f"PresharedKey = {shared or 'A' * 43 + '='}")  # all zeros: none (wg(8))
            endpoint = wanted.endpoint if not peer.endpoint or before.endpoint != wanted.endpoint else ""
            if endpoint or (not peer.endpoint and (endpoint := before.seen)):
                lines.append(f"Endpoint = {endpoint}")
            self._later.pop(peer.public, None)
            if waits and wanted.keepalive:
                self._later[peer.public] = time.monotonic() + FIRST_WORD, wanted.keepalive
            else:
                lines.append(f"PersistentKeepalive = {wanted.keepalive or _OFF}")
            self._told.entries[peer.public] = _Told(wanted.endpoint, wanted.shared_file, before.seen)
        if peer.allowed:  # without a line there are none: a section replaces the whole peer
            lines.append(f"AllowedIPs = {', '.join(map(str, sorted(peer.allowed)))}")
        return "\n".join(lines) + "\n"

    def _awaited(self) -> Table:
        """Return the device, which a helper may have started to serve just now. Raises Unavailable."""
        self.prepare()
        deadline = time.monotonic() + READY
        while (found := self.device.table()) is None:
            if self._support().by != "user space" or time.monotonic() > deadline:
                raise Unavailable(f"{DEVICE} does not answer", "`linkspan status` shows what is missing")
            time.sleep(0.01)
        return found


def _key(path: str) -> str | None:
    """Return the key in a file, '' without a path, None if the file cannot be read."""
    try:
        return keys.key(Path(path)) if path else ""
    except LinkspanError:
        return None


def _shared_file(peer: Seen, told: _Told, key: Callable[[str], str | None]) -> str:
    """Return the file that a peer's shared key is from; all peers may have one, and ``key`` reads it once."""
    if not peer.shared:
        return ""
    # One that cannot be read cannot be set again, and the written one is in force.
    return told.shared_file if key(told.shared_file) in (None, peer.shared) else "another"


def driver(host: LocalHost) -> WireguardDriver:
    """Return the driver of the WireGuard device's configuration."""
    return WireguardDriver(host.sockets, host.state_dir / FOLDER, host.driver(tunnels.driver).wireguard)


def _tools(host: LocalHost, desired: Desired) -> Tools:
    """Return the WireGuard tools and keys of this host, or why they cannot be used."""
    own, kernel = host.driver(driver), host.driver(tunnels.driver).wireguard()
    if shutil.which("wg") is None:
        why = "the program wg is not installed on this host"
        return Tools(problem=why, hint="install the package wireguard-tools")
    if not kernel.by:
        return Tools(problem=kernel.why_not)
    if kernel.by == "user space" and shutil.which("wireguard-go") is None:
        why = "the kernel has no WireGuard, and wireguard-go is not installed"
        return Tools(problem=why, hint="install the package wireguard-go")
    try:
        own.prepare()
    except LinkspanError as error:
        return Tools(problem=error.message, hint=error.hint)
    found = keys.look(own.keys)
    file = str(own.keys.folder / keys.PRIVATE)
    peers = desired.states((WireguardPeer,)).values()
    return Tools(
        found.public,
        found.next,
        file,
        own.program(),
        unusable=found.problem,
        unshared=keys.amiss({s.shared_file for s in peers if isinstance(s, WireguardPeer)}),
        hint=found.hint,
    )


# Keys are shown as ***, except public ones. A device in user space has its socket in a folder of the state
# folder, in which `wg` finds it.


def _set_key(state: WireguardKey, _shell: Shell) -> tuple[str, ...]:
    device = shlex.quote(state.device)
    return (f"wg set {device} listen-port {state.port} private-key {HIDDEN}  # of {key_id(state.public)}",)


def _set_peer(state: WireguardPeer, _shell: Shell) -> tuple[str, ...]:
    words = ["wg set", shlex.quote(state.device), "peer", state.public]
    words += ["endpoint", state.endpoint] if state.endpoint else []
    words += ["persistent-keepalive", str(state.keepalive)] if state.keepalive else []
    words += ["preshared-key", HIDDEN] if state.shared_file else []
    return (" ".join(words),)


def _allow(state: AllowedIp, _shell: Shell) -> tuple[str, ...]:
    return (f"wg set {shlex.quote(state.device)} peer {state.public} allowed-ips +{state.prefix}",)


_KNOWN_BY = "the configuration of the device `lswg`"

KINDS = (
    Kind(
        state=WireguardKey,
        rank=72,
        driver=driver,
        known_by=_KNOWN_BY,
        purpose="the private key of this host, and the port at which it receives",
        finds={Tools: _tools},
        commands=_set_key,
        on=on_device,
        events=frozenset({Event.TUNNEL, Event.HELPER}),
        poll=True,
        counted=False,
    ),
    Kind(
        state=WireguardPeer,
        rank=73,
        driver=driver,
        known_by=_KNOWN_BY,
        purpose="another host: its public key, and the first address to send to",
        commands=_set_peer,
        on=on_device,
        events=frozenset({Event.HELPER}),
        poll=True,
        counted=False,
    ),
    Kind(
        state=AllowedIp,
        rank=74,
        driver=driver,
        known_by=_KNOWN_BY,
        purpose="the host for which packets to this prefix are encrypted; only it may send from there",
        commands=_allow,
        on=on_device,
        events=frozenset({Event.HELPER}),
        poll=True,
        counted=False,
    ),
)
