"""Members of a cluster that linkspan founded: which hosts are voters, learners and clients."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import msgspec

from linkspan.agent.own_cluster import addresses
from linkspan.cluster.founding import member_list
from linkspan.cluster.hosts import Hosts
from linkspan.core.addresses import prefix
from linkspan.core.errors import Conflict, Unavailable
from linkspan.core.model import Host
from linkspan.core.store_contract import Store
from linkspan.store.etcd import EtcdStore
from linkspan.store.etcd_wire import Member as Listed
from linkspan.store.etcd_wire import decode

PATIENCE = 2.0
"""Seconds for one voter's answer."""


ROLES = ("voter", "learner", "client")
"""In the order in which they are shown."""


class _Status(msgspec.Struct, frozen=True):
    leader: str = ""


class Member(msgspec.Struct, frozen=True):
    """A host in the documented format; ``healthy`` is None if nobody knows."""

    host: str
    role: str
    address: str
    version: str
    healthy: bool | None


async def members(store: Store, hosts: Hosts, *, own: bool) -> list[Member]:
    """Return all hosts of the cluster, voters first; ``own``: linkspan runs the store's etcd.

    Raises Conflict if it does not, or Unavailable.
    """
    if not own or not isinstance(store, EtcdStore):
        other = isinstance(store, EtcdStore)
        why = "its etcd is maintained with etcdctl" if other else "`linkspan cluster init` makes one"
        raise Conflict("this host is in no cluster that linkspan founded", why)
    known = hosts.all()
    found = {_host(known.values(), one): one for one in await member_list.listed(store.gateway)}
    answers = dict(zip(found, await asyncio.gather(*(_healthy(store, one) for one in found.values())), strict=True))
    told = [
        Member(host.name, _role(found.get(id_)), _address(host), host.version,
               answers[id_] if id_ in found else hosts.lives(id_))
        for id_, host in known.items()
    ]  # fmt: skip
    told += [
        Member(id_, _role(one), member_list.address(one), "", answers[id_])
        for id_, one in found.items()
        if id_ not in known
    ]
    return sorted(told, key=lambda one: (ROLES.index(one.role), one.host))


def _host(hosts: Iterable[Host], member: Listed) -> str:
    """Return the id of a member's host; before the member has started, by its address, which is the id if all fails."""
    if known := member_list.host_of(member):
        return known
    at = member_list.address(member)
    return next((host.id for host in hosts if at in addresses(host)), at)


def _role(member: Listed | None) -> str:
    return "client" if member is None else "learner" if member.learner else "voter"


async def _healthy(store: EtcdStore, member: Listed) -> bool:
    """Return whether a member answers, and knows a leader."""
    if not (places := member_list.endpoints([msgspec.structs.replace(member, learner=False)])):
        return False
    try:
        answer = await store.gateway.at(places[0], "/v3/maintenance/status", {}, PATIENCE)
    except Unavailable:
        return False
    return decode(answer, _Status).leader not in ("", "0")


def _address(host: Host) -> str:
    """Return a host's address on the underlay, '' if it has none."""
    return "" if host.underlay is None else next((prefix(text).address for text in host.underlay.addresses), "")
