"""Rules of the routing policy (ip-rule(8)) with our protocol number."""

from __future__ import annotations

import errno
import functools
import struct
from collections.abc import Iterable, Mapping, Sequence

from linkspan.core.addresses import BITS, SOCKET_FAMILY, Prefix
from linkspan.core.contracts import Support
from linkspan.core.errors import KernelError, LinkspanError
from linkspan.core.kinds import Kind
from linkspan.core.shell import Shell
from linkspan.core.states.host import ROUTE_PROTOCOL, Key, PolicyRule, State
from linkspan.kernel.io import batch
from linkspan.kernel.io.netlink import (
    DELRULE,
    F_CREATE,
    F_EXCL,
    GETRULE,
    NEWRULE,
    Message,
    Sockets,
    attr,
    attributes,
    u32,
)
from linkspan.kernel.local_host import LocalHost

# linux/fib_rules.h
_SRC, _PRIORITY, _SUPPRESS, _TABLE, _PROTOCOL = 2, 6, 14, 15, 21
_TO_TABLE, _MAIN, _NOTHING = 1, 254, 0xFFFFFFFF
_HEADER = struct.Struct("=12B")
"""struct fib_rule_hdr: family, lengths of destination and source, TOS, table, two reserved, action, flags (4 bytes)."""


class PolicyRuleDriver:
    """PolicyRule."""

    def __init__(self, sockets: Sockets) -> None:
        self._sockets = sockets

    def probe(self) -> Support:
        """Return support: every kernel that runs containers has policy rules (CONFIG_IP_MULTIPLE_TABLES)."""
        return Support("kernel")

    def observe(self, netns: int) -> Iterable[State]:
        """Return the rules with our protocol number; rules with other selectors than ours cannot be ours."""
        for family, number in SOCKET_FAMILY.items():
            try:
                found = self._sockets.at(netns).dump(GETRULE, _HEADER.pack(number, *bytes(11)), "list rules")
            except KernelError as error:
                if error.errno in (errno.EOPNOTSUPP, errno.EAFNOSUPPORT):  # a kernel without rules, or without IPv6
                    continue
                raise
            for payload in found:
                values = attributes(payload, _HEADER.size)
                if values.get(_PROTOCOL) == bytes([ROUTE_PROTOCOL]) and payload[0] == number:
                    yield _rule(payload, values, family, netns)

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Add and remove rules. An existing one is right: its key is all that it has."""
        failed = batch.send(self._sockets, put, functools.partial(_message, kind=NEWRULE))
        there = {
            key: error
            for key, error in failed.items()
            if not (isinstance(error, KernelError) and error.errno == errno.EEXIST)
        }
        gone = (errno.ENOENT,)
        return there | batch.send(self._sockets, delete, functools.partial(_message, kind=DELRULE), gone)


def _message(state: PolicyRule, _: int, kind: int) -> Message:
    table = 0 if state.table else _MAIN
    number, length = SOCKET_FAMILY[state.prefix.family], state.prefix.length
    body = _HEADER.pack(number, 0, length, 0, table, 0, 0, _TO_TABLE, 0, 0, 0, 0)
    body += attr(_SRC, state.prefix.packed) if length else b""
    body += u32(_PRIORITY, state.priority) + attr(_PROTOCOL, bytes([ROUTE_PROTOCOL]))
    body += u32(_TABLE, state.table or _MAIN)
    body += u32(_SUPPRESS, 0) if state.specific else b""
    verb = "add" if kind == NEWRULE else "remove"
    what = f"{verb} rule {state.priority} from {state.prefix} lookup {state.table or 'main'}"
    return Message(kind, F_CREATE | F_EXCL if kind == NEWRULE else 0, body, what)


def _rule(payload: bytes, found: Mapping[int, bytes], family: int, netns: int) -> PolicyRule:
    def number(kind: int, default: int) -> int:
        return int(struct.unpack("=I", found[kind])[0]) if kind in found else default

    source = Prefix(bytes(found.get(_SRC, bytes(BITS[family] // 8))), payload[2])
    table = number(_TABLE, payload[4])
    return PolicyRule(
        netns,
        number(_PRIORITY, 0),
        source,
        0 if table == _MAIN else table,
        specific=number(_SUPPRESS, _NOTHING) == 0,
    )


def driver(host: LocalHost) -> PolicyRuleDriver:
    """Return the driver of containers' routing policy."""
    return PolicyRuleDriver(host.sockets)


def _add(state: PolicyRule, shell: Shell) -> tuple[str, ...]:
    source = str(state.prefix) if state.prefix.length else "all"
    specific = " suppress_prefixlength 0" if state.specific else ""
    words = [shell.ip(state.netns), f"-{state.prefix.family}", f"rule add pref {state.priority} from {source}"]
    return (" ".join([*words, f"lookup {state.table or 'main'}{specific} protocol {ROUTE_PROTOCOL}"]),)


def _always(_state: PolicyRule) -> bool:
    # Left by an agent that was killed, it would send packets by an interface that now belongs to another program.
    return True


KINDS = (
    Kind(
        state=PolicyRule,
        rank=63,
        driver=driver,
        known_by="protocol number 76, in a container",
        purpose="which table routes packets from this address: they must leave by its interface",
        commands=_add,
        alone=_always,
    ),
)
