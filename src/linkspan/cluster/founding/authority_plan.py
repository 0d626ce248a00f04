"""Authority plan: the steps by which authorities are replaced, and who may take the next one (pure).

Three steps, as one record in the vault has them:

1. ``trust``: all trust the new authorities beside the old ones.
2. ``sign``: the new ones sign. Each voter gets new certificates for its servers, and each host another one.
3. ``drop``: the old ones are trusted no longer. At its end etcd's root gets another password (``root_password``).

Each voter carries out a step by itself and writes that down; the hosts follow when all voters have. The next step
begins when every host has said, with the certificate that it shows, that it is ready (``reissue``). So whatever breaks
off goes on where it was: an agent, a voter, the command. A host that is away is waited for, unless an operator leaves
it out.

etcd reads the authorities that it trusts at its start alone. So in the first and the third step each voter restarts
its etcd: one at a time (``restart_turn``), only while all others answer, and the leader last.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import msgspec

from linkspan.cluster.founding.signer import JoinedHost
from linkspan.cluster.founding.validity import fingerprints

ROTATION = "rotation"
"""The vault's key of the rotation that is under way."""
TRUST, SIGN, DROP = STEPS = ("trust", "sign", "drop")
CLIENTS, PEERS = KINDS = ("clients", "peers")
NAMES = {CLIENTS: "linkspan clients", PEERS: "linkspan voters"}
"""The names of the authorities."""


class RotationRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A rotation that is under way: its step, the new authorities (PEM, by kind), and the new secrets, sealed.

    ``root`` is the SHA-256 of root's next password, ``sealed_root`` the password, sealed; both are '' if it stays. So
    it does if a voter is of release 0.2.0, which drops both when it writes. ``done`` are the ids of the voters that
    have carried out the step. ``told``: the hosts know of the step. ``without`` are the ids of hosts that nobody waits
    for.
    """

    id: str
    step: str
    begun: float
    authorities: dict[str, str]
    sealed: str
    root: str = ""
    sealed_root: str = ""
    done: tuple[str, ...] = ()
    told: bool = False
    without: tuple[str, ...] = ()


class VotersSeen(msgspec.Struct, frozen=True):
    """The voters' ids, whether this one is the leader, and whether all others answer."""

    voters: frozenset[str]
    leads: bool
    answer: bool


def arranged(step: str, present: Sequence[bytes], new: bytes) -> list[bytes]:
    """Return the authorities that a voter trusts in a step, the one that signs first. Pure."""
    others = [one for one in present if one != new]
    if step == TRUST:
        return [*present] if new in present else [*present, new]
    return [new, *others] if step == SIGN else [new]


def waited_for(rotation: RotationRecord, hosts: Mapping[str, JoinedHost], voters: Collection[str]) -> list[str]:
    """Return the ids of the hosts that are not ready for the next step. Pure.

    Voters carry out the steps by themselves, and hosts do not know the voters' authority.
    """
    if CLIENTS not in rotation.authorities or rotation.step == DROP:
        return []
    (new,) = fingerprints(rotation.authorities[CLIENTS].encode())
    spared = {*voters, *rotation.without}

    def ready(host: JoinedHost) -> bool:
        return new in host.trusts and (rotation.step == TRUST or host.shows == new)

    return sorted(id_ for id_, host in hosts.items() if not host.forgotten and id_ not in spared and not ready(host))


def may_act(rotation: RotationRecord, host: str, seen: VotersSeen) -> bool:
    """Return whether a voter may carry out the step now: only while all answer, and the leader last. Pure."""
    left = seen.voters - {*rotation.done}
    return host in left and seen.answer and (not seen.leads or left == {host})
