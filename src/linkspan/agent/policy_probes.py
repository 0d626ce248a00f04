"""Policy probes: the cases of a policy file's tests, asked by real packets from the containers of this host."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import msgspec

from linkspan.agent.policy_answers import Failure, Place, PolicyAnswers, failure, unanswered
from linkspan.agent.policy_coverage import hosted
from linkspan.core import icmp
from linkspan.core.errors import Invalid, NotFound
from linkspan.core.model import Endpoint
from linkspan.core.states.host import HOST
from linkspan.endpoints.registry import Identity
from linkspan.kernel.io.namespaces import Namespaces
from linkspan.kernel.probe import connection_attempt
from linkspan.policy.model import Case, Ports, ports

_UNSENT = frozenset(("icmp", number) for number in icmp.REQUESTS if number != icmp.ECHO)
AT_ONCE, MOST = 16, 1000
"""Cases that are asked at the same time, each in a thread, and of one test: they take two minutes."""


class Skipped(msgspec.Struct, frozen=True, kw_only=True):
    """A case that cannot be asked from here, by its line, and why."""

    line: int
    file: str
    why: str


class Probed(msgspec.Struct, frozen=True, kw_only=True):
    """Result of the packets; ``by`` of a failure is what the records say decides."""

    failed: tuple[Failure, ...]
    skipped: tuple[Skipped, ...]


class PolicyProbes:
    """Sends packets from one container to another one, and learns whether they are refused."""

    def __init__(
        self, namespaces: Namespaces, endpoints: Mapping[Identity, Endpoint], answers: PolicyAnswers
    ) -> None:
        self._namespaces = namespaces
        self._endpoints = endpoints
        self._answers = answers
        self._room = asyncio.Semaphore(AT_ONCE)

    async def test(self, cases: Iterable[Case]) -> Probed:
        """Ask each case as policies are in force now, whatever a file says.

        A case with an end that means nobody fails without a packet. Raises Invalid for more cases than MOST.
        """
        wanted = list(cases)
        if len(wanted) > MOST:
            raise Invalid(f"{len(wanted)} cases are too many to ask by packets", f"give at most {MOST}")
        threads = ThreadPoolExecutor(AT_ONCE, "policy-probe")  # those of the agent must not wait for silent servers
        try:
            found = await asyncio.gather(*(self._test(case, threads) for case in wanted))
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
        failed = tuple(one for one in found if isinstance(one, Failure))
        return Probed(failed=failed, skipped=tuple(one for one in found if isinstance(one, Skipped)))

    async def _test(self, case: Case, threads: ThreadPoolExecutor) -> Failure | Skipped | None:
        try:
            source, target = await self._answers.pair(case.source, case.target)
            answer = self._answers.answer(source, target, case.port)
        except (NotFound, Invalid) as error:
            return unanswered(case, error)
        opened = next((text for text in answer.ports if text != "all"), "")
        published = next((f"{port.host_port}/{port.protocol}" for port in target.ports if target.hosted), "")
        wanted = _one(ports(case.port or opened or published or "80/tcp"))
        netns, address = self._netns(source), self._answers.address_for(source, target, wanted)
        if why := self._unable(source, target, netns, address, wanted):
            return Skipped(line=case.line, file=case.file, why=why)
        assert netns is not None
        loop = asyncio.get_running_loop()
        async with self._room:
            passes = await loop.run_in_executor(threads, self._ask, netns, address, wanted)
        if passes is None:
            why = f"nothing answered datagrams to {target.name} at {wanted}, and nothing refused them"
            return Skipped(line=case.line, file=case.file, why=why)
        got = "allow" if passes else "deny"
        return None if got == case.expect else failure(case, got, answer.by, port=str(wanted))

    def _unable(self, source: Place, target: Place, netns: int | None, address: str, wanted: Ports) -> str:
        if netns is None:
            where = f"it is on host {source.host}" if source.host else "it is no running container"
            return f"{source.name} sends nothing from here: {where}"
        if not address:
            return f"{target.name} has no address that a packet could be sent to"
        if wanted.protocol not in connection_attempt.PROTOCOLS or (wanted.protocol, wanted.first) in _UNSENT:
            return f"no packet of {wanted} can be sent"
        return ""

    def _netns(self, source: Place) -> int | None:
        """Return the namespace of a container of this host, None for any other end.

        That of one on the host's own network is the host's: its packets are the host's own.
        """
        address = source.party.address
        for endpoint in self._endpoints.values():
            if endpoint.network != source.network:
                continue
            called = endpoint.called, endpoint.host
            if source.hosted and hosted(endpoint) and called == (source.name, source.host):
                return HOST
            if any(one.single() == address for one in endpoint.prefixes):
                return endpoint.netns or None
        return None

    def _ask(self, netns: int, target: str, wanted: Ports) -> bool | None:
        with self._namespaces.entered(netns):
            return connection_attempt.passes(target, wanted.protocol, wanted.first)


def _one(found: Ports) -> Ports:
    """Return one port of a span; of a whole protocol with ports the one that web servers have."""
    first = found.first or (0 if found.protocol == "icmp" else 80)
    return Ports(found.protocol, first, first)
