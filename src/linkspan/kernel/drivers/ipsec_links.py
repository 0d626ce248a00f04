"""IPsec device: the kernel's XFRM interface, or the TUN that strongSwan's daemon makes in user space.

The XFRM interface is the kernel's *external* kind: a packet's route names its peer (``encap xfrm if_id``),
and a mark names the peer from which it came. So one device serves all peers.

The TUN appears and disappears with the daemon, which also chooses its name; the daemon's own descriptors show
which one it is (/proc/PID/fdinfo). Its addresses and routes are lost with it; then the pools' ``unreachable``
routes apply.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from linkspan.core.desired import Desired
from linkspan.core.driver_contract import Support
from linkspan.core.errors import Conflict, KernelError, LinkspanError, Unavailable
from linkspan.core.kinds import Admission, Event, Kind, Sort, named
from linkspan.core.shell import Shell
from linkspan.core.states.host import ALTNAME, GROUP, HOST, Key, State
from linkspan.core.states.ipsec import CHARON, IKE_PORTS, LIBIPSEC, LIBIPSEC_FOLDERS, IpsecLink, Strongswan
from linkspan.core.wire import ESP, Wire
from linkspan.kernel.drivers import processes
from linkspan.kernel.drivers.ipsec import control
from linkspan.kernel.drivers.link_attributes import amiss, repairs
from linkspan.kernel.drivers.tunnels import in_group
from linkspan.kernel.io.batch import each
from linkspan.kernel.io.link_messages import (
    ALT_IFNAME,
    DEVGROUP,
    IFNAME,
    INFO_DATA,
    INFO_KIND,
    LINKINFO,
    MTU,
    NESTED,
    PROP_LIST,
    Link,
    ifinfo,
)
from linkspan.kernel.io.netlink import (
    DELLINK,
    F_CREATE,
    F_EXCL,
    NEWLINK,
    NEWLINKPROP,
    SETLINK,
    Message,
    attr,
    text,
    u32,
)
from linkspan.kernel.io.sockets import Sockets
from linkspan.kernel.local_host import LocalHost
from linkspan.kernel.probe.port_owners import holder
from linkspan.kernel.probe.program_path import located

_IF_ID, _EXTERNAL = 2, 3  # linux/if_link.h: IFLA_XFRM_IF_ID, IFLA_XFRM_COLLECT_METADATA
_DELRULE, _PRIORITY, _TABLE = 33, 6, 15  # linux/rtnetlink.h, linux/fib_rules.h: FRA_PRIORITY, FRA_TABLE
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENODEV)
BORN = 5.0
"""Seconds in which a daemon that has begun makes its TUN; it takes 50 ms (measured)."""

RULE, TABLE = 40000, 76
"""Where the daemon puts routes of its own in user space: behind all tables that anybody looks at (the default's rule
has 32767), so that the routes that count are ours."""


class IpsecLinkDriver:
    """IpsecLink."""

    def __init__(
        self, sockets: Sockets, pid: Callable[[str], int] = lambda _: 0, control: Path = Path()
    ) -> None:
        """Take ``pid``, which returns the process of a helper (0: none), and ``control``, the daemon's socket."""
        self._sockets = sockets
        self._pid = pid
        self._control = control
        self._xfrm: bool | None = None

    def probe(self) -> Support:
        """Return support; see ``kernel``."""
        return Support("kernel" if self.kernel() else "user space")

    def kernel(self) -> bool:
        """Return whether the kernel makes XFRM interfaces; asked once, with an impossible one."""
        if self._xfrm is None:
            # An external one has no if_id (xfrmi_newlink in net/xfrm/xfrm_interface_core.c), so a kernel with
            # the kind refuses this.
            info = text(INFO_KIND, "xfrm")
            info += attr(INFO_DATA | NESTED, u32(_IF_ID, 1) + attr(_EXTERNAL, b""))
            body = ifinfo() + attr(LINKINFO | NESTED, info)
            message = Message(NEWLINK, F_CREATE | F_EXCL, body, "ask for an XFRM interface")
            (error,) = self._sockets.at(HOST).batch([message])
            self._xfrm = error is None or error.errno not in _UNSUPPORTED
        return self._xfrm

    def observe(self, netns: int) -> Iterable[State]:
        """Return our device."""
        if netns != HOST:
            return []
        return [state for one in self._sockets.links(HOST) if (state := self._state(one)) is not None]

    def _state(self, there: Link) -> IpsecLink | None:
        name, kind = there.name, there.kind
        made_as = _MADE_AS.get(name.rstrip("0123456789"))
        if f"{ALTNAME}{name}" not in there.altnames or kind != made_as:
            return None
        up = there.up and in_group(there)
        return IpsecLink(name, there.mtu, PROCESS if kind == "tun" else "", up, amiss(there, arp=False))

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Make the kernel's device, or find the daemon's and set it up; remove the kernel's."""
        return each(put, self._put) | each(delete, self._delete)

    def _put(self, state: IpsecLink) -> None:
        if state.tun:
            self._await(state)
            births = []
        else:
            births = self._births(state)
        prop = ifinfo() + text(IFNAME, state.name) + attr(PROP_LIST | NESTED, text(ALT_IFNAME, state.altname))
        up = ifinfo(up=True) + text(IFNAME, state.name) + u32(MTU, state.mtu) + u32(DEVGROUP, GROUP)
        there = self._sockets.find(HOST, state.name)
        wrong = amiss(there, arp=False) if there else ()
        results = self._sockets.at(HOST).batch(
            [
                *births,
                Message(NEWLINKPROP, F_CREATE | F_EXCL, prop, f"name link {state.name} {state.altname}"),
                Message(SETLINK, 0, up, f"set link {state.name} up"),
                *repairs(state.name, wrong, arp=False),
            ]
        )
        for error in results:
            if error is not None and error.errno != errno.EEXIST:
                raise error

    def _births(self, state: IpsecLink) -> list[Message]:
        there = self._sockets.find(HOST, state.name)
        xfrm = there is not None and there.kind == "xfrm"
        if there is not None and self._state(there) is None and not (xfrm and in_group(there)):
            hint = f"remove or rename it: ip link del {state.name}"
            raise Conflict(f"link {state.name} exists and is not linkspan's", hint)
        if xfrm:
            return []
        info = text(INFO_KIND, "xfrm") + attr(INFO_DATA | NESTED, attr(_EXTERNAL, b""))
        body = ifinfo() + text(IFNAME, state.name) + attr(LINKINFO | NESTED, info)
        return [Message(NEWLINK, F_CREATE | F_EXCL, body, f"add XFRM interface {state.name}")]

    def _await(self, state: IpsecLink) -> None:
        """Wait for the daemon's TUN. Raises Unavailable or Conflict if none with this name appears."""
        end = time.monotonic() + BORN
        while not (names := _tuns(pid := self._pid(state.process))):
            lost = bool(pid) and self._serves()
            if lost and not _tuns(pid):  # somebody has removed it: only a new daemon makes a new one
                os.kill(pid, signal.SIGTERM)
            if lost or not pid or time.monotonic() > end:
                raise Unavailable(
                    f"{state.process} has no device {state.name}", "charon.log in the state folder shows why"
                )
            time.sleep(0.01)
        if state.name in names:
            return
        if self._sockets.find(HOST, state.name) is None:  # its owner is gone: only a new daemon takes the name
            os.kill(pid, signal.SIGTERM)
        raise Conflict(
            f"link {state.name} belongs to another program, so strongSwan's device is called {', '.join(names)}",
            f"remove or rename it (ip link del {state.name}), or stop the program that made it (another IPsec daemon?)",
        )

    def _serves(self) -> bool:
        """Return whether the daemon has started: it has its device by then."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as way:
            return way.connect_ex(str(self._control)) == 0

    def _delete(self, state: IpsecLink) -> None:
        if state.tun:  # the device went with its daemon; a killed daemon has left its rule
            body = struct.pack("=12B", socket.AF_INET, *bytes(11)) + u32(_PRIORITY, RULE) + u32(_TABLE, TABLE)
            for family in (socket.AF_INET, socket.AF_INET6):
                with contextlib.suppress(KernelError):
                    self._sockets.at(HOST).request(
                        Message(_DELRULE, 0, bytes([family]) + body[1:], "remove strongSwan's rule")
                    )
            return
        there = self._sockets.find(HOST, state.name)
        if there is None or self._state(there) is None:
            return  # another program's, which was in our way
        try:
            body = ifinfo() + text(IFNAME, state.name)
            self._sockets.at(HOST).request(Message(DELLINK, 0, body, f"delete link {state.name}"))
        except KernelError as error:
            if error.errno != errno.ENODEV:
                raise


_MADE_AS = {"lsipsec": "xfrm", "ipsec": "tun"}
"""The kernel's kind of link by how the device's name begins."""
PROCESS = "charon"
"""The daemon's name as a Process."""


