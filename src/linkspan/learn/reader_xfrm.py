"""IPsec that a reader has configured with `ip xfrm`: states and policies of one host, from what `ip` prints."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

import msgspec

from linkspan.core.addresses import Prefix, prefix
from linkspan.diagnose.trace.kernel_view import FORWARD, IN, OUT
from linkspan.diagnose.trace.packet import Packet

_OBJECT = re.compile(r"^(?=src )", re.MULTILINE)
_ENDS = re.compile(r"src (\S+) dst (\S+)")
_HOW = re.compile(r"proto (\S+) (?:spi (\S+) )?reqid (\d+)\S* mode (\S+)")
_DIRECTION = re.compile(r"^\s+dir (in|out|fwd) (?:action (block) )?.*?priority (\d+)", re.MULTILINE)
_TEMPLATE = re.compile(r"^\s+tmpl src (\S+) dst (\S+)\s+proto (\S+) (?:spi \S+ )?reqid (\d+)", re.MULTILINE)
_CIPHER = re.compile(r"^\s+(?:aead|enc|auth-trunc|auth) (\S+) (\S+)", re.MULTILINE)
_IF_ID = re.compile(r"^\s+if_id (\S+)", re.MULTILINE)
_DIRECTIONS = {"in": IN, "out": OUT, "fwd": FORWARD}


class State(msgspec.Struct, frozen=True):
    """A state (SA): from ``source`` to ``target``, with what ``secret`` is a digest of: ciphers and keys."""

    source: bytes
    target: bytes
    protocol: str
    spi: str
    reqid: int
    if_id: int
    ciphers: str
    secret: str


class Policy(msgspec.Struct, frozen=True):
    """A policy: for packets from ``source`` to ``target``, which the states between ``ends`` protect, if it has any."""

    direction: int
    priority: int
    blocks: bool
    source: Prefix
    target: Prefix
    if_id: int
    ends: tuple[bytes, bytes] | None
    protocol: str
    reqid: int

    def wants(self, state: State) -> bool:
        """Return whether a state is one that the policy's template asks for; a reqid of 0 means any."""
        same = ((state.source, state.target), state.if_id, state.protocol) == (self.ends, self.if_id, self.protocol)
        return same and self.reqid in (0, state.reqid)

    def __str__(self) -> str:
        name = next(name for name, number in _DIRECTIONS.items() if number == self.direction)
        return f"{name} policy {self.source} > {self.target}"


class Xfrm(msgspec.Struct, frozen=True):
    """What one host has; ``devices`` are the if_ids of its XFRM interfaces."""

    states: tuple[State, ...] = ()
    policies: tuple[Policy, ...] = ()
    devices: Mapping[str, int] = {}

    def policy(self, direction: int, device: str, packet: Packet) -> Policy | None:
        """Return the policy that the kernel chooses for a packet that passes a device."""
        bits, if_id = len(packet.target) * 8, self.devices.get(device, 0)
        fitting = [
            one
            for one in self.policies
            if (one.direction, one.if_id, one.target.family) == (direction, if_id, packet.family)
            and one.source.holds(Prefix(packet.source, bits))
            and one.target.holds(Prefix(packet.target, bits))
        ]
        return min(fitting, key=lambda one: one.priority, default=None)

    def sending(self, policy: Policy) -> State | None:
        """Return the state that protects what a policy chooses."""
        return next((one for one in self.states if policy.wants(one)), None)

    def receiving(self, target: bytes, spi: str) -> State | None:
        """Return the state for a number, at an address of the host."""
        return next((one for one in self.states if (one.target, one.spi) == (target, spi)), None)


def parsed(states: str, policies: str, devices: Mapping[str, int]) -> Xfrm:
    """Read what `ip xfrm state` and `ip xfrm policy list nosock` print; '' for a kernel without them."""
    found = (_state(text) for text in _OBJECT.split(states) if _HOW.search(text))
    chosen = (_policy(text) for text in _OBJECT.split(policies) if _DIRECTION.search(text))
    return Xfrm(tuple(found), tuple(chosen), devices)


def _state(text: str) -> State:
    ends, how = _ENDS.search(text), _HOW.search(text)
    assert ends is not None
    assert how is not None
    ciphers = _CIPHER.findall(text)
    secret = hashlib.sha256(repr(ciphers).encode()).hexdigest()
    names = ", ".join(name for name, _ in ciphers)
    source, target = (prefix(one).packed for one in ends.groups())
    return State(source, target, how[1], how[2] or "", int(how[3]), _if_id(text), names, secret)


def _policy(text: str) -> Policy:
    ends, way = _ENDS.search(text), _DIRECTION.search(text)
    assert ends is not None
    assert way is not None
    template = _TEMPLATE.search(text)
    source, target = (prefix(one) for one in ends.groups())
    between = (prefix(template[1]).packed, prefix(template[2]).packed) if template else None
    protocol, reqid = (template[3], int(template[4])) if template else ("", 0)
    return Policy(
        _DIRECTIONS[way[1]], int(way[3]), bool(way[2]), source, target, _if_id(text), between, protocol, reqid
    )


def _if_id(text: str) -> int:
    found = _IF_ID.search(text)
    return int(found[1], 0) if found else 0
