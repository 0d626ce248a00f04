"""Kernel settings below /proc/sys/net, which shows the namespace of the thread that looks.

**Sysctl** is a setting of somebody else's: the value before ours is written down before the first write and
given back at delete, where the value is still ours. For the host's namespace it is kept in a file, by which
an agent with no memory knows what is ours; a container's namespace goes with its container, and the
process's own memory will do. A value that lasted over a reboot was not ours: the file counts for one boot
and one namespace only. Where the file is lost, our rules tell what forwarding was (``closed_links``). What other
settings were nobody knows then: they are left as they are, and said (``unknown``).

**LinkSysctl** is a setting of a link of ours, and goes with it: nothing is written down. What was put is
read again at each observe, so that a value changed by hand is found; one whose link is gone is forgotten.
After a restart they are put once more, which writes nothing where the value is right. On the host one question for
each link tells most of them (``devconf.py``).

Values are compared with white space collapsed, as one space: give them so.
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

from linkspan.core.contracts import Support
from linkspan.core.errors import LinkspanError, NotFound, of_errno
from linkspan.core.kinds import Event, Kind, Link, Sort
from linkspan.core.shell import Shell
from linkspan.core.states.host import HOST, Key, LinkSysctl, State, Sysctl
from linkspan.kernel.io import devconf
from linkspan.kernel.io.batch import each
from linkspan.kernel.io.durable_files import Memory, boot_id
from linkspan.kernel.io.inotify import WriteWatch
from linkspan.kernel.io.namespaces import Namespaces
from linkspan.kernel.io.netlink import Sockets
from linkspan.kernel.local_host import LocalHost
from linkspan.kernel.probe import closed_links, forwarders

ROOT = Path("/proc/sys")
LONGEST = 4096
"""Bytes of a setting: one page, as sysctl's own buffers are."""


_FORWARDING = {
    "net/ipv4/ip_forward": ("net/ipv4/conf/*/forwarding", "net/ipv4/conf/all/accept_redirects"),
    "net/ipv6/conf/all/forwarding": ("net/ipv6/conf/*/forwarding",),
}
"""What the kernel sets along with a setting: inet_forward_change and addrconf_forward_change."""


_ALSO = {"net/ipv4/conf/all/forwarding": "net/ipv4/ip_forward"}
"""Files that are another name of a setting of forwarding."""

_WITHOUT = "forwarding is then given back as far as linkspan's rules tell what it was, and other settings stay"
"""What follows from moving the file away."""

_MENDED = 0.5
"""Seconds after a setting was put back for which a writer's end means nothing: it may be who had changed it."""


class _Entry(msgspec.Struct):
    before: str
    ours: str
    along: dict[str, str] = {}
    """What the kernel set along with ours, as it was before."""
    others: bool = False
    """Of forwarding: whether others were there already, and lived without it."""
    there: dict[int, bool] = {}
    """Of forwarding: by index, the links that were there, and whether what came in by them was forwarded."""
    known: bool = True
    """Whether ``before`` was there before ours, and is not ours itself."""


