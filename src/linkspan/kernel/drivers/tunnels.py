"""Tunnel devices: VXLAN, and IPIP and WireGuard as the kernel's devices or as persistent TUNs.

A device is created with its MAC (a network manager would rewrite one that is set later), its alternative name
and up, by one send. VNI, port and local address cannot be changed in place: such a device is replaced, and
the next pass finds what was lost with it (addresses, entries, routes). A VXLAN that was made to learn, to
flood, or to send otherwise than ours (TTL, device, proxy), is observed with VNI 0, and so replaced. A device
that has lost its alternative name is recognised by what it was made with.

If a kernel lacks the ipip module (or wireguard's), a TUN replaces the device, and a helper in user space
serves it. It is persistent: when the helper ends, device and routes stay, and packets wait in the device's
queue.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shlex
import struct
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from linkspan.core.addresses import mac_text
from linkspan.core.driver_contract import Support
from linkspan.core.errors import Conflict, KernelError, LinkspanError, of_errno
from linkspan.core.kinds import Admission, Event, Kind, Sort, named
from linkspan.core.shell import Shell, address_text
from linkspan.core.states.host import GROUP, HOST, Ipip, Key, State, Vxlan, Wireguard
from linkspan.core.states.wireguard import DEVICE
from linkspan.core.wire import IPIP, VXLAN, WIREGUARD, Wire
from linkspan.kernel.drivers.link_attributes import amiss, other_mac, repairs
from linkspan.kernel.io.batch import each
from linkspan.kernel.io.link_messages import (
    ADDRESS,
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
    GENERIC,
    NEWLINK,
    NEWLINKPROP,
    SETLINK,
    Message,
    Socket,
    attr,
    text,
    u32,
)
from linkspan.kernel.io.sockets import Sockets
from linkspan.kernel.local_host import LocalHost

# linux/if_link.h: IFLA_VXLAN_*
_ID, _GROUP, _LOCAL, _LEARNING, _PORT, _GROUP6, _LOCAL6, _COLLECT = 1, 2, 4, 7, 15, 16, 17, 25
_ODD = (3, 5, 11, 19, 28, 29)  # _LINK, _TTL, _PROXY, _UDP_ZERO_CSUM6_TX, _TTL_INHERIT, _DF
_IPTUN_LOCAL, _IPTUN_REMOTE, _IPTUN_PROTO = 2, 3, 9  # linux/if_tunnel.h: IFLA_IPTUN_*
_IPTUN_ODD = (1, 4, 15)  # _LINK, _TTL, _ENCAP_TYPE
# linux/if_tun.h
TUNSETIFF, _TUNSETPERSIST, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x400454CB, 0x0001, 0x1000
TUN = "/dev/net/tun"

_NAMES = ("lsx", "lsipip", "lswg")
_TXQLEN = 13  # linux/if_link.h
QUEUE = 2000
"""Queue length of IPIP's TUN in packets: 24 ms at 1 Gbit/s. With the kernel's 500, one TCP stream loses 1 % (measured).