def _tuns(pid: int) -> list[str]:
    """Return the names of the TUNs that a process has open (``iff:`` in its fdinfo, drivers/net/tun.c)."""
    found = []
    with contextlib.suppress(OSError):
        for file in Path(f"/proc/{pid}/fdinfo").iterdir() if pid else ():
            with contextlib.suppress(OSError):
                for line in file.read_text().splitlines():
                    if line.startswith("iff:"):
                        found += line.split()[1:]
    return found


def driver(host: LocalHost) -> IpsecLinkDriver:
    """Return the driver of IPsec's device."""
    return IpsecLinkDriver(host.sockets, lambda name: host.driver(processes.driver).pid(name), control(host))


def _daemon(host: LocalHost, _desired: Desired) -> Strongswan | None:
    """Return strongSwan's daemon, and who holds IKE's ports while it does not run itself."""
    daemon = located("charon-systemd")
    if daemon is None:
        return None
    holders: list[tuple[int, str]] = []
    if not host.driver(processes.driver).pid(CHARON):
        found = ((port, holder("udp", "", port)) for port in IKE_PORTS)
        holders = [(port, who) for port, who in found if who]
    plugin = any(Path(folder, LIBIPSEC).exists() for folder in LIBIPSEC_FOLDERS)
    return Strongswan(daemon, str(control(host).parent), host.driver(driver).kernel(), plugin, tuple(holders))


def _add(state: IpsecLink, _shell: Shell) -> tuple[str, ...]:
    name = shlex.quote(state.name)
    if state.tun:
        born = f"until ip link show {name} >/dev/null 2>&1; do sleep 0.1; done"
    else:
        born = f"ip link add {name} type xfrm external"
    return (
        born,
        f"ip link property add dev {name} altname {shlex.quote(state.altname)}",
        f"ip link set {name} mtu {state.mtu} group {GROUP}{' up' if state.up else ''}",
    )


def _wire(state: IpsecLink) -> Wire:
    return Wire(state.name, ESP)


KINDS = (
    Kind(
        state=IpsecLink,
        rank=72,
        driver=driver,
        known_by="an alternative name `linkspan:NAME`",
        purpose="a device whose packets are encrypted by IPsec",
        sort=Sort.LINK,
        finds={Strongswan: _daemon},
        commands=_add,
        makes=named,
        late=True,
        events=frozenset({Event.TUNNEL, Event.HELPER}),
        counted=False,
        names=("lsipsec", "ipsec0"),
        forms={"lsipsec": frozenset({"xfrm"}), "ipsec0": frozenset({"tun"})},
        grouped=True,
        admits={"lsipsec": Admission.MARK},
        wire=_wire,
    ),
)
