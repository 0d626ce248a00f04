"""Other forwarders on this host: container engines, and programs that decide on forwarding by iptables."""

from __future__ import annotations

import fnmatch
import socket
from collections.abc import Iterator

from linkspan.core.errors import LinkspanError
from linkspan.core.states.host import OTHERS
from linkspan.kernel.probe import foreign_chains, iptables_rules

_USER, _FORWARD = iptables_rules.CHAINS


def present(family: int) -> bool:
    """Return whether somebody else in the calling thread's namespace needs forwarding: they do not enable it again."""
    links = (name for _, name in socket.if_nameindex())
    if any(fnmatch.fnmatch(name, pattern) for name in links for pattern in OTHERS):
        return True
    return any(deciding(foreign_chains.nft_chains(), family))


def deciding(found: list[foreign_chains.Chain], family: int) -> Iterator[str]:
    """Yield the chains of iptables, of either variant, that decide on forwarding."""
    yield from (name for name in (_nft(found, family), _legacy(family)) if name)


def _nft(found: list[foreign_chains.Chain], family: int) -> str:
    """Return the chain that decides on forwarding in iptables' filter table (nft variant), or ''."""
    there = foreign_chains.of_iptables(found, family)
    forward = there.get(_FORWARD)
    if forward is None or not forward.hooked:
        return ""
    try:
        # A chain that others jump to has more uses than rules; one that Docker left behind does not.
        if (user := there.get(_USER)) and user.uses > len(foreign_chains.nft_rules(family, _USER)):
            return _USER
        if not forward.accepts:
            return _FORWARD
        rules = foreign_chains.nft_rules(family, _FORWARD) if forward.uses else []
    except LinkspanError:
        return ""  # removed between the two reads: the next one shows it
    mark = iptables_rules.COMMENT.encode()
    return _FORWARD if any(mark not in rule for rule in rules) else ""


def _legacy(family: int) -> str:
    """Return the same for the legacy variant."""
    try:
        rules = iptables_rules.legacy_rules(family)
    except LinkspanError:
        return ""
    others = [r for r in rules if r[1:2] == [_FORWARD] and iptables_rules.pool_of(r) is None]
    if any(r[0] == "-A" and r[-2:] == ["-j", _USER] for r in others):
        return _USER
    return _FORWARD if [r for r in others if r != ["-P", _FORWARD, "ACCEPT"]] else ""
