"""Shaper: token buckets (tc-tbf(8)) at the root of a device limit a container's bandwidth, one for each direction.

On the host every tbf on a device of ours is ours, and every other root qdisc that somebody added there is a
ForeignQdisc: it may drop or delay all packets of the device. The kernel's own qdiscs have handle 0. In a
container's namespace only the process remembers which devices have a token bucket of ours: after a restart
each is put once more, which changes nothing if it is right.

The kernel stores a burst as the time that it takes at the rate, in ticks of 64 ns, so the bytes cannot be
read back exactly above 15 Mbyte/s. A burst with the same time as the one put counts as equal. Without memory
it is rounded to GRAIN, which is exact up to 8 Gbyte/s for bursts that are multiples of it.
"""

from __future__ import annotations

import errno
import shlex
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence

from linkspan.core.driver_contract import Support
from linkspan.core.errors import KernelError, LinkspanError, NotFound
from linkspan.core.kinds import Event, Kind, on_device
from linkspan.core.shell import Shell
from linkspan.core.states.host import HOST, ForeignQdisc, Key, State, TokenBucket
from linkspan.kernel.io.batch import each
from linkspan.kernel.io.netlink import F_CREATE, F_REPLACE, Message, attr, attributes, string, text, u32
from linkspan.kernel.io.sockets import Sockets
from linkspan.kernel.local_host import LocalHost

GRAIN = 1024
"""Bytes: a burst should be a multiple of it."""
LATENCY = 0.025
"""Seconds that a packet may wait before it is dropped (as in the reference bandwidth plugin)."""
# linux/rtnetlink.h, pkt_sched.h
_NEWQDISC, _DELQDISC, _GETQDISC = 36, 37, 38
_ROOT, _HANDLE = 0xFFFFFFFF, 1 << 16
_KIND, _OPTIONS = 1, 2
_PARMS, _RATE64, _BURST = 1, 4, 6
_TICK = 64  # ns, PSCHED_SHIFT of include/net/pkt_sched.h
_ETHERNET = 1  # TC_LINKLAYER_ETHERNET: the kernel needs no rate table then
_U32 = 0xFFFFFFFF
_HEADER = struct.Struct("=BxxxiIII")
_TBF = struct.Struct("=BBHhHI BBHhHI III")  # struct tc_tbf_qopt: rate, peakrate, limit, buffer, mtu
_MODULE_HINT = "the kernel has no tbf (module sch_tbf): leave bandwidth out, or load it"


def _ticks(burst: int, rate: int) -> int:
    """Return a burst as the kernel reports it: 32 bits of ticks, which wrap after 274 s."""
    return burst * 1_000_000_000 // rate // _TICK & _U32


