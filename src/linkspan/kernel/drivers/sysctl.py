"""Kernel settings below /proc/sys/net, which shows the calling thread's namespace.

**Sysctl** is a setting that others use too. The driver records its earlier value before the first write, and
restores it at delete, if the value is still ours. For the host's namespace the record is a file, by which an
agent with no memory knows what is ours. A container's namespace ends with its container, so the process's own
memory is enough. A value that survived a reboot was not ours: the file is valid for one boot and one
namespace. If the file is lost, our rules show the old forwarding (``closed_links``). Nobody knows the old
values of other settings then: they are left unchanged, and reported (``unknown``).

**LinkSysctl** is a setting of a link of ours, and is removed with it: nothing is recorded. Each observation
reads it again, so that a value changed by hand is found; a setting whose link is gone is forgotten. After a
restart it is put once more, which writes nothing if the value is right. On the host one query for each link
covers most of them (``devconf.py``).

Values are compared with white space collapsed to one space: give them so.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from linkspan.core.driver_contract import Support
from linkspan.core.errors import LinkspanError, NotFound, of_errno
from linkspan.core.kinds import Event, Kind, Link, Sort
from linkspan.core.shell import Shell
from linkspan.core.states.host import HOST, Key, LinkSysctl, State, Sysctl
from linkspan.kernel.io import devconf, link_messages
from linkspan.kernel.io.batch import each
from linkspan.kernel.io.durable_files import Memory, boot_id
from linkspan.kernel.io.inotify import WriteWatch
from linkspan.kernel.io.namespaces import Namespaces
from linkspan.kernel.io.open_settings import OpenSettings
from linkspan.kernel.io.sockets import Sockets
from linkspan.kernel.local_host import LocalHost
from linkspan.kernel.probe import closed_links, forwarders

ROOT = Path("/proc/sys")
FEW = 4
"""Links of ours from which on one query for all links of the host is cheaper than one for each."""
MOST_OPEN = 400
"""Settings that stay open between two observations: those of about 30 containers. Beyond that a list of all links takes
less time, and a process may have 1,024 open files."""
LONGEST = 4096
"""Size of a setting in bytes: one page, like sysctl's own buffers."""


_FORWARDING = {
    "net/ipv4/ip_forward": ("net/ipv4/conf/*/forwarding", "net/ipv4/conf/all/accept_redirects"),
    "net/ipv6/conf/all/forwarding": ("net/ipv6/conf/*/forwarding",),
}
"""Settings that the kernel changes along with a setting: inet_forward_change and addrconf_forward_change."""


_ALSO = {"net/ipv4/conf/all/forwarding": "net/ipv4/ip_forward"}
"""Files that are another name of a forwarding setting."""

_WITHOUT = "forwarding is then restored as far as linkspan's rules show its old value, and other settings stay"
"""The consequence of moving the file away."""

_MENDED = 0.5
"""Seconds after a repair of a setting during which the end of a write means nothing: it may be the earlier change."""


class _Entry(msgspec.Struct):
    before: str
    ours: str
    along: dict[str, str] = {}
    """Earlier values of what the kernel changed along with our setting."""
    others: bool = False
    """For forwarding: whether other users of it existed already, and did without."""
    there: dict[int, bool] = {}
    """For forwarding: by index, the links that existed, and whether their incoming packets were forwarded."""
    known: bool = True
    """Whether ``before`` is really the earlier value, and not ours."""


