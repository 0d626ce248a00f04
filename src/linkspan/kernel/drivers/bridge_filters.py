"""Bridge filters: bridges of ours whose frames pass the rules of IPv4 and IPv6 (the kernel's br_netfilter).

The kernel has this switch for each bridge (IFLA_BR_NF_CALL_*), and one for all bridges of a network namespace
(net.bridge.bridge-nf-call-*), which is not ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from linkspan.core.driver_contract import Support
from linkspan.core.errors import KernelError, LinkspanError
from linkspan.core.kinds import Event, Kind, on_device
from linkspan.core.shell import Shell
from linkspan.core.states.host import HOST, BridgeFilter, Key, State
from linkspan.kernel.io.batch import each
from linkspan.kernel.io.link_messages import IFNAME, INFO_DATA, INFO_KIND, LINKINFO, NESTED, ifinfo
from linkspan.kernel.io.netlink import NEWLINK, Message, attr, text
from linkspan.kernel.io.sockets import Sockets
from linkspan.kernel.local_host import LocalHost

_SWITCHES = {36: "nf_call_iptables", 37: "nf_call_ip6tables"}
"""IFLA_BR_* of linux/if_link.h, by the names that `ip` has."""
_ON, _OFF = b"\1", b"\0"
_MODULE = Path("/proc/sys/net/bridge")
MISSING = "the kernel's module br_netfilter is not loaded"
FIX = (
    "modprobe br_netfilter, and for the next boot: echo br_netfilter >/etc/modules-load.d/linkspan.conf "
    "(net.bridge.bridge-nf-call-iptables then decides about all other bridges)"
)
"""linkspan does not load it: the module switches the frames of other programs' bridges to the rules of IP, too."""


def available() -> bool:
    """Return whether the kernel can pass a bridge's frames to the rules of IP."""
    return _MODULE.is_dir()


class BridgeFilterDriver:
    """Turns both switches of a bridge on, or off again."""

    def __init__(self, sockets: Sockets) -> None:
        self._sockets = sockets

    def probe(self) -> Support:
        """Return support: the switches exist without the module, but have no effect."""
        return Support("kernel") if available() else Support("", MISSING)

    def observe(self, netns: int) -> Iterable[State]:
        """Return the bridges of ours of which a switch is on; ``amiss`` names one that is off."""
        for link in self._sockets.links(netns) if netns == HOST else ():
            if link.kind == "bridge" and link.ours:
                off = tuple(f"{name} off" for number, name in _SWITCHES.items() if link.data.get(number) != _ON)
                if len(off) < len(_SWITCHES):
                    yield BridgeFilter(link.name, off)

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Turn the switches on or off; a bridge that is gone has none."""
        return each(put, self._put) | each(delete, self._delete)

    def _put(self, state: State) -> None:
        assert isinstance(state, BridgeFilter)
        if not available():
            raise KernelError(f"filter bridge {state.device}: {MISSING}", hint=FIX)
        self._set(state, _ON)

    def _delete(self, state: State) -> None:
        assert isinstance(state, BridgeFilter)
        there = self._sockets.find(HOST, state.device)
        if there is not None and there.ours:
            self._set(state, _OFF)

    def _set(self, state: BridgeFilter, value: bytes) -> None:
        data = b"".join(attr(number, value) for number in _SWITCHES)
        info = text(INFO_KIND, "bridge") + attr(INFO_DATA | NESTED, data)
        body = ifinfo() + text(IFNAME, state.device) + attr(LINKINFO | NESTED, info)
        self._sockets.at(HOST).request(Message(NEWLINK, 0, body, f"filter bridge {state.device}"))


def driver(host: LocalHost) -> BridgeFilterDriver:
    """Return the driver of bridge filters."""
    return BridgeFilterDriver(host.sockets)


def _filter(state: BridgeFilter, _shell: Shell) -> tuple[str, ...]:
    switches = " ".join(f"{name} 1" for name in _SWITCHES.values())
    return (f"ip link set dev {state.device} type bridge {switches}",)


KINDS = (
    Kind(
        state=BridgeFilter,
        rank=40,
        driver=driver,
        known_by="its bridge",
        purpose="policies see the frames between a bridge's containers",
        commands=_filter,
        on=on_device,
        falls=True,
        events=frozenset({Event.LINK}),
    ),
)
