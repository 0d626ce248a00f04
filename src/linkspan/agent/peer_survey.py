"""``doctor --peers``: all hosts of a group probe the underlay to each other at once, and one request starts each.

Every host of the cluster receives each request and each answer, so the hosts of a large cluster do not take part all at
once. They do so in groups that are drawn for each survey. Whatever is wrong with one host shows in its group. What is
wrong between two hosts shows only in a survey that has both in one group.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
from collections.abc import Callable, Mapping

import msgspec

from linkspan.backends import migration
from linkspan.backends.sdn import backend as sdn
from linkspan.cluster.hosts import Hosts
from linkspan.cluster.questions import Ask
from linkspan.core.errors import LinkspanError
from linkspan.core.host_view import HostView, Peer
from linkspan.diagnose.doctor import peer_checks, peer_probe
from linkspan.diagnose.doctor.checks import Check
from linkspan.diagnose.doctor.peer_probe import Probe, Probed, Refusal, Wanted
from linkspan.kernel.io.namespaces import Namespaces

PATIENCE = 4.0
"""Seconds beyond the probing itself until a host counts as silent: it reads the request, checks its rules, answers."""
SESSION = 16
REQUESTS = 40_000
"""Requests to one group, times the hosts that receive them. A request is four changes: it, its answer and the end of
both. So etcd sends 160,000 events in the five seconds of a group."""
FEWEST = 40
"""Hosts in a group of a very large cluster, about: fewer would hardly probe each other."""


class PeerSurvey:
    """Asks all hosts for a user of this host, and takes part when another host asks."""

    def __init__(
        self,
        namespaces: Namespaces,
        hosts: Hosts,
        view: Callable[[], HostView],
        peers: Mapping[tuple[str, str], Peer],
        ask: Ask,
    ) -> None:
        self._namespaces = namespaces
        self._hosts = hosts
        self._view = view
        self._peers = peers
        self._ask = ask

    async def checks(self) -> list[Check]:
        """Return the findings; takes about five seconds for each group, and a thousand hosts are 25 groups."""
        own = self._hosts.here.id
        names = {id_: host.name for id_, host in self._hosts.all().items()} | {own: self._hosts.here.name}
        if len(names) == 1:
            return [Check("underlay", "skip", "this host is alone in its cluster")]
        probe = Probe(os.urandom(SESSION), math.ceil(len(names) / max(FEWEST, REQUESTS // len(names))))
        patience = PATIENCE + peer_probe.lasts(self._wanted(probe)[0])
        groups: dict[int, list[str]] = {}
        for host in names:
            groups.setdefault(probe.group(host), []).append(host)
        answers: dict[str, Probed | str] = {}
        for group in groups.values():
            told = await asyncio.gather(*(self._told(host, probe, patience) for host in group))
            answers |= {host: _inside(one, frozenset(group)) for host, one in zip(group, told, strict=True)}
        found = peer_checks.checks(answers, names)
        if found and len(groups) > 1:
            again = "run it again: each run draws other groups"
            found.append(Check("underlay", "skip", _between(len(names), len(groups)), again))
        return found or [Check("underlay", "skip", self._nothing())]

    def _nothing(self) -> str:
        """Return why there is nothing to probe."""
        names = [network.name for network in self._view().networks if sdn.gateway(network)]
        if not names:
            return "no network crosses hosts"
        what = "hosts send all packets to the gateway; `linkspan doctor` checks its controller"
        return f"network {', '.join(names)}: {what}"

    async def _told(self, host: str, probe: Probe, patience: float) -> Probed | str:
        try:
            if host == self._hosts.here.id:
                return await self.answer(probe)
            if host not in self._hosts.alive():
                return "its agent has been silent for a while"
            return await self._ask.ask(host, probe, Probed, patience)
        except LinkspanError as error:
            return error.message

    async def answer(self, probe: Probe) -> Probed:
        """Take part in another host's survey. Raises LinkspanError if this machine cannot."""
        wanted, refused = self._wanted(probe)
        underlay, own = self._hosts.here.underlay, self._hosts.here.id
        link = underlay.ifname if underlay is not None else ""

        def run() -> Probed:
            from linkspan.diagnose.trace.kernel_answers import KernelAnswers  # 0.4 MB, for few

            with contextlib.closing(KernelAnswers(self._namespaces)) as asked:
                return peer_probe.run(asked, probe.session, own, link, wanted, refused)

        return await asyncio.to_thread(run)

    def _wanted(self, probe: Probe) -> tuple[list[Wanted], list[Refusal]]:
        """Return what this host and the peers in its group need of each other, and what no underlay makes possible."""
        view, alive, group = self._view(), self._hosts.alive(), probe.group(self._hosts.here.id)
        networks = {network.name: network for network in view.networks}
        wanted, refused = [], []
        for (name, host), peer in self._peers.items():
            if name not in networks or host not in alive or probe.group(host) != group:
                continue
            network = networks[name]
            needs, problem = migration.needs(view, network, peer)
            wanted += [Wanted(peer, need, name, network.mtu) for need in needs]
            if problem:
                what = f"network {name} by {network.backend}"
                refused.append(
                    Refusal(host, what, problem, "another backend: `linkspan network migrate --help`")
                )
        return peer_probe.largest(wanted), refused


def _inside(told: Probed | str, group: frozenset[str]) -> Probed | str:
    """Return an answer without hosts of other groups: an agent of the previous release misses all of these."""
    if isinstance(told, str):
        return told
    gaps = tuple(one for one in told.gaps if one.peer in group)
    refusals = tuple(one for one in told.refusals if one.peer in group)
    if (gaps, refusals) == (told.gaps, told.refusals):
        return told
    return msgspec.structs.replace(told, gaps=gaps, refusals=refusals, left_out=0)


def _between(hosts: int, groups: int) -> str:
    """Return what a survey in groups did not look for."""
    return f"{hosts} hosts took turns in {groups} groups: nothing was sent between hosts of different groups"
