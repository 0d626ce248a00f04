"""Adoption of Docker's bridge networks: the engine's network of one name is a bridge before, and linkspan's after.

Docker cannot rename a network, and containers, restart policies and Compose know it by its name. So both networks
have the same name, and never exist at once: all containers are disconnected, the one network is removed, the other
one is created with the same labels, and all containers are connected with the addresses that they had. A
container's gap is therefore as long as all containers together need; requests run side by side, and whoever is
disconnected first is connected first. Bridges side by side were rejected: both would have the same subnet and
gateway, so containers of one could not reach those of the other, nor the host both, for as long as the move lasts.

The record in the state folder says before each step what the step takes away: the network as the engine described
it, and each container's addresses and aliases. So it does not matter where an adoption was killed. Whether a step is
still to do is asked of the engine and the agent, never of the record. The record stays until `--confirm`, and
`--undo` creates the bridge network from it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Awaitable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec

from linkspan.core.addresses import mac, prefix
from linkspan.core.errors import Conflict, LinkspanError, NotFound, Unavailable, counted, of_errno
from linkspan.kernel.io.durable_files import Memory
from linkspan.kernel.io.namespaces import Namespaces, open_namespace
from linkspan.kernel.probe import gratuitous_arp
from linkspan.runtimes.adoption import Ask, Done, Left, Outcome
from linkspan.runtimes.docker import docker_adoption_plan as plan
from linkspan.runtimes.docker.docker_adoption_plan import Attachment, Container, Described, Move
from linkspan.runtimes.docker.docker_engine import Engine

FILE = "adopted.json"
"""The record of all adoptions that are not confirmed, in the state folder."""
WITHOUT = "adopted networks can then not be given back"
SIDE_BY_SIDE = 4
"""Requests to the engine at one time. With more of them all containers would be without the network at once."""
ROUNDS = 5
"""How often containers are looked for that came to the network while others were disconnected."""

AGAIN = "correct that, and give the same command again"
T = TypeVar("T")


class Adopted(msgspec.Struct, frozen=True):
    """What is remembered of an adoption: the bridge network, and the containers that are to be on its successor.

    ``moves`` are by container id. ``made`` says that linkspan's network of this name is this adoption's, which may
    delete it. ``finished`` says that no step is left.
    """

    origin: Described
    moves: dict[str, Move] = {}
    made: bool = False
    finished: bool = False


def adopted(state_dir: Path) -> frozenset[str]:
    """Return the networks that can be given back. Raises Unavailable if the record cannot be read."""
    return frozenset(_record(state_dir).entries)


class DockerAdopter:
    """Adopts networks of one engine."""

    def __init__(self, engine: Engine, plugin: Path, state_dir: Path, ask: Ask) -> None:
        """Take ``plugin``, the socket where the engine finds linkspan, the record's folder, and the agent's calls."""
        self._engine = engine
        self._plugin = plugin
        self._state_dir = state_dir
        self._ask = ask

    def preview(self, network: str) -> Outcome:
        """Return what `adopt` would do, and what it would refuse. Change nothing."""
        return asyncio.run(self._preview(network))

    def adopt(self, network: str, *, slow: bool) -> Outcome:
        """Take over the network, or continue where an earlier call ended."""
        return asyncio.run(self._adopt(network, slow=slow))

    def undo(self, network: str) -> Outcome:
        """Create the bridge network again, with the containers that are on its successor now."""
        return asyncio.run(self._undo(network))

    def confirm(self, network: str) -> Outcome:
        """Forget the bridge network."""
        with self._alone() as record:
            known = _known(record, network)
            if not known.finished:
                what = f"the adoption of network {network} is not finished"
                raise Conflict(what, f"linkspan adopt docker {network} continues it, with --undo backwards")
            del record.entries[network]
            record.save()
        return Outcome((Done(f"network {network}", "confirmed; it cannot be given back any more"),))

    async def _preview(self, network: str) -> Outcome:
        known = _record(self._state_dir).entries.get(network)
        if known is not None and known.finished and await self._is_ours(network):
            return Outcome((_already(network),))
        origin, containers, left = await self._judged(network, known)
        left += [] if known else plan.haste(network, containers)
        moves = dict(known.moves) if known else {}
        moves |= {one.id: plan.move(one, at) for one in containers if (at := one.on(network))}
        done = (_taken_over(origin), *(Done(f"container {one.name}", _moved(one)) for one in moves.values()))
        return Outcome(() if left else done, tuple(left), tuple(plan.notes(origin, containers)))

    async def _is_ours(self, network: str) -> bool:
        """Return whether nobody has created a network of another driver under this name."""
        found = await _described(self._engine, network)
        return found is None or found.driver == plan.OURS

    async def _judged(
        self, network: str, known: Adopted | None
    ) -> tuple[Described, list[Container], list[Left]]:
        """Return the bridge network, the containers on it, and what is in the way. Raises NotFound."""
        found = await _described(self._engine, network)
        containers = await _on(self._engine, network)
        if known is not None and (found is None or found.driver == plan.OURS):
            return known.origin, containers, [*self._occupied(known)]
        if found is None:
            raise NotFound(f"Docker has no network {network}", "`docker network ls` shows its networks")
        left = plan.refusals(found, containers)
        if not left:
            left = [*self._occupied(known or Adopted(found)), *([] if known else self._not_set_up())]
        return found, containers, left

    def _occupied(self, known: Adopted) -> Iterator[Left]:
        """Yield which of linkspan's networks have the name or the addresses, except the one that the adoption made."""
        origin = known.origin
        for other in self._ask("GET", "/v1/networks"):
            if known.made and plan.is_successor(origin, other):
                continue
            if other["name"] == origin.name:
                yield Left(f"network {origin.name}", "linkspan has a network of this name", "delete that one first")
            elif any(one.overlaps(prefix(pool)) for one in plan.pools(origin) for pool in other["pools"]):
                yield Left(f"network {origin.name}", f"its subnet overlaps with linkspan's network {other['name']}")

    def _not_set_up(self) -> Iterator[Left]:
        """Yield a reason if the engine finds no linkspan: it would look for it while containers have no network."""
        if not self._plugin.exists():
            why = f"its engine does not find linkspan: {self._plugin} is missing"
            yield Left("Docker", why, "linkspan install docker")

    async def _adopt(self, network: str, *, slow: bool) -> Outcome:
        with self._alone() as record:
            known = record.entries.get(network)
            if known is not None and known.finished:
                if await self._is_ours(network):
                    return Outcome((_already(network),))
                known = None  # somebody removed linkspan's, and created a bridge network of this name
            origin, containers, left = await self._judged(network, known)
            left += [] if slow or known else plan.haste(network, containers)
            if left:
                raise _refused(network, left)
            notes = tuple(plan.notes(origin, containers))
            _remember(record, network, known or Adopted(origin))
            move = _Move(self._engine, record, network)
            try:
                await move.drain(plan.OURS)
                await self._create(move)
            except LinkspanError as error:
                raise await self._returned(move, error) from error
            outcome = await move.fill()
            move.remember(finished=not outcome.left)
        return Outcome((_taken_over(origin), *outcome.done), outcome.left, notes)

    async def _undo(self, network: str) -> Outcome:
        with self._alone() as record:
            known = _known(record, network)
            if known.made:
                self._check_alone(network, await _on(self._engine, network))
            if known.finished:  # since then users may have taken containers off the network
                _remember(record, network, msgspec.structs.replace(known, moves={}, finished=False))
            move = _Move(self._engine, record, network)
            await move.drain(known.origin.driver)
            outcome = await self._restore(move)
        return Outcome((Done(f"network {network}", "is Docker's bridge again"), *outcome.done), outcome.left)

    async def _returned(self, move: _Move, error: LinkspanError) -> LinkspanError:
        """Give the network back after an error, and return that error with what has become of the network."""
        origin = move.known.origin
        again = f"linkspan adopt docker {origin.name} continues, with --undo backwards"
        try:
            left = (await self._restore(move)).left
        except LinkspanError:  # of an engine that has ended, for example: the record stays
            return Unavailable(f"adopt network {origin.name}: {error.message}", again)
        if left:
            lost = ", ".join(one.object for one in left)
            return Unavailable(f"adopt network {origin.name}: {error.message}; without it now: {lost}", again)
        return error.within(f"adopt network {origin.name}, which stays Docker's bridge")

    async def _restore(self, move: _Move) -> Outcome:
        """Create the bridge network, and connect the containers; the record is deleted once all are on it.

        The agent is asked only if there may be a network to delete: without one it may have ended.
        """
        origin = move.known.origin
        if move.known.made and plan.is_successor(origin, self._of_name(origin.name)):
            with contextlib.suppress(NotFound):
                self._ask("DELETE", f"/v1/networks/{quote(origin.name)}")
        move.remember(made=False)
        if await _described(self._engine, origin.name) is None:
            await self._engine.create(plan.original(origin))
        outcome = await move.fill()
        if not outcome.left:
            move.forget()
        return outcome

    async def _create(self, move: _Move) -> None:
        """Create the linkspan network and Docker's of that driver, unless an earlier call has.

        Raises Conflict if linkspan has a network of this name that is not the adoption's.
        """
        origin = move.known.origin
        there = self._of_name(origin.name)
        if there is None:
            move.remember(made=True)
            self._ask("POST", "/v1/networks", plan.request(origin))
        elif not (move.known.made and plan.is_successor(origin, there)):
            raise Conflict(f"linkspan has a network {origin.name} of somebody else", "delete that one first")
        for address in plan.reserved(origin):
            with contextlib.suppress(Conflict):
                self._ask("POST", "/v1/reservations", {"network": origin.name, "cidr": address})
        if await _described(self._engine, origin.name) is None:
            await self._engine.create(plan.ours(origin))

    def _of_name(self, network: str) -> dict[str, Any] | None:
        """Return linkspan's network of a name, as the agent describes it."""
        return next((one for one in self._ask("GET", "/v1/networks") if one["name"] == network), None)

    def _check_alone(self, network: str, containers: list[Container]) -> None:
        """Raise Conflict if the linkspan network has other endpoints than Docker's: they would lose it."""
        known = {at.endpoint_id for one in containers if (at := one.on(network)) is not None}
        endpoints = self._ask("GET", "/v1/endpoints")
        others = [one["name"] or one["id"] for one in endpoints if one["network"] == network and one["id"] not in known]
        if others:
            what = f"linkspan's network {network} has other endpoints than Docker's: {', '.join(sorted(others))}"
            raise Conflict(what, "detach them first: they would lose their network")

    @contextlib.contextmanager
    def _alone(self) -> Iterator[Memory[Adopted]]:
        """Lend the record to one call at a time. Raises Conflict if another one runs."""
        with (self._state_dir / "adopt.lock").open("a", encoding="ascii") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Conflict("another adoption runs on this host", "wait until it has ended") from None
            yield _record(self._state_dir)