class ShaperDriver:
    """Puts and removes token buckets; removes qdiscs that others put in their place."""

    def __init__(self, sockets: Sockets) -> None:
        self._sockets = sockets
        self._put_on: dict[int, dict[str, TokenBucket]] = {}

    def probe(self) -> Support:
        """Return support: the first put shows whether the kernel has it, because it loads the module."""
        return Support("kernel")

    def observe(self, netns: int) -> Iterable[State]:
        """Return our token buckets in the namespace, and on the host foreign root qdiscs on our devices."""
        put_on = self._put_on.get(netns, {})
        if netns != HOST and not put_on:
            return []
        try:
            found = list(self._roots(netns, put_on))
        except NotFound:
            self._put_on.pop(netns, None)
            raise
        there = {state.device for state in found if isinstance(state, TokenBucket)}
        for device in [d for d in put_on if d not in there]:
            del put_on[device]
        return found

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Replace whatever is at the root, or remove it; a device that is gone has no qdisc."""
        return each(put, self._put) | each(delete, self._delete)

    def _roots(self, netns: int, put_on: Mapping[str, TokenBucket]) -> Iterator[TokenBucket | ForeignQdisc]:
        names: dict[int, str] | None = None
        for payload in self._sockets.at(netns).dump(_GETQDISC, _HEADER.pack(0, 0, 0, 0, 0), "list qdiscs"):
            _, index, handle, parent, _ = _HEADER.unpack_from(payload)
            if parent != _ROOT or not handle:
                continue
            if names is None:
                names = self._sockets.own_links() if netns == HOST else self._sockets.names(netns)
            device = names.get(index, "")
            if not device or (netns != HOST and device not in put_on):
                continue
            found = attributes(payload, _HEADER.size)
            kind = string(found.get(_KIND, b""))
            if kind == "tbf":
                yield self._bucket(netns, device, attributes(found[_OPTIONS]))
            elif netns == HOST:
                yield ForeignQdisc(device, kind)

    def _bucket(self, netns: int, device: str, options: Mapping[int, bytes]) -> TokenBucket:
        parameters = _TBF.unpack_from(options[_PARMS])
        rate, ticks = parameters[5], parameters[13]
        if _RATE64 in options:
            (rate,) = struct.unpack("=Q", options[_RATE64])
        old = self._put_on.get(netns, {}).get(device)
        if old and old.rate == rate and abs(_ticks(old.burst, rate) - ticks) <= 1:
            return old
        burst = -(-ticks * _TICK * rate // 1_000_000_000)
        return TokenBucket(device, rate, max(1, (burst + GRAIN // 2) // GRAIN) * GRAIN, netns)

    def _put(self, state: TokenBucket) -> None:
        what = f"limit {state.device} to {state.rate} bytes a second"
        index = self._sockets.index(state.netns, state.device)
        limit = min(int(state.rate * LATENCY) + state.burst, _U32)
        rate = (0, _ETHERNET, 0, 0, 0, min(state.rate, _U32))
        parameters = _TBF.pack(*rate, *(0, 0, 0, 0, 0, 0), limit, _ticks(state.burst, state.rate), 0)
        options = attr(_PARMS, parameters) + u32(_BURST, state.burst)
        if state.rate > _U32:
            options += attr(_RATE64, struct.pack("=Q", state.rate))
        body = _HEADER.pack(0, index, _HANDLE, _ROOT, 0) + text(_KIND, "tbf") + attr(_OPTIONS, options)
        message = Message(_NEWQDISC, F_CREATE | F_REPLACE, body, what)
        try:
            try:
                self._sockets.at(state.netns).request(message)
            except KernelError as error:
                if error.errno != errno.EINVAL:
                    raise
                # A foreign qdisc with our handle and another kind cannot be replaced (tc_modify_qdisc in
                # net/sched/sch_api.c).
                self._remove_root(state.netns, index, what)
                self._sockets.at(state.netns).request(message)
        except KernelError as error:
            if error.errno == errno.ENOENT:
                raise KernelError(error.message, error.errno, _MODULE_HINT) from error
            raise
        self._put_on.setdefault(state.netns, {})[state.device] = state

    def _delete(self, state: TokenBucket | ForeignQdisc) -> None:
        netns = state.netns if isinstance(state, TokenBucket) else HOST
        if isinstance(state, TokenBucket):
            self._put_on.get(netns, {}).pop(state.device, None)
        try:
            index = self._sockets.index(netns, state.device)
            there = self._roots(netns, {state.device: state} if isinstance(state, TokenBucket) else {})
            if any(found.key == state.key for found in there):
                self._remove_root(netns, index, f"remove the queueing discipline of {state.device}")
        except NotFound:
            return
        except KernelError as error:
            if error.errno not in (errno.ENODEV, errno.ENOENT):
                raise

    def _remove_root(self, netns: int, index: int, what: str) -> None:
        body = _HEADER.pack(0, index, 0, _ROOT, 0)
        self._sockets.at(netns).request(Message(_DELQDISC, 0, body, what))


def driver(host: LocalHost) -> ShaperDriver:
    """Return the driver of queueing disciplines."""
    return ShaperDriver(host.sockets)


def _limit(state: TokenBucket, shell: Shell) -> tuple[str, ...]:
    limits = f"tbf rate {state.rate * 8}bit burst {state.burst}b latency 25ms"
    return (shell.inside(state.netns) + f"tc qdisc replace dev {shlex.quote(state.device)} root {limits}",)


_KNOWN_BY = "a handle, at the root of a link of ours"
_EVENTS = frozenset({Event.QDISC})

KINDS = (
    Kind(
        state=TokenBucket,
        rank=61,
        driver=driver,
        known_by=_KNOWN_BY,
        purpose="a limit on the rate at which packets leave a link",
        commands=_limit,
        on=on_device,
        events=_EVENTS,
        imposed=True,
    ),
    Kind(
        state=ForeignQdisc,
        rank=61,
        driver=driver,
        known_by=_KNOWN_BY,
        purpose="another program's queueing discipline, which may drop packets",
        on=on_device,
        events=_EVENTS,
    ),
)
