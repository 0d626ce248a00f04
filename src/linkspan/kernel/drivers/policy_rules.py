"""Rules of the routing policy (ip-rule(8)) with our protocol number: in containers, and on the host for egress."""

from __future__ import annotations

import errno
import functools
from collections.abc import Iterable, Mapping, Sequence

from linkspan.core.addresses import FAMILIES, SOCKET_FAMILY
from linkspan.core.driver_contract import Support
from linkspan.core.errors import KernelError, LinkspanError
from linkspan.core.kinds import Event, Kind
from linkspan.core.shell import Shell
from linkspan.core.states.host import ROUTE_PROTOCOL, Key, PolicyRule, State
from linkspan.kernel.io import batch
from linkspan.kernel.io.netlink import (
    DELRULE,
    F_CREATE,
    F_EXCL,
    NEWRULE,
    Message,
    attr,
    u32,
)
from linkspan.kernel.io.route_messages import TABLE_MAIN
from linkspan.kernel.io.rule_messages import (
    FWMARK,
    HEADER,
    PRIORITY,
    PROTOCOL,
    SRC,
    SUPPRESS,
    TABLE,
    TO_TABLE,
    ReportedRule,
    reported,
)
from linkspan.kernel.io.sockets import Sockets
from linkspan.kernel.local_host import LocalHost

_NOTHING = 0xFFFFFFFF
"""The kernel's value for a rule that suppresses no prefix."""


class PolicyRuleDriver:
    """PolicyRule."""

    def __init__(self, sockets: Sockets) -> None:
        self._sockets = sockets

    def probe(self) -> Support:
        """Return support: every kernel that runs containers has policy rules (CONFIG_IP_MULTIPLE_TABLES)."""
        return Support("kernel")

    def observe(self, netns: int) -> Iterable[State]:
        """Return the rules with our protocol number; rules with other selectors than ours cannot be ours."""
        for family in FAMILIES:
            try:
                found = list(reported(self._sockets.at(netns), family))
            except KernelError as error:
                if error.errno in (errno.EOPNOTSUPP, errno.EAFNOSUPPORT):  # a kernel without rules, or without IPv6
                    continue
                raise
            ours = (one for one in found if one.found.get(PROTOCOL) == bytes([ROUTE_PROTOCOL]))
            yield from (_rule(one, netns) for one in ours)

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
    table = 0 if state.table else TABLE_MAIN
    number, length = SOCKET_FAMILY[state.prefix.family], state.prefix.length
    body = HEADER.pack(number, 0, length, 0, table, TO_TABLE, 0)
    body += attr(SRC, state.prefix.packed) if length else b""
    body += u32(PRIORITY, state.priority) + attr(PROTOCOL, bytes([ROUTE_PROTOCOL]))
    body += u32(TABLE, state.table or TABLE_MAIN)
    body += u32(SUPPRESS, 0) if state.specific else b""
    body += u32(FWMARK, state.mark) if state.mark else b""
    verb = "add" if kind == NEWRULE else "remove"
    what = f"{verb} rule {state.priority} from {state.prefix} lookup {state.table or 'main'}"
    return Message(kind, F_CREATE | F_EXCL if kind == NEWRULE else 0, body, what)


def _rule(found: ReportedRule, netns: int) -> PolicyRule:
    table = found.number(TABLE, found.table)
    return PolicyRule(
        netns,
        found.number(PRIORITY),
        found.source,
        0 if table == TABLE_MAIN else table,
        specific=found.number(SUPPRESS, _NOTHING) == 0,
        mark=found.number(FWMARK),
    )


def driver(host: LocalHost) -> PolicyRuleDriver:
    """Return the driver of the routing policy of containers and of the host."""
    return PolicyRuleDriver(host.sockets)


def _add(state: PolicyRule, shell: Shell) -> tuple[str, ...]:
    source = str(state.prefix) if state.prefix.length else "all"
    specific = " suppress_prefixlength 0" if state.specific else ""
    words = [shell.ip(state.netns), f"-{state.prefix.family}", f"rule add pref {state.priority} from {source}"]
    words += [f"fwmark {state.mark:#x}"] if state.mark else []
    return (" ".join([*words, f"lookup {state.table or 'main'}{specific} protocol {ROUTE_PROTOCOL}"]),)


def _always(_state: PolicyRule) -> bool:
    # Left by an agent that was killed, it would send packets by an interface that now belongs to another program.
    return True


KINDS = (
    Kind(
        state=PolicyRule,
        rank=63,
        driver=driver,
        known_by="protocol number 76",
        purpose="which table routes these packets: they must leave by their address's interface, or by another host",
        commands=_add,
        alone=_always,
        events=frozenset({Event.RULE}),
    ),
)
