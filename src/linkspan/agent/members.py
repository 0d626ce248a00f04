"""Members of a cluster that linkspan founded: which hosts are voters, and which are clients."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from linkspan.cluster.founding.etcd_service import VOTER
from linkspan.core.addresses import prefix
from linkspan.core.errors import Conflict, Unavailable
from linkspan.core.model import Host
from linkspan.store.etcd import EtcdStore
from linkspan.store.etcd_wire import Members

if TYPE_CHECKING:
    from linkspan.agent.agent import Agent

PATIENCE = 2.0
"""Seconds for one voter's answer."""


class Member(msgspec.Struct, frozen=True):
    """A host in the documented format; ``healthy`` is None if nobody knows."""

    host: str
    role: str
    address: str
    version: str
    healthy: bool | None


async def members(agent: Agent) -> list[Member]:
    """Return all hosts of the cluster, voters first. Raises Conflict if linkspan did not found it, or Unavailable."""
    store = agent.replica.store
    if not agent.founding.own or not isinstance(store, EtcdStore):
        why = "its etcd is maintained with etcdctl" if agent.config.store else "`linkspan cluster init` makes one"
        raise Conflict("this host is in no cluster that linkspan founded", why)
    found = await store.gateway.ask("/v3/cluster/member/list", {}, Members)
    voters = {
        one.name.removeprefix(VOTER): one.clients[0].rpartition("://")[2] if one.clients else ""
        for one in found.members
        if one.name.startswith(VOTER)
    }
    answers = dict(zip(voters, await asyncio.gather(*(_healthy(store, at) for at in voters.values())), strict=True))
    hosts = {host.id: host for host in agent.hosts.all().values()}
    told = [
        Member(host.name, "voter" if id_ in voters else "client", _address(host), host.version,
               answers[id_] if id_ in voters else agent.hosts.lives(id_))
        for id_, host in hosts.items()
    ]  # fmt: skip
    told += [
        Member(id_, "voter", at.rpartition(":")[0].strip("[]"), "", answers[id_])
        for id_, at in voters.items()
        if id_ not in hosts
    ]
    return sorted(told, key=lambda one: (one.role != "voter", one.host))


async def _healthy(store: EtcdStore, endpoint: str) -> bool:
    try:
        await store.gateway.at(endpoint, "/v3/maintenance/status", {}, PATIENCE)
    except Unavailable:
        return False
    return True


def _address(host: Host) -> str:
    """Return a host's address on the underlay, '' if it has none."""
    return "" if host.underlay is None else next((prefix(text).address for text in host.underlay.addresses), "")
