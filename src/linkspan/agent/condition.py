"""Condition of a host: the problems that its agent knows at one moment.

The agent looks for them once. `status`, the gauges of /metrics and the checks of `doctor` are three ways to show them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from linkspan.backends import backend
from linkspan.cluster.allowances import Allowances
from linkspan.cluster.hosts import Hosts
from linkspan.cluster.leases import Leases
from linkspan.cluster.networks import Networks
from linkspan.cluster.participation import Participation
from linkspan.cluster.reservations import Reservations
from linkspan.core.fights import Contested
from linkspan.core.model import Network
from linkspan.core.reconcile import Reconciler
from linkspan.core.states.host import Key
from linkspan.runtimes import exposure_problem


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """The problems, each as docs/json.md has it for `status`; ``here`` is the name of this host.

    ``drift`` has a reason for each object that differs from its desired state. ``unmet`` has the reasons why runtimes
    or containers lack something that a network promises, such as a DNS server, or a voter its etcd.
    """

    here: str
    store: Mapping[str, Any]
    records: Sequence[Mapping[str, str]] = ()
    disputes: Sequence[Mapping[str, object]] = ()
    drift: Sequence[str] = ()
    unmet: Sequence[str] = ()
    orphans: Sequence[Mapping[str, object]] = ()
    unreachable: Sequence[Mapping[str, str]] = ()
    bgp: Mapping[str, Any]
    certificates: Sequence[Mapping[str, Any]] = ()

    @property
    def ok(self) -> bool:
        """Return whether there is no problem of this host.

        A host whose agent is silent does not count: that is no fault of this host, and packets still reach it.
        """
        cut = [one for one in self.unreachable if one["network"] or self.here in one["host"].split(", ")]
        bgp = self.bgp["down"] or self.bgp["limited"]
        spoilt = any(one["problem"] for one in self.certificates)
        wrong = self.disputes or self.drift or self.unmet or self.orphans or self.records or cut or bgp or spoilt
        return bool(self.store["ok"]) and not wrong


def read_all(
    hosts: Hosts, allowances: Allowances, reservations: Reservations, leases: Leases, concerned: Iterable[Network]
) -> None:
    """Read every record about all hosts and the ``concerned`` networks once: then unreadable ones are known."""
    hosts.all()
    hosts.common()
    allowances.all()
    reservations.all()
    for network in concerned:
        leases.all(network.name)
        leases.blocks(network.name)
        leases.exact(network.name)


def concerned(networks: Networks, participation: Participation) -> list[Network]:
    """Return the networks whose leases and blocks this host uses, or that nobody should have any in."""
    taking = participation.all()
    return [one for one in networks.all() if one.name in taking or not backend(one.backend).crosses_hosts]


def unused_records(
    networks: Networks, hosts: Hosts, skipped: Mapping[str, str], refused: Mapping[str, str]
) -> list[dict[str, str]]:
    """Return the records that are not used completely: each with its key, its host, and the reason.

    ``refused`` has the reasons of claims by key, and ``skipped`` those of records that cannot be read.
    """
    why = dict(refused)
    why |= {f"networks/{name}": f"not in force on this host: {told}" for name, told in networks.withheld.items()}
    for id_, host in hosts.all().items():
        if id_ != hosts.here.id and (told := networks.covering(host)):
            why[f"hosts/{id_}"] = told
    for network in networks.all():
        if told := exposure_problem(network):
            why[f"networks/{network.name}"] = told
    # Last: an earlier version of such a record is in force, which may fail as well.
    why |= skipped
    return [{"key": key, "host": hosts.of_record(key), "why": why[key]} for key in sorted(why)]


def drift(reconciler: Reconciler, orphaned: Callable[[Key], bool]) -> list[str]:
    """Return why objects differ from their desired state.

    Ignore those of a container that is gone, and what a container does not let linkspan impose on it: with NET_ADMIN
    it may rename its interface, for example, and that is no fault of its host. The healer warns of it.
    """
    failing = [
        error.told
        for key, error in reconciler.failing.items()
        if not orphaned(key) and not reconciler.imposed_on(key)
    ]
    fights = [fight for fight in reconciler.fights.open() if fight.closed]
    return failing + [Contested(fight.message, there=True).told for fight in fights]