wireguard-go reads up to 64 KB at once, and uses the kernel's value: with 2000 one stream carries 5 to 10 % less
(measured)."""

_CTRL, _CTRL_GETFAMILY, _CTRL_NAME = 16, 3, 2  # linux/genetlink.h

_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENODEV)

Tunnel = Vxlan | Ipip | Wireguard


class TunnelDriver:
    """Vxlan, Ipip and Wireguard."""

    def __init__(self, sockets: Sockets) -> None:
        self._sockets = sockets
        self._ipip: Support | None = None
        self._wireguard: Support | None = None

    def probe(self) -> Support:
        """Return support: every kernel that runs containers has VXLAN; see ``ipip`` for the other."""
        return Support("kernel")

    def ipip(self) -> Support:
        """Return whether the kernel makes IPIP devices; asked once, with an impossible one."""
        if self._ipip is None:
            self._ipip = self._ask_for_ipip()
        return self._ipip

    def _ask_for_ipip(self) -> Support:
        # No ipip device carries protocol 255: a kernel with ipip refuses it in ipip_tunnel_validate
        # (net/ipv4/ipip.c).
        info = text(INFO_KIND, "ipip") + attr(INFO_DATA | NESTED, attr(_IPTUN_PROTO, b"\xff"))
        body = ifinfo() + attr(LINKINFO | NESTED, info)
        message = Message(NEWLINK, F_CREATE | F_EXCL, body, "ask for an IPIP device")
        (error,) = self._sockets.at(HOST).batch([message])
        if error is None or error.errno not in _UNSUPPORTED:
            return Support("kernel")
        if not os.path.exists(TUN):  # noqa: PTH110
            return Support("", f"the kernel has neither ipip devices nor {TUN}")
        return Support("user space")

    def wireguard(self) -> Support:
        """Return whether the kernel makes WireGuard devices; asked once, for its generic netlink family."""
        if self._wireguard is None:
            self._wireguard = self._ask_for_wireguard()
        return self._wireguard

    def _ask_for_wireguard(self) -> Support:
        socket = Socket(GENERIC)
        try:
            body = struct.pack("=BBH", _CTRL_GETFAMILY, 1, 0) + text(_CTRL_NAME, "wireguard")
            socket.get(Message(_CTRL, 0, body, "ask for WireGuard"))  # this loads the module
            return Support("kernel")
        except KernelError:
            pass
        finally:
            socket.close()
        if not os.path.exists(TUN):  # noqa: PTH110
            return Support("", f"the kernel has neither WireGuard nor {TUN}")
        return Support("user space")

    def observe(self, netns: int) -> Iterable[State]:
        """Return our tunnel devices."""
        if netns != HOST:
            return []
        ours = (link for link in self._sockets.links(HOST) if link.ours)
        return [state for link in ours if (state := _tunnel(link))]

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Make, repair, replace and remove devices; a foreign one with the same name is a Conflict, and stays."""
        return each(put, self._put) | each(delete, self._remove)

    def _remove(self, state: Tunnel) -> None:
        there = self._sockets.find(HOST, state.name)
        if there is None:
            return
        if there.ours or (there.kind != "tun" and _made_for(there, state)):
            self._delete(state)

    def _put(self, state: Tunnel) -> None:
        there = self._sockets.find(HOST, state.name)
        if there is not None:
            if not there.ours and not _made_for(there, state):
                hint = f"remove or rename it: ip link del {state.name}"
                raise Conflict(f"link {state.name} exists and is not linkspan's", hint)
            if not _same(_tunnel(there), state):  # a device that has only lost its name stays
                self._delete(state)
                there = None
        elif (renamed := self._sockets.find(HOST, state.altname, ALT_IFNAME)) is not None:
            # It has the port, or the helper.
            self._delete(msgspec.structs.replace(state, name=renamed.name))
        births = [] if there is not None else self._birth(state)
        arp = isinstance(state, Vxlan)
        wrong = () if there is None else repairs(state.name, amiss(there, arp=arp), arp=arp)
        mac = other_mac(state.name, state.mac, there.found) if there is not None and isinstance(state, Vxlan) else ()
        results = self._sockets.at(HOST).batch([*births, *_finish(state), *mac, *wrong])
        if (
            births and results[0] is not None
        ):  # if the name is free, EEXIST is about the VNI (or the local address)
            raise results[0]
        for error in results:
            if error is not None and error.errno != errno.EEXIST:
                raise error

    def _birth(self, state: Tunnel) -> list[Message]:
        body = ifinfo() + text(IFNAME, state.name)
        if not isinstance(state, Vxlan) and state.tun:
            _make_tun(state.name)
            return []
        if isinstance(state, Wireguard):
            kind, data = "wireguard", b""
        elif isinstance(state, Ipip):
            kind, data = "ipip", attr(_IPTUN_LOCAL, state.local)
        else:
            body += attr(ADDRESS, state.mac) + u32(MTU, state.mtu)
            local = _LOCAL if len(state.local) == 4 else _LOCAL6
            data = u32(_ID, state.vni) + attr(local, state.local) + attr(_LEARNING, b"\0")
            kind, data = "vxlan", data + attr(_PORT, struct.pack(">H", state.port))
        info = attr(LINKINFO | NESTED, text(INFO_KIND, kind) + attr(INFO_DATA | NESTED, data))
        return [Message(NEWLINK, F_CREATE | F_EXCL, body + info, f"add {kind} device {state.name}")]

    def _delete(self, state: Tunnel) -> None:
        body = ifinfo() + text(IFNAME, state.name)
        try:
            self._sockets.at(HOST).request(Message(DELLINK, 0, body, f"delete link {state.name}"))
        except KernelError as error:
            if error.errno != errno.ENODEV:
                raise


