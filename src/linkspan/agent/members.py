"""Members of a cluster that linkspan founded: which hosts are voters, learners and clients."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from linkspan.agent.own_cluster import addresses
from linkspan.cluster.founding import member_list, quorum
from linkspan.cluster.hosts import Hosts
from linkspan.core.addresses import prefix
from linkspan.core.errors import Conflict, Unavailable
from linkspan.core.model import Host
from linkspan.core.store_contract import Store
from linkspan.store.etcd import EtcdStore
from linkspan.store.etcd_wire import Member as Listed

ROLES = ("voter", "learner", "client")
"""In the order in which they are shown."""


class Member(msgspec.Struct, frozen=True):
    """A host in the documented format; ``healthy`` is None if nobody knows."""

    id: str
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
    voters = await quorum.look(store.gateway)
    if not voters.members:  # without them every host would be shown as a client
        raise voters.problem or Unavailable("no voter says who etcd's members are", "try again in some seconds")
    found = {_host(known.values(), one): one for one in voters.members}
    answers = {id_: voters.healthy(one) for id_, one in found.items()}
    told = [
        Member(id_, host.name, _role(found.get(id_)), _address(host), host.version,
               answers[id_] if id_ in found else hosts.lives(id_))
        for id_, host in known.items()
    ]  # fmt: skip
    told += [
        Member(id_, id_, _role(one), member_list.address(one), "", answers[id_])
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


def _address(host: Host) -> str:
    """Return a host's address on the underlay, '' if it has none."""
    return "" if host.underlay is None else next((prefix(text).address for text in host.underlay.addresses), "")
