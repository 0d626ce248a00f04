"""``doctor --peers``: all hosts probe the underlay to each other at once, and one request starts each host."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping

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
        """Return the findings; takes about five seconds, for a thousand hosts about eight."""
        own = self._hosts.here.id
        names = {id_: host.name for id_, host in self._hosts.all().items()} | {own: self._hosts.here.name}
        if len(names) == 1:
            return [Check("underlay", "skip", "this host is alone in its cluster")]
        probe = Probe(os.urandom(SESSION))
        patience = PATIENCE + peer_probe.lasts(self._wanted()[0])
        answers = await asyncio.gather(*(self._told(host, probe, patience) for host in names))
        found = peer_checks.checks(dict(zip(names, answers, strict=True)), names)
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
        wanted, refused = self._wanted()
        underlay, own = self._hosts.here.underlay, self._hosts.here.id
        link = underlay.ifname if underlay is not None else ""

        def run() -> Probed:
            from linkspan.diagnose.trace.kernel_answers import KernelAnswers  # 0.4 MB, for few

            with contextlib.closing(KernelAnswers(self._namespaces)) as asked:
                return peer_probe.run(asked, probe.session, own, link, wanted, refused)

        return await asyncio.to_thread(run)

    def _wanted(self) -> tuple[list[Wanted], list[Refusal]]:
        """Return what this host and its peers need of each other, and what is impossible on any underlay."""
        view, alive = self._view(), self._hosts.alive()
        networks = {network.name: network for network in view.networks}
        wanted, refused = [], []
        for (name, host), peer in self._peers.items():
            if name not in networks or host not in alive:
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