def _finish(state: Tunnel) -> list[Message]:
    name = text(IFNAME, state.name)
    prop = ifinfo() + name + attr(PROP_LIST | NESTED, text(ALT_IFNAME, state.altname))
    queue = u32(_TXQLEN, QUEUE) if isinstance(state, Ipip) and state.tun else b""
    group = u32(DEVGROUP, GROUP) if isinstance(state, Wireguard) else b""
    up = ifinfo(up=True) + name + u32(MTU, state.mtu) + queue + group
    return [
        Message(NEWLINKPROP, F_CREATE | F_EXCL, prop, f"name link {state.name} {state.altname}"),
        Message(SETLINK, 0, up, f"set link {state.name} up"),
    ]


def _make_tun(name: str) -> None:
    """Make a persistent TUN in the calling thread's namespace, or find it there."""
    try:
        tun = os.open(TUN, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
            fcntl.ioctl(tun, _TUNSETPERSIST, 1)
        finally:
            os.close(tun)
    except OSError as error:
        raise of_errno(error.errno or 0, f"add TUN {name}") from error


def in_group(there: Link) -> bool:
    """Return whether a device is in the group of our encrypting ones; otherwise rules drop its packets."""
    return there.group == GROUP


def _made_for(there: Link, state: Tunnel) -> bool:
    """Return whether a device without our alternative name is ours, by properties that no other has.

    A TUN exists before it has its name: an agent killed in between left it without.
    """
    match state, there.kind:
        case (Ipip() | Wireguard(), "tun"):
            return True
        case (Wireguard(), "wireguard"):
            return in_group(there)
        case (Ipip(), "ipip"):
            return there.data.get(_IPTUN_LOCAL) == state.local
        case (Vxlan(), "vxlan"):
            return there.mac == state.mac and there.data.get(_ID) == struct.pack("=I", state.vni)
    return False


def _tunnel(there: Link) -> Tunnel | None:
    name, mtu, up = there.name, there.mtu, there.up
    if not name.startswith(_NAMES):
        return None
    data, kind = there.data, there.kind
    wrong = amiss(there, arp=kind == "vxlan")
    match kind:
        case "tun" if name.startswith(DEVICE):
            return Wireguard(name, mtu, tun=True, up=up and in_group(there), amiss=wrong)
        case "wireguard":
            return Wireguard(name, mtu, tun=False, up=up and in_group(there), amiss=wrong)
        case "tun":
            return Ipip(name, mtu, b"", tun=True, up=up, amiss=wrong)
        case "ipip":
            local = bytes(data.get(_IPTUN_LOCAL, b""))
            odd = any(data.get(_IPTUN_REMOTE, b"")) or any(any(data.get(number, b"")) for number in _IPTUN_ODD)
            return Ipip(name, mtu, b"" if odd else local, tun=False, up=up, amiss=wrong)
        case "vxlan":
            learns = data.get(_LEARNING) != b"\0"
            odd = learns or data.get(_COLLECT) == b"\1" or any(data.get(_GROUP) or data.get(_GROUP6) or b"")
            odd = odd or any(any(data.get(number, b"")) for number in _ODD)
            vni = 0 if odd else struct.unpack("=I", data[_ID])[0]
            local = bytes(data.get(_LOCAL) or data.get(_LOCAL6) or b"")
            port = struct.unpack(">H", data[_PORT])[0]
            return Vxlan(name, vni, there.mac, mtu, port, local, up, wrong)
    return None


def _same(there: Tunnel | None, wanted: Tunnel) -> bool:
    """Return whether everything that cannot be changed in place is as desired."""
    match there, wanted:
        case Vxlan(), Vxlan():
            return (there.vni, there.port, there.local) == (wanted.vni, wanted.port, wanted.local)
        case Ipip(), Ipip():
            return (there.tun, there.local) == (wanted.tun, wanted.local)
        case Wireguard(), Wireguard():
            return there.tun == wanted.tun
    return False


def driver(host: LocalHost) -> TunnelDriver:
    """Return the driver of tunnel devices."""
    return TunnelDriver(host.sockets)


def _add_vxlan(state: Vxlan, _shell: Shell) -> tuple[str, ...]:
    what = f"vxlan id {state.vni} dstport {state.port} local {address_text(state.local)} nolearning"
    add = f"ip link add {shlex.quote(state.name)} address {mac_text(state.mac)} type {what}"
    return add, *_set_up(state)


def _add_ipip(state: Ipip, _shell: Shell) -> tuple[str, ...]:
    name = shlex.quote(state.name)
    add = f"ip link add {name} type ipip local {address_text(state.local)}" if not state.tun else _add_tun(name)
    return add, *_set_up(state)


def _add_wireguard(state: Wireguard, _shell: Shell) -> tuple[str, ...]:
    name = shlex.quote(state.name)
    add = f"ip link add {name} type wireguard" if not state.tun else _add_tun(name)
    return add, *_set_up(state, f" group {GROUP}")


def _add_tun(name: str) -> str:
    return f"ip tuntap add dev {name} mode tun"


def _set_up(state: Tunnel, group: str = "") -> tuple[str, ...]:
    name = shlex.quote(state.name)
    return (
        f"ip link property add dev {name} altname {shlex.quote(state.altname)}",
        f"ip link set {name} mtu {state.mtu}{group}{' up' if state.up else ''}",
    )


def _vxlan(state: Vxlan) -> Wire:
    return Wire(state.name, VXLAN, state.local, state.port, state.vni)


def _ipip(state: Ipip) -> Wire:
    return Wire(state.name, IPIP, state.local)


def _wireguard(state: Wireguard) -> Wire:
    return Wire(state.name, WIREGUARD)


_KNOWN_BY = "an alternative name `linkspan:NAME`"

KINDS = (
    Kind(
        state=Vxlan,
        rank=43,
        driver=driver,
        known_by=_KNOWN_BY,
        purpose="a tunnel to all other hosts: frames in UDP",
        sort=Sort.LINK,
        commands=_add_vxlan,
        makes=named,
        events=frozenset({Event.TUNNEL}),
        names=("lsx*",),
        forms={"lsx[0-9a-f]{1,6}": frozenset({"vxlan"})},
        admits={"lsx*": Admission.VTEP},
        resolves=True,
        wire=_vxlan,
    ),
    Kind(
        state=Ipip,
        rank=43,
        driver=driver,
        known_by=_KNOWN_BY,
        purpose="a tunnel to all other hosts: packets in packets",
        sort=Sort.LINK,
        commands=_add_ipip,
        makes=named,
        events=frozenset({Event.TUNNEL, Event.HELPER}),
        names=("lsipip",),
        forms={"lsipip": frozenset({"ipip", "tun"})},
        wire=_ipip,
    ),
    Kind(
        state=Wireguard,
        rank=43,
        driver=driver,
        known_by=_KNOWN_BY,
        purpose="a tunnel to all other hosts: encrypted packets in UDP",
        sort=Sort.LINK,
        commands=_add_wireguard,
        makes=named,
        events=frozenset({Event.TUNNEL, Event.HELPER}),
        names=(DEVICE,),
        forms={DEVICE: frozenset({"wireguard", "tun"})},
        grouped=True,
        wire=_wireguard,
    ),
)