def read(path: str) -> str:
    """Return a setting of the calling thread's namespace. Raises NotFound where there is no such setting."""
    try:  # thousands of these each second on a host with many containers: a third of the time of Path.read_text
        fd = os.open(f"{ROOT}/{path}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = os.read(fd, LONGEST)
        finally:
            os.close(fd)
    except OSError as error:
        raise _error(error, f"read sysctl {path}") from error
    return " ".join(text.decode("ascii").split())


def write(path: str, value: str) -> bool:
    """Set it where it differs, and return whether it did. Raises NotFound, or KernelError for a value refused."""
    if read(path) == value:
        return False
    try:
        (ROOT / path).write_text(value, encoding="ascii")
    except OSError as error:
        raise _error(error, f"set sysctl {path} to {value}") from error
    return True


def _error(error: OSError, what: str) -> LinkspanError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        hint = "is the link gone, or the kernel without this protocol?"
        return NotFound(f"{what}: there is no such setting", hint)
    return of_errno(error.errno or 0, what)


class SysctlDriver:
    """Sets kernel settings and gives back what was there before."""

    def __init__(self, namespaces: Namespaces, memory_file: Path) -> None:
        self._namespaces = namespaces
        epoch = f"{boot_id()}:{namespaces.home}"
        self._kept: Memory[_Entry] = Memory(memory_file, _Entry, epoch, without=_WITHOUT)
        self._lost: bool | None = None
        """Whether an agent wrote the file, and it is lost; None: nobody has looked yet."""
        self._passing: dict[int, dict[str, _Entry]] = {}
        self._links: dict[int, set[str]] = {}
        self._sockets = Sockets(namespaces)
        self.watch = WriteWatch(ROOT / path for path in (*_FORWARDING, *_ALSO))
        """Readable where somebody has written to a setting of forwarding, be it the value that it has."""
        self._mended: dict[str, float] = {}
        """When a setting of forwarding was put back that somebody had changed."""

    def probe(self) -> Support:
        """Every Linux has it; a container may have it read-only."""
        return Support("kernel")

    def settle(self, *, ran_before: bool) -> str:
        """Write down what settings were before linkspan; return what is to be told where that was lost, '' else.

        ``ran_before`` tells that an agent ran here in this boot: so there was a file.
        """
        entries = self._known
        if self._kept.found:
            return ""
        self._lost = self._lost or ran_before
        with contextlib.suppress(LinkspanError):  # a full disk: the next look says so
            self._kept.save()
        if not self._lost:
            return ""
        told = ", ".join(sorted(entries))
        found = f"linkspan's rules tell it of {told}" if told else "no rules of linkspan's tell it of forwarding"
        return f"{self._kept.path} was lost, which had what settings were before linkspan: {found}"

    def unknown(self) -> dict[str, str]:
        """Return the host's settings that linkspan set and cannot give back, with their values, by path."""
        return {path: entry.ours for path, entry in list(self._known.items()) if not entry.known}

    @property
    def _known(self) -> dict[str, _Entry]:
        """What is known of the host's settings before ours: by the file or, where that is lost, by our rules."""
        entries = self._kept.entries
        if self._lost is None:
            told = None if self._kept.found else closed_links.links_before()
            self._lost = told is not None
            entries.update(_rebuilt(told or {}))
        return entries

    def before(self, path: str) -> str:
        """Return the host's value before ours, the present one where it is not ours, '' where there is none."""
        if entry := self._known.get(path):
            return entry.before
        try:
            return read(path)
        except LinkspanError:
            return ""

    def there(self, path: str) -> dict[int, bool]:
        """Return the links that were there before ours was set, by index, and whether they forwarded; now's without."""
        entry = self._known.get(path)
        return _links_there(path) if entry is None else entry.there

    def noticed(self) -> bool:
        """Take note of who has turned forwarding on besides us, and return whether anybody has.

        The value was there before from then on: it is not taken back, and closes nothing.
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
        """Yield those of ours in the namespace, with the values that they have now."""
        if netns != HOST and not self._passing.get(netns) and not self._links.get(netns):
            return []
        try:
            with self._namespaces.entered(netns):
                # Not there now (its link is away) is not forgotten: the link may come back.
                present = ((path, _present(path)) for path in self._entries(netns))
                found: list[State] = [
                    Sysctl(path, value, netns) for path, value in present if value is not None
                ]
                paths = sorted(self._links.get(netns, ()))
                values = self._there(paths if netns == HOST else ())
                for path in paths:
                    if (value := values[path] if path in values else _present(path)) is None:
                        self._links[netns].discard(path)
                    else:
                        found.append(LinkSysctl(path, value, netns))
                return found
        except NotFound:
            self._forget(netns)
            raise

    def _there(self, paths: Iterable[str]) -> dict[str, str | None]:
        """Return the values of links' settings on the host, by path: one question for each link."""
        values: dict[str, str | None] = {}
        links: dict[str, list[str]] = {}
        for path in paths:
            if link := devconf.link_of(path):
                links.setdefault(link, []).append(path)
        for name, mine in links.items():
            try:
                arrays = devconf.arrays(self._sockets.link(HOST, name))
            except LinkspanError:  # the link is gone: the write says so
                continue
            values.update((path, devconf.value(path, arrays)) for path in mine)
        return values

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Set and give back, in order; deletes of one namespace in the reverse order of their puts."""
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
        """Set it, where it is not known to be right already."""
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
        """Write down what is there before it is changed: a kill in between leaves too much, not too little."""
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
        """Return the deletes, the last put first: accept_ra may go back only once forwarding has."""
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
                # Engines turn forwarding on when they start, and not again: one that came after us needs ours.
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
    """Yield what forwarding was, by path, for the families that our rules keep closed."""
    indexes = {name: index for index, name in socket.if_nameindex()}
    for path in _FORWARDING:
        family = 4 if "ipv4" in path else 6
        if family in closed and _present(path) == "1":
            links = {name: forwarded for name, forwarded in closed[family].items() if name in indexes}
            each = {f"net/ipv4/conf/{name}/forwarding": "1" for name, on in links.items() if on and family == 4}
            yield path, _Entry("0", "1", each, there={indexes[name]: on for name, on in links.items()})


def _others(path: str) -> bool:
    """Tell whether it is forwarding, and others are there that forward."""
    return path in _FORWARDING and forwarders.present(4 if "ipv4" in path else 6)


def _links_there(path: str) -> dict[int, bool]:
    """Return the links that there are, by index, and whether what comes in by them is forwarded."""
    if path not in _FORWARDING:
        return {}
    links = socket.if_nameindex()
    if "ipv6" in path:  # the one setting decides for all links (ip6_forward in net/ipv6/ip6_output.c)
        forwarded = _present(path) == "1"
        return {index: forwarded for index, _ in links}
    return {index: _present(f"net/ipv4/conf/{name}/forwarding") == "1" for index, name in links}


def _along(path: str) -> dict[str, str]:
    """Return what the kernel sets along with a setting, as it is now."""
    found = [p.relative_to(ROOT) for pattern in _FORWARDING.get(path, ()) for p in ROOT.glob(pattern)]
    present = {str(p): _present(str(p)) for p in found if p.parts[-2:] != ("all", "forwarding")}
    return {name: value for name, value in present.items() if value is not None}


def _give_back(path: str, entry: _Entry) -> None:
    """Write the value before ours, and those that the kernel then changes along with it."""
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


# An address may have gone with a setting: IPv6's go where it is disabled.
_EVENTS = frozenset({Event.LINK, Event.TUNNEL, Event.ADDRESS_GONE, Event.SETTING})

KINDS = (
    Kind(
        state=Sysctl,
        rank=10,
        driver=driver,
        known_by="a record in the state folder, with what was there before",
        purpose="a setting of the kernel, put back at uninstall",
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
        purpose="a setting of one link, which goes with it",
        sort=Sort.SETTING,
        commands=_command,
        on=_link,
        lost_with=_set_along,
        events=_EVENTS,
        poll=True,
    ),
)