def read(path: str) -> str:
    """Return a setting of the calling thread's namespace. Raises NotFound if there is no such setting."""
    try:  # thousands of reads each second on a host with many containers: a third of the time of Path.read_text
        fd = os.open(f"{ROOT}/{path}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = os.read(fd, LONGEST)
        finally:
            os.close(fd)
    except OSError as error:
        raise _error(error, f"read sysctl {path}") from error
    return " ".join(text.decode("ascii").split())


def write(path: str, value: str) -> bool:
    """Set it if it differs, and return whether it did. Raises NotFound, or KernelError for a refused value."""
    if read(path) == value:
        return False
    try:
        (ROOT / path).write_text(value, encoding="ascii")
    except OSError as error:
        raise _error(error, f"set sysctl {path} to {value}") from error
    return True


def _values(link: link_messages.Link, paths: Iterable[str]) -> dict[str, str | None]:
    """Return the values of a link's settings by path."""
    arrays = devconf.arrays(link.found)
    return {path: devconf.value(path, arrays) for path in paths}


def _error(error: OSError, what: str) -> LinkspanError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        hint = "is the link gone, or the kernel without this protocol?"
        return NotFound(f"{what}: the setting does not exist", hint)
    return of_errno(error.errno or 0, what)


class SysctlDriver:
    """Sets kernel settings and restores their earlier values."""

    def __init__(self, namespaces: Namespaces, memory_file: Path) -> None:
        self._namespaces = namespaces
        epoch = f"{boot_id()}:{namespaces.home}"
        self._kept: Memory[_Entry] = Memory(memory_file, _Entry, epoch, without=_WITHOUT)
        self._lost: bool | None = None
        """Whether an agent wrote the file, and it is lost; None: not checked yet."""
        self._passing: dict[int, dict[str, _Entry]] = {}
        self._links: dict[int, set[str]] = {}
        self._sockets = Sockets(namespaces)
        self._asked: dict[str, list[str]] = {}
        """The paths that the last observation of the host's links looked for, by link."""
        self._answers: dict[int, dict[str, str | None]] = {}
        """Its values by path, by the hash of the link's message: most messages are the same each second."""
        self._open = OpenSettings(ROOT, LONGEST)
        self.watch = WriteWatch(ROOT / path for path in (*_FORWARDING, *_ALSO))
        """Readable after somebody has written to a forwarding setting, even the value that it has."""
        self._mended: dict[str, float] = {}
        """When a forwarding setting that somebody had changed was restored."""

    def close(self) -> None:
        """Close all files."""
        self._open.close()
        self.watch.close()

    def probe(self) -> Support:
        """Return support: every Linux has it; a container may have it read-only."""
        return Support("kernel")

    def settle(self, *, ran_before: bool) -> str:
        """Record settings as they were before linkspan; return a message if that record was lost, else ''.

        ``ran_before``: an agent ran here in this boot, so there was a file.
        """
        entries = self._known
        if self._kept.found:
            return ""
        self._lost = self._lost or ran_before
        with contextlib.suppress(LinkspanError):  # a full disk: the next observation reports it
            self._kept.save()
        if not self._lost:
            return ""
        told = ", ".join(sorted(entries))
        found = f"linkspan's rules show it for {told}" if told else "no rules of linkspan's show it for forwarding"
        return f"{self._kept.path}, which had the settings' values before linkspan, was lost: {found}"

    def unknown(self) -> dict[str, str]:
        """Return the host's settings that linkspan set and cannot restore, with their values, by path."""
        return {path: entry.ours for path, entry in list(self._known.items()) if not entry.known}

    @property
    def _known(self) -> dict[str, _Entry]:
        """Return what is known of the host's earlier settings: from the file or, if that is lost, from our rules."""
        entries = self._kept.entries
        if self._lost is None:
            told = None if self._kept.found else closed_links.links_before()
            self._lost = told is not None
            entries.update(_rebuilt(told or {}))
        return entries

    def before(self, path: str) -> str:
        """Return the host's earlier value, the present one if it is not ours, '' if there is none."""
        if entry := self._known.get(path):
            return entry.before
        try:
            return read(path)
        except LinkspanError:
            return ""

    def there(self, path: str) -> dict[int, bool]:
        """Return the links that existed before our value was set, by index, and whether they forwarded."""
        entry = self._known.get(path)
        return _links_there(path) if entry is None else entry.there

    def noticed(self) -> bool:
        """Record who else has enabled forwarding, and return whether anybody has.

        From then on that value counts as the earlier one: linkspan does not take it back, and closes nothing.
        """
        found = False
        for name in self.watch.written():
            path = str(Path(name).relative_to(ROOT))
            path = _ALSO.get(path, path)
            entry = self._known.get(path)
            if time.monotonic() - self._mended.get(path, 0.0) < _MENDED:
                continue
            if entry is not None and entry.before != entry.ours and _present(path) == entry.ours:
                self._known[path] = msgspec.structs.replace(entry, before=entry.ours)
                found = True
        if found:
            self._kept.save()
        return found

    def observe(self, netns: int) -> Iterable[State]:
        """Yield our settings in the namespace, with their present values."""
        if netns != HOST and not self._passing.get(netns) and not self._links.get(netns):
            return []
        try:
            with self._namespaces.entered(netns):
                # A setting whose link is away now is not forgotten: the link may come back.
                others, of_links = self._present_values(netns)
                found: list[State] = [
                    Sysctl(path, value, netns) for path, value in others.items() if value is not None
                ]
                for path, value in of_links.items():
                    if value is None:
                        self._links[netns].discard(path)
                    else:
                        found.append(LinkSysctl(path, value, netns))
                return found
        except NotFound:
            self._forget(netns)
            raise

    def stamp(self) -> object:
        """Return what stays the same as long as all settings on the host have the same values."""
        paths = *self._known, *sorted(self._links.get(HOST, ()))
        with self._namespaces.entered(HOST):
            if len(paths) > MOST_OPEN:
                self._open.close()
                return self._present_values(HOST)
            try:
                return paths, self._open.texts(paths)
            except OSError:  # too many open files
                return object()

    def _present_values(self, netns: int) -> tuple[dict[str, str | None], dict[str, str | None]]:
        """Return our settings that others use too, and those of links, by path; None if there is no such setting.

        The calling thread is in the namespace.
        """
        paths = sorted(self._links.get(netns, ()))
        values = self._there(paths if netns == HOST else ())
        of_links = {path: values[path] if path in values else _present(path) for path in paths}
        return {path: _present(path) for path in self._entries(netns)}, of_links

    def _there(self, paths: Iterable[str]) -> dict[str, str | None]:
        """Return the values of links' settings on the host, by path: one query for each link, or for all of them."""
        values: dict[str, str | None] = {}
        mine: dict[str, list[str]] = {}
        for path in paths:
            if name := devconf.link_of(path):
                mine.setdefault(name, []).append(path)
        if len(mine) >= FEW:
            return self._all(mine)
        for name, wanted in mine.items():
            with contextlib.suppress(LinkspanError):  # a link that is gone is left out, and the write reports it
                values |= _values(self._sockets.link(HOST, name), wanted)
        return values

    def _all(self, mine: dict[str, list[str]]) -> dict[str, str | None]:
        """Return the values of these paths, which are by link, from a list of all links; those of no link are left out.

        This is asked each second, so a message that the last list had too is not parsed again.
        """
        before = self._answers if mine == self._asked else {}
        self._asked, self._answers = mine, {}
        values: dict[str, str | None] = {}
        for body in self._sockets.link_messages():
            if (found := before.get(hash(body))) is None:
                link = link_messages.link(body)
                found = _values(link, mine.get(link.name, ()))
            self._answers[hash(body)] = found
            values |= found
        return values

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Set and restore, in order; deletes of one namespace in the reverse order of their puts."""
        there = self._there(s.path for s in put if isinstance(s, LinkSysctl) and s.netns == HOST)
        failed = each(put, lambda state: self._put(state, there.get(state.path)))
        try:
            newest_first = self._newest_first(delete)
        except LinkspanError as error:
            return failed | {state.key: error for state in delete}
        return failed | each(newest_first, self._delete)

    def _entries(self, netns: int) -> dict[str, _Entry]:
        return self._known if netns == HOST else self._passing.setdefault(netns, {})

    def _put(self, state: Sysctl | LinkSysctl, there: str | None) -> None:
        """Set it, unless it is known to be right already."""
        if there != state.value:
            with self._namespaces.entered(state.netns):
                known = state.netns == HOST and state.path in self._known
                if isinstance(state, Sysctl):
                    self._remember(state)
                if write(state.path, state.value) and state.netns == HOST and state.path in _FORWARDING:
                    self.watch.written()  # by ourselves
                    if known:
                        self._mended[state.path] = time.monotonic()
        if isinstance(state, LinkSysctl):
            self._links.setdefault(state.netns, set()).add(state.path)

    def _remember(self, state: Sysctl) -> None:
        """Record the present value before a change: after a kill in between the record has too much, not too little."""
        entries = self._entries(state.netns)
        old = entries.get(state.path)
        if old is not None and old.ours == state.value:
            return
        if old:
            entries[state.path] = msgspec.structs.replace(old, ours=state.value)
        else:
            before, along = read(state.path), _along(state.path)
            there = _links_there(state.path)
            lost = bool(self._lost) and state.netns == HOST and before == state.value
            entries[state.path] = _Entry(before, state.value, along, _others(state.path), there, not lost)
        if state.netns == HOST:
            try:
                self._kept.save()
            except LinkspanError:
                if old is None:
                    del entries[state.path]
                else:
                    entries[state.path] = old
                raise

    def _newest_first(self, delete: Sequence[State]) -> list[Sysctl | LinkSysctl]:
        """Return the deletes, the last put first: accept_ra may be restored only after forwarding."""
        states = [s for s in delete if isinstance(s, Sysctl | LinkSysctl)]
        order = {
            (netns, path): number
            for netns in {s.netns for s in states}
            for number, path in enumerate(self._entries(netns))
        }
        return sorted(states, key=lambda s: order.get((s.netns, s.path), -1), reverse=True)

    def _delete(self, state: Sysctl | LinkSysctl) -> None:
        if isinstance(state, LinkSysctl):
            self._links.get(state.netns, set()).discard(state.path)
            return
        entry = self._entries(state.netns).get(state.path)
        if entry is None:
            return
        try:
            with self._namespaces.entered(state.netns):
                # Engines enable forwarding when they start, and not again: an engine that started after us
                # needs our value.
                if read(state.path) == entry.ours and (entry.others or not _others(state.path)):
                    _give_back(state.path, entry)
        except NotFound:
            pass  # the link or the namespace went first, and its setting with it
        del self._entries(state.netns)[state.path]
        if state.netns == HOST:
            self._kept.save()

    def _forget(self, netns: int) -> None:
        self._passing.pop(netns, None)
        self._links.pop(netns, None)


def _rebuilt(closed: Mapping[int, Mapping[str, bool]]) -> Iterable[tuple[str, _Entry]]:
    """Yield the old forwarding, by path, for the families that our rules keep closed."""
    indexes = {name: index for index, name in socket.if_nameindex()}
    for path in _FORWARDING:
        family = 4 if "ipv4" in path else 6
        if family in closed and _present(path) == "1":
            links = {name: forwarded for name, forwarded in closed[family].items() if name in indexes}
            each = {f"net/ipv4/conf/{name}/forwarding": "1" for name, on in links.items() if on and family == 4}
            yield path, _Entry("0", "1", each, there={indexes[name]: on for name, on in links.items()})


def _others(path: str) -> bool:
    """Return whether it is forwarding, and others exist that forward."""
    return path in _FORWARDING and forwarders.present(4 if "ipv4" in path else 6)


def _links_there(path: str) -> dict[int, bool]:
    """Return the existing links, by index, and whether their incoming packets are forwarded."""
    if path not in _FORWARDING:
        return {}
    links = socket.if_nameindex()
    if "ipv6" in path:  # one setting decides for all links (ip6_forward in net/ipv6/ip6_output.c)
        forwarded = _present(path) == "1"
        return {index: forwarded for index, _ in links}
    return {index: _present(f"net/ipv4/conf/{name}/forwarding") == "1" for index, name in links}


def _along(path: str) -> dict[str, str]:
    """Return the present values of what the kernel changes along with a setting."""
    found = [p.relative_to(ROOT) for pattern in _FORWARDING.get(path, ()) for p in ROOT.glob(pattern)]
    present = {str(p): _present(str(p)) for p in found if p.parts[-2:] != ("all", "forwarding")}
    return {name: value for name, value in present.items() if value is not None}


def _give_back(path: str, entry: _Entry) -> None:
    """Write the earlier value, and those that the kernel then changes along with it."""
    during = _along(path)
    write(path, entry.before)
    for name, value in _along(path).items():
        if value != during.get(name, value) and value != entry.along.get(name, value):
            write(name, entry.along[name])


def _present(path: str) -> str | None:
    try:
        return read(path)
    except NotFound:
        return None


def driver(host: LocalHost) -> SysctlDriver:
    """Return the driver of a host's settings."""
    return SysctlDriver(host.namespaces, host.state_dir / "sysctls.json")


def _command(state: Sysctl | LinkSysctl, shell: Shell) -> tuple[str, ...]:
    return (shell.inside(state.netns) + f"sysctl -w {shlex.quote(f'{state.path}={state.value}')}",)


def _link(state: LinkSysctl) -> tuple[Link, ...]:
    return ((state.netns, state.path.split("/")[3]),)


_OF_ALL = {"ipv4": "net/ipv4/ip_forward", "ipv6": "net/ipv6/conf/all/forwarding"}
"""What sets the forwarding of every link."""


def _set_along(state: LinkSysctl) -> tuple[Key, ...]:
    if not state.path.endswith("/forwarding"):
        return ()
    return (Sysctl(_OF_ALL[state.path.split("/")[1]], "").key,)


# An address may be lost with a setting: disabling IPv6 removes its addresses.
_EVENTS = frozenset({Event.LINK, Event.TUNNEL, Event.ADDRESS_GONE, Event.SETTING})

KINDS = (
    Kind(
        state=Sysctl,
        rank=10,
        driver=driver,
        known_by="a record in the state folder, with what was there before",
        purpose="a kernel setting, restored at uninstall",
        sort=Sort.SETTING,
        commands=_command,
        events=_EVENTS,
        poll=True,
    ),
    Kind(
        state=LinkSysctl,
        rank=45,
        driver=driver,
        known_by="its link",
        purpose="a setting of one link, removed with it",
        sort=Sort.SETTING,
        commands=_command,
        on=_link,
        lost_with=_set_along,
        events=_EVENTS,
        poll=True,
    ),
)
