"""firewalld: pools as sources of its zone ``trusted``, so that it accepts their forwarding.

Sources are added at run time only. A reload of firewalld forgets them, and the next pass adds them again (the
reload rewrites firewalld's nftables table, which causes an event). A source that the user has added already
is used and never removed: the memory file distinguishes the two.

The driver talks to firewalld only if it manages this very namespace: its nftables table is here, and its name
is on the bus. Either alone may belong to another one (virtual hosts share the bus) or be a leftover.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from linkspan.core.addresses import Prefix, prefix
from linkspan.core.driver_contract import Support
from linkspan.core.errors import Conflict, Invalid, KernelError, LinkspanError, Unavailable
from linkspan.core.kinds import Event, Kind, Sort
from linkspan.core.shell import Shell
from linkspan.core.states.host import HOST, Key, State, TrustedSource
from linkspan.kernel.io.dbus import Bus, Refused
from linkspan.kernel.io.durable_files import Memory, boot_id
from linkspan.kernel.local_host import LocalHost
from linkspan.kernel.probe import foreign_chains

NAME = "org.fedoraproject.FirewallD1"
_PATH = "/org/fedoraproject/FirewallD1"
_ZONE = "org.fedoraproject.FirewallD1.zone"
TRUSTED = "trusted"


class _Entry(msgspec.Struct):
    ours: bool


def running() -> bool:
    """Return whether firewalld manages this namespace now; costs a dump of chains, and perhaps a call."""
    if not any(c.table == "firewalld" for c in foreign_chains.nft_chains()):
        return False
    try:
        with Bus() as bus:
            return bus.owned(NAME)
    except LinkspanError:
        return False


class FirewalldDriver:
    """Adds and removes sources of the zone ``trusted`` over D-Bus."""

    def __init__(self, memory_file: Path, home: int) -> None:
        """Take ``home``, the inode of the agent's network namespace."""
        self._memory: Memory[_Entry] = Memory(memory_file, _Entry, f"{boot_id()}:{home}")

    def probe(self) -> Support:
        """Return whether firewalld runs; it is needed only if it does."""
        return Support("user space") if running() else Support("", "firewalld does not run")

    def observe(self, netns: int) -> Iterable[State]:
        """Yield the pools in the zone that we have added."""
        if netns != HOST or not self._memory.entries or not running():
            return []
        with Bus() as bus:
            there = _sources(bus)
        return [TrustedSource(p) for text in self._memory.entries if (p := prefix(text)) in there]

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Add, then remove; if firewalld does not run, there is nothing to remove."""
        try:
            if not running():
                self._forget(delete)
                return {state.key: Unavailable("firewalld does not run") for state in put}
            with Bus() as bus:
                return self._applied(bus, _sources(bus), put, delete)
        except LinkspanError as error:
            return {state.key: error for state in (*put, *delete)}

    def _applied(
        self, bus: Bus, there: set[Prefix], put: Sequence[State], delete: Sequence[State]
    ) -> dict[Key, LinkspanError]:
        errors: dict[Key, LinkspanError] = {}
        for state in put:
            assert isinstance(state, TrustedSource)
            try:
                self._put(bus, state.prefix, state.prefix in there)
            except LinkspanError as error:
                errors[state.key] = error.within(f"trust {state.prefix} in firewalld")
        for state in delete:
            assert isinstance(state, TrustedSource)
            try:
                self._delete(bus, state.prefix)
            except LinkspanError as error:
                errors[state.key] = error.within(f"remove {state.prefix} from firewalld's zone {TRUSTED}")
        return errors

    def _put(self, bus: Bus, pool: Prefix, there: bool) -> None:
        old = self._memory.entries.get(str(pool))
        if there and old:
            return
        self._memory.entries[str(pool)] = _Entry(ours=not there)
        self._memory.save()  # before it is added: a kill in between leaves one name too many, not a source
        if there:
            return
        try:
            bus.call(NAME, _PATH, _ZONE, "addSource", TRUSTED, str(pool))
        except Refused as refused:
            if "ALREADY_ENABLED" in refused.message:
                return
            del self._memory.entries[str(pool)]
            self._memory.save()
            if "ZONE_CONFLICT" in refused.message:
                zone = "".join(bus.call(NAME, _PATH, _ZONE, "getZoneOfSource", str(pool)))
                hint = f"firewall-cmd --zone={zone} --remove-source={pool}"
                raise Conflict(f"it is a source of zone {zone}", hint) from refused
            raise KernelError(refused.message) from refused

    def _delete(self, bus: Bus, pool: Prefix) -> None:
        entry = self._memory.entries.get(str(pool))
        if entry is None:
            return
        if entry.ours:
            try:
                bus.call(NAME, _PATH, _ZONE, "removeSource", TRUSTED, str(pool))
            except Refused as refused:
                if "NOT_ENABLED" not in refused.message and "UNKNOWN_SOURCE" not in refused.message:
                    raise KernelError(refused.message) from refused
        del self._memory.entries[str(pool)]
        self._memory.save()

    def _forget(self, states: Sequence[State]) -> None:
        """Drop the names: a firewalld that does not run has no sources, and has none when it starts again."""
        for state in states:
            assert isinstance(state, TrustedSource)
            self._memory.entries.pop(str(state.prefix), None)
        if states:
            self._memory.save()


def _sources(bus: Bus) -> set[Prefix]:
    """Return the zone's sources that are prefixes; it may also have MAC addresses and ipsets."""
    found = set()
    try:
        for text in bus.call(NAME, _PATH, _ZONE, "getSources", TRUSTED):
            with contextlib.suppress(Invalid):
                found.add(prefix(text))
    except Refused as refused:
        raise Unavailable(f"firewalld: {refused.message}") from refused
    return found


def driver(host: LocalHost) -> FirewalldDriver:
    """Return the driver of firewalld's sources."""
    return FirewalldDriver(host.state_dir / "firewalld.json", host.namespaces.home)


def _add(state: TrustedSource, _shell: Shell) -> tuple[str, ...]:
    return (f"firewall-cmd --zone=trusted --add-source={state.prefix}",)


KINDS = (
    Kind(
        state=TrustedSource,
        rank=31,
        driver=driver,
        known_by="a record in the state folder, with what was there before",
        purpose="firewalld would drop what comes from the pool",
        sort=Sort.RULE,
        commands=_add,
        events=frozenset({Event.NFT}),
    ),
)