class _Move:
    """Moves the containers of one network: off it, and onto its successor of the same name."""

    def __init__(self, engine: Engine, record: Memory[Adopted], network: str) -> None:
        self._engine = engine
        self._record = record
        self._network = network
        self._turns = asyncio.Semaphore(SIDE_BY_SIDE)
        self._since: dict[str, float] = {}
        """When each running container's disconnection began (monotonic seconds)."""

    async def drain(self, successor: str) -> None:
        """Disconnect all containers and remove the network, unless it is of the successor's driver already.

        Containers that come meanwhile are taken, too.
        """
        for number in range(ROUNDS):
            found = await _described(self._engine, self._network)
            if found is None or found.driver == successor:
                return
            containers = await _on(self._engine, self._network)
            moves = {one.id: plan.move(one, at) for one in containers if (at := one.on(self._network))}
            self.remember(moves=self.known.moves | moves)
            await _all(self._part(found.id, one) for one in containers)
            try:
                await self._engine.delete(found.id)
            except Unavailable:  # a container has come to it meanwhile
                if number == ROUNDS - 1:
                    raise
                await self._clear(found.id)

    async def _clear(self, network: str) -> None:
        """Disconnect what the engine still has of removed containers: it refuses to remove a network with that."""
        exist = {one.id for one in await self._engine.containers()}
        for id_, member in (await self._engine.members(network)).items():
            if id_ not in exist:
                await self._engine.disconnect(network, member.name)

    async def fill(self) -> Outcome:
        """Connect the containers that are not on the network; return those that were, and those that cannot be."""
        found = await _described(self._engine, self._network)
        if found is None:
            raise NotFound(f"Docker's network {self._network} was removed meanwhile", "give the same command again")
        results = await _all(self._join(found.id, id_, move) for id_, move in self.known.moves.items())
        done = tuple(one for one in results if isinstance(one, Done))
        return Outcome(done, tuple(one for one in results if isinstance(one, Left)))

    def forget(self) -> None:
        """Delete the record of this adoption."""
        del self._record.entries[self._network]
        self._record.save()

    @property
    def known(self) -> Adopted:
        """Return what is remembered of this adoption."""
        return self._record.entries[self._network]

    def remember(self, **changed: Any) -> None:
        """Change fields of what is remembered."""
        _remember(self._record, self._network, msgspec.structs.replace(self.known, **changed))

    async def _part(self, network: str, container: Container) -> None:
        async with self._turns:
            self._since[container.id] = time.monotonic()
            try:
                await self._engine.disconnect(network, container.id)
            except Unavailable:
                now = await self._engine.inspected(container.id, Container)
                if now is not None and now.on(self._network) is not None:
                    raise

    async def _join(self, network: str, container: str, move: Move) -> Done | Left | None:
        """Connect one container; return None if it is gone, or is on the network already."""
        async with self._turns:
            try:
                await self._engine.connect(network, container, move.endpoint)
            except Unavailable as error:
                now = await self._engine.inspected(container, Container)
                if now is None or now.on(self._network) is not None:
                    return None
                return Left(f"container {move.name}", f"it is without the network: {error.message}", AGAIN)
            began = self._since.get(container) if move.running else None
            if move.running:
                await self._announce(container)
            gap = 0.0 if began is None else round(time.monotonic() - began, 3)
            return Done(f"container {move.name}", _moved(move), gap)

    async def _announce(self, container: str) -> None:
        """Let a container announce its addresses: who asked for them meanwhile would ask again only after a second.

        That second is the kernel's (net.ipv4.neigh.default.retrans_time_ms), and neither engine nor agent announces.
        """
        now = await self._engine.inspected(container, Container)
        if now is not None and (at := now.on(self._network)) is not None and now.state.pid:
            with contextlib.suppress(LinkspanError):  # the container has just ended, for example
                _announce(f"/proc/{now.state.pid}/ns/net", at)


