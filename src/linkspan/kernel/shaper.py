"""Token buckets (tc-tbf(8)) at the root of a device: a container's bandwidth, one for each direction.

On the host every tbf on a device of ours (by its name) is ours. In a container's namespace the devices that
we put one on are remembered by the process alone: after a restart each is put once more, which changes
nothing where it is right.

The kernel keeps a burst as the time that it takes at the rate, in ticks of 64 ns, so the bytes given cannot
be read back exactly above 15 Mbyte/s. A burst that comes to the same time as the one put is that one; with
nothing remembered it is rounded to GRAIN, which is exact up to 8 Gbyte/s where bursts are multiples of it.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence

from linkspan.contracts import Support
from linkspan.errors import KernelError, LinkspanError, NotFound
from linkspan.kernel.batch import each
from linkspan.kernel.namespaces import Namespaces
from linkspan.kernel.netlink import F_CREATE, F_REPLACE, Message, Sockets, attr, attributes, string, text, u32
from linkspan.state import HOST, Key, State, TokenBucket

GRAIN = 1024
"""Bytes: a burst should be a multiple of it."""
LATENCY = 0.025
"""Seconds that a packet may wait before it is dropped (as the reference bandwidth plugin has it)."""
PREFIXES = ("lsp", "lsr")
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
    """Return a burst as the kernel reports it: 32 bits of ticks, which begin anew after 274 s."""
    return burst * 1_000_000_000 // rate // _TICK & _U32


class ShaperDriver:
    """Puts and takes away token buckets."""

    kinds: tuple[type[State], ...] = (TokenBucket,)

    def __init__(self, namespaces: Namespaces) -> None:
        self._sockets = Sockets(namespaces)
        self._put_on: dict[int, dict[str, TokenBucket]] = {}

    def probe(self) -> Support:
        """Tell that the kernel has it: that is seen at the first put only, which loads its module."""
        return Support("kernel")

    def observe(self, netns: int) -> Iterable[State]:
        """Return our token buckets in the namespace."""
        ours = self._put_on.get(netns, {})
        if netns != HOST and not ours:
            return []
        try:
            buckets = self._buckets(netns)
            found = [
                b for b in buckets if (netns == HOST and b.device.startswith(PREFIXES)) or b.device in ours
            ]
        except NotFound:
            self._put_on.pop(netns, None)
            raise
        finally:
            self._sockets.release()
        there = {bucket.device for bucket in found}
        for device in [d for d in ours if d not in there]:
            del ours[device]
        return found

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Put in place of whatever is at the root, or take away; a device that is gone has no bucket."""
        failed = each(put, self._put) | each(delete, self._delete)
        self._sockets.release()
        return failed

    def _buckets(self, netns: int) -> Iterator[TokenBucket]:
        names: dict[int, str] = {}
        for payload in self._sockets.at(netns).dump(_GETQDISC, _HEADER.pack(0, 0, 0, 0, 0), "list qdiscs"):
            _, index, _, parent, _ = _HEADER.unpack_from(payload)
            found = attributes(payload, _HEADER.size)
            if parent == _ROOT and string(found.get(_KIND, b"")) == "tbf":
                names = names or self._sockets.names(netns)
                if index in names:
                    yield self._bucket(netns, names[index], attributes(found[_OPTIONS]))

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
            self._sockets.at(state.netns).request(message)
        except KernelError as error:
            if error.errno == errno.ENOENT:
                raise KernelError(error.message, error.errno, _MODULE_HINT) from error
            raise
        self._put_on.setdefault(state.netns, {})[state.device] = state

    def _delete(self, state: TokenBucket) -> None:
        self._put_on.get(state.netns, {}).pop(state.device, None)
        try:
            index = self._sockets.index(state.netns, state.device)
            if any(b.device == state.device for b in self._buckets(state.netns)):
                body = _HEADER.pack(0, index, 0, _ROOT, 0)
                self._sockets.at(state.netns).request(
                    Message(_DELQDISC, 0, body, f"lift the limit of {state.device}")
                )
        except NotFound:
            return
        except KernelError as error:
            if error.errno not in (errno.ENODEV, errno.ENOENT):
                raise
