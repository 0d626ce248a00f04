"""Participation: the networks in which this host has a lease, and so peers.

A host takes part in a network from its first container there, or because a setting says so. So a host's memory, states
and blocks grow with its containers, and not with the number of the cluster's networks.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from linkspan.backends import backend
from linkspan.cluster.allowances import Allowances
from linkspan.cluster.hosts import Hosts
from linkspan.cluster.leases import Leases
from linkspan.cluster.networks import Networks
from linkspan.core.errors import Invalid
from linkspan.core.model import Allowance, Endpoint, Network, checked_name

SETTING = "networks"
"""The name of a host's setting: names of networks with commas between them, or ALL."""
ALL = "all"


def check(value: str) -> None:
    """Raise Invalid if a value of the setting has an invalid name; a network with a valid name may come later."""
    for name in _names(value):
        try:
            checked_name(name, "network")
        except Invalid as error:
            raise error.within(f"setting {SETTING}={value}") from error


def chosen(
    networks: Iterable[Network], allowances: Iterable[Allowance], containers: Iterable[str], setting: str
) -> frozenset[str]:
    """Return the networks across hosts in which a host should take part.

    They are those with ``containers`` on it, those that the setting names, and those with an allowance from or to one
    of these: a packet between two networks needs the routes of both on both hosts.
    """
    crossing = {network.name for network in networks if backend(network.backend).crosses_hosts}
    wanted = crossing if setting == ALL else crossing & {*containers, *_names(setting)}
    near = {
        other
        for allowance in allowances
        for one, other in ((allowance.source, allowance.target), (allowance.target, allowance.source))
        if one in wanted
    }
    return frozenset(wanted | (near & crossing))


def _names(setting: str) -> list[str]:
    return [name.strip() for name in setting.split(",") if name.strip()]


class Participation:
    """The networks in which this host takes part."""

    def __init__(
        self,
        hosts: Hosts,
        leases: Leases,
        networks: Networks,
        allowances: Allowances,
        endpoints: Mapping[tuple[str, str], Endpoint],
    ) -> None:
        self._hosts = hosts
        self._leases = leases
        self._networks = networks
        self._allowances = allowances
        self._endpoints = endpoints
        self._expected: Counter[str] = Counter()
        """By network: the number of attaches that have begun."""

    @contextlib.contextmanager
    def expecting(self, network: str) -> Iterator[None]:
        """Take part in a network meanwhile, because an attach of its first container here has begun."""
        self._expected[network] += 1
        try:
            yield
        finally:
            self._expected[network] -= 1

    def wanted(self) -> frozenset[str]:
        """Return the networks in which this host must have a lease."""
        containers = {*(endpoint.network for endpoint in self._endpoints.values()), *(+self._expected)}
        here = self._hosts.here.id
        containers |= {n.name for n in self._networks.all() if any(one.host == here for one in n.egress)}
        setting = self._hosts.whole(self._hosts.here).settings.get(SETTING, "")
        return chosen(self._networks.all(), self._allowances.all(), containers, setting)

    def all(self) -> frozenset[str]:
        """Return the networks in which this host has a lease or must have one: in these it has peers."""
        return self.wanted() | {lease.network for lease in self._leases.own()}