def _announce(path: str, at: Attachment) -> None:
    """Announce addresses on the interface that has their MAC, in the namespace at this path. Raises LinkspanError."""
    hardware = mac(at.mac_address)
    namespaces, fd = Namespaces(), open_namespace(path)
    try:
        with namespaces.holding(fd) as number, namespaces.entered(number):
            for _, name in socket.if_nameindex():
                with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as raw:
                    raw.bind((name, 0))
                    found = raw.getsockname()[4]
                if found == hardware:
                    gratuitous_arp.announce(name, hardware, [prefix(ip) for ip in (at.ipv4, at.ipv6) if ip])
    except OSError as error:
        raise of_errno(error.errno or 0, f"announce addresses in {path}") from error
    finally:
        os.close(fd)
        namespaces.close()


async def _all(work: Iterable[Awaitable[T]]) -> list[T]:
    """Await all, and only then raise the first error: none goes on behind it."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for one in results:
        if isinstance(one, BaseException):
            raise one
    return [one for one in results if not isinstance(one, BaseException)]


async def _described(engine: Engine, network: str) -> Described | None:
    return next((one for one in await engine.described(Described) if one.name == network), None)


async def _on(engine: Engine, network: str) -> list[Container]:
    """Return the containers that are on a network, also those that do not run."""
    ids = [listed.id for listed in await engine.containers() if network in listed.networks]
    return [one for id_ in ids if (one := await engine.inspected(id_, Container)) is not None]


def _already(network: str) -> Done:
    return Done(f"network {network}", "is adopted already; --undo gives it back, --confirm keeps it")


def _taken_over(origin: Described) -> Done:
    pools = ", ".join(map(str, plan.pools(origin)))
    return Done(f"network {origin.name}", f"is linkspan's: backend bridge, pool {pools}")


def _moved(move: Move) -> str:
    return ", ".join(move.ips) if move.running else "not running"


def _record(state_dir: Path) -> Memory[Adopted]:
    return Memory(state_dir / FILE, Adopted, without=WITHOUT)


def _known(record: Memory[Adopted], network: str) -> Adopted:
    known = record.entries.get(network)
    if known is None:
        what = f"network {network} was not adopted from Docker, or is confirmed"
        raise NotFound(what, f"adopted: {', '.join(sorted(record.entries)) or 'none'}")
    return known


def _remember(record: Memory[Adopted], network: str, known: Adopted) -> None:
    record.entries[network] = known
    record.save()


def _refused(network: str, left: list[Left]) -> Conflict:
    first, *more = left
    others = f" ({counted(len(more), 'more reason')}: --dry-run)" if more else ""
    return Conflict(f"cannot adopt network {network}: {first.object}: {first.why}{others}", first.fix)
