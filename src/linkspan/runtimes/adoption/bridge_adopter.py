"""Adoption of an engine's bridge networks: its network of one name is a bridge before, and linkspan's after.

No engine can rename a network, and containers, restart policies and Compose know it by its name. So both networks
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
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Generic
from urllib.parse import quote

import msgspec

from linkspan.core.addresses import prefix
from linkspan.core.errors import Conflict, LinkspanError, NotFound, Unavailable, counted
from linkspan.kernel.io.durable_files import Memory
from linkspan.runtimes.adoption.bridge_engine import OURS, Attached, B, BridgeEngine, C, haste
from linkspan.runtimes.adoption.bridge_move import Adopted, BridgeMove, moved, remember
from linkspan.runtimes.adoption.outcome import Ask, Done, Left, Outcome

WITHOUT = "adopted networks can then not be given back"


def adopted(file: str, state_dir: Path) -> frozenset[str]:
    """Return the networks in an engine's record: they can be given back. Raises Unavailable if it cannot be read."""
    return frozenset(Memory(state_dir / file, dict, without=WITHOUT).entries)


class BridgeAdopter(Generic[B, C]):
    """Adopts networks of one engine."""

    def __init__(self, engine: BridgeEngine[B, C], state_dir: Path, ask: Ask) -> None:
        """Take the record's folder and the agent's calls."""
        self._engine = engine
        self._state_dir = state_dir
        self._ask = ask
        self._command = f"linkspan adopt {engine.name}"

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
        """Forget the bridge network, also that of an adoption that cannot be finished, because another one is there."""
        return asyncio.run(self._confirm(network))

    async def _confirm(self, network: str) -> Outcome:
        with self._alone() as record:
            known = self._known(record, network)
            if not known.finished and not self._replaced(known, await self._engine.network(network)):
                what = f"the adoption of network {network} is not finished"
                raise Conflict(what, f"{self._command} {network} continues it, with --undo backwards")
            del record.entries[network]
            record.save()
        return Outcome((Done(f"network {network}", "confirmed; it cannot be given back any more"),))

    async def _preview(self, network: str) -> Outcome:
        known = _record(self._engine, self._state_dir).entries.get(network)
        if known is not None and known.finished:
            if await self._is_ours(network):
                return Outcome((_already(network),))
            known = None  # as in `_adopt`
        origin, containers, left = await self._judged(network, known)
        attached = self._attached(containers, network)
        left += [] if known else haste(network, attached)
        if left:
            return Outcome((), tuple(left), tuple(self._engine.notes(origin, containers)))
        moves = dict(known.moves) if known else {}
        moves |= {one.id: one.move for one in attached}
        done = (self._taken_over(origin), *(Done(f"container {one.name}", moved(one)) for one in moves.values()))
        return Outcome(done, (), tuple(self._engine.notes(origin, containers)))

    def _attached(self, containers: Iterable[C], network: str) -> list[Attached]:
        """Return the containers that are on the network."""
        return [at for one in containers if (at := self._engine.attached(one, network)) is not None]

    async def _is_ours(self, network: str) -> bool:
        """Return whether nobody has created a network of another driver under this name."""
        found = await self._engine.network(network)
        return found is None or found.driver == OURS

    async def _judged(
        self, network: str, known: Adopted[B] | None
    ) -> tuple[B, list[C], list[Left]]:
        """Return the bridge network, the containers on it, and what is in the way. Raises NotFound."""
        found = await self._engine.network(network)
        containers = await self._engine.on(network)
        self._check_same(network, known, found)
        if known is not None and (found is None or found.driver == OURS):
            return known.origin, containers, [*self._occupied(known)]
        if found is None:
            what = f"{self._engine.called} has no network {network}"
            raise NotFound(what, f"`{self._engine.name} network ls` shows its networks")
        left = self._engine.refusals(found, containers)
        if not left:
            left = [*self._occupied(known or Adopted(found)), *([] if known else await self._engine.missing())]
        return found, containers, left

    def _check_same(self, network: str, known: Adopted[B] | None, found: B | None) -> None:
        """Raise Conflict if the unfinished adoption is another network's: it would remove the one that is there."""
        if known is not None and self._replaced(known, found):
            what = f"{self._engine.called}'s network {network} is another one than that whose adoption is not finished"
            raise Conflict(what, f"{self._command} {network} --confirm forgets the earlier one")

    def _replaced(self, known: Adopted[B], found: B | None) -> bool:
        """Return whether the engine has another bridge network of this name, made since the adoption began.

        One with the same addresses and options is no other one: the adoption itself creates it again if it fails.
        """
        if found is None or found.driver == OURS:
            return False
        try:
            return self._engine.successor(found) != self._engine.successor(known.origin)
        except LinkspanError:  # of a subnet that linkspan could not have
            return True

    def _occupied(self, known: Adopted[B]) -> Iterator[Left]:
        """Yield which of linkspan's networks have the name or the addresses, except the one that the adoption made."""
        wanted = self._engine.successor(known.origin)
        for other in self._ask("GET", "/v1/networks"):
            if known.made and wanted.is_made(other):
                continue
            if other["name"] == wanted.name:
                yield Left(f"network {wanted.name}", "linkspan has a network of this name", "delete that one first")
            elif any(one.overlaps(prefix(pool)) for one in wanted.pools for pool in other["pools"]):
                yield Left(f"network {wanted.name}", f"its subnet overlaps with linkspan's network {other['name']}")

    async def _adopt(self, network: str, *, slow: bool) -> Outcome:
        with self._alone() as record:
            known = record.entries.get(network)
            if known is not None and known.finished:
                if await self._is_ours(network):
                    return Outcome((_already(network),))
                known = None  # somebody removed linkspan's, and created a bridge network of this name
            origin, containers, left = await self._judged(network, known)
            left += [] if slow or known else haste(network, self._attached(containers, network))
            if left:
                raise _refused(network, left)
            notes = tuple(self._engine.notes(origin, containers))
            remember(record, network, msgspec.structs.replace(known, origin=origin) if known else Adopted(origin))
            move = BridgeMove(self._engine, record, network)
            try:
                await move.drain(ours=True)
                await self._create(move)
            except LinkspanError as error:
                raise await self._returned(move, error) from error
            outcome = await move.fill()
            move.remember(finished=not outcome.left)
        return Outcome((self._taken_over(origin), *outcome.done), outcome.left, notes)

    async def _undo(self, network: str) -> Outcome:
        with self._alone() as record:
            known = self._known(record, network)
            if not known.finished:
                self._check_same(network, known, await self._engine.network(network))
            if known.made:
                self._check_alone(network, await self._engine.on(network))
            if known.finished:  # since then users may have taken containers off the network
                remember(record, network, msgspec.structs.replace(known, moves={}, finished=False))
            move = BridgeMove(self._engine, record, network)
            await move.drain(ours=False)
            outcome = await self._restore(move)
        what = f"is {self._engine.called}'s bridge again"
        return Outcome((Done(f"network {network}", what), *outcome.done), outcome.left)

    async def _returned(self, move: BridgeMove[B, C], error: LinkspanError) -> LinkspanError:
        """Give the network back after an error, and return that error with what has become of the network."""
        origin = move.known.origin
        again = f"{self._command} {origin.name} continues, with --undo backwards"
        try:
            await move.drain(ours=False)  # the engine may have created linkspan's after all
            left = (await self._restore(move)).left
        except LinkspanError:  # of an engine that has ended, for example: the record stays
            return Unavailable(f"adopt network {origin.name}: {error.message}", again)
        if left:
            lost = ", ".join(one.object for one in left)
            return Unavailable(f"adopt network {origin.name}: {error.message}; without it now: {lost}", again)
        return error.within(f"adopt network {origin.name}, which stays {self._engine.called}'s bridge")

    async def _restore(self, move: BridgeMove[B, C]) -> Outcome:
        """Create the bridge network, and connect the containers; the record is deleted once all are on it.

        The agent is asked only if there may be a network to delete: without one it may have ended.
        """
        origin = move.known.origin
        if move.known.made and self._engine.successor(origin).is_made(self._of_name(origin.name)):
            with contextlib.suppress(NotFound):
                self._ask("DELETE", f"/v1/networks/{quote(origin.name)}")
        move.remember(made=False)
        await self._unless_there(origin, self._engine.create_bridge)
        outcome = await move.fill()
        if not outcome.left:
            move.forget()
        return outcome

    async def _create(self, move: BridgeMove[B, C]) -> None:
        """Create the linkspan network and the engine's of that driver, unless an earlier call has.

        Raises Conflict if linkspan has a network of this name that is not the adoption's.
        """
        origin = move.known.origin
        wanted, there = self._engine.successor(origin), self._of_name(origin.name)
        if there is None:
            move.remember(made=True)
            self._ask("POST", "/v1/networks", wanted.request)
        elif not (move.known.made and wanted.is_made(there)):
            raise Conflict(f"linkspan has a network {origin.name} of somebody else", "delete that one first")
        for address in wanted.reserved:
            with contextlib.suppress(Conflict):
                self._ask("POST", "/v1/reservations", {"network": origin.name, "cidr": address})
        await self._unless_there(origin, self._engine.create_ours)

    async def _unless_there(self, origin: B, create: Callable[[B], Awaitable[None]]) -> None:
        """Create the engine's network, unless an earlier call has: to ask before would prolong the outage."""
        try:
            await create(origin)
        except Unavailable:
            if await self._engine.network(origin.name) is None:
                raise

    def _of_name(self, network: str) -> dict[str, Any] | None:
        """Return linkspan's network of a name, as the agent describes it."""
        return next((one for one in self._ask("GET", "/v1/networks") if one["name"] == network), None)

    def _check_alone(self, network: str, containers: list[C]) -> None:
        """Raise Conflict if the linkspan network has other endpoints than the engine's: they would lose it."""
        known = {one.endpoint for one in self._attached(containers, network)}
        endpoints = self._ask("GET", "/v1/endpoints")
        others = [one["name"] or one["id"] for one in endpoints if one["network"] == network and one["id"] not in known]
        if others:
            whose = f"other endpoints than {self._engine.called}'s"
            what = f"linkspan's network {network} has {whose}: {', '.join(sorted(others))}"
            raise Conflict(what, "detach them first: they would lose their network")

    @contextlib.contextmanager
    def _alone(self) -> Iterator[Memory[Adopted[B]]]:
        """Lend the record to one call at a time. Raises Conflict if another one runs, NotFound without a folder."""
        if not self._state_dir.is_dir():
            raise NotFound(f"there is no state folder {self._state_dir}", "start the agent, or name its --config")
        with (self._state_dir / "adopt.lock").open("a", encoding="ascii") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Conflict("another adoption runs on this host", "wait until it has ended") from None
            yield _record(self._engine, self._state_dir)

    def _known(self, record: Memory[Adopted[B]], network: str) -> Adopted[B]:
        known = record.entries.get(network)
        if known is None:
            what = f"network {network} was not adopted from {self._engine.called}, or is confirmed"
            raise NotFound(what, f"adopted: {', '.join(sorted(record.entries)) or 'none'}")
        return known

    def _taken_over(self, origin: B) -> Done:
        pools = ", ".join(map(str, self._engine.successor(origin).pools))
        return Done(f"network {origin.name}", f"is linkspan's: backend bridge, pool {pools}")


def _already(network: str) -> Done:
    return Done(f"network {network}", "is adopted already; --undo gives it back, --confirm keeps it")


def _record(engine: BridgeEngine[B, C], state_dir: Path) -> Memory[Adopted[B]]:
    return Memory(state_dir / engine.file, Adopted[engine.bridge], without=WITHOUT)  # type: ignore[name-defined]


def _refused(network: str, left: list[Left]) -> Conflict:
    first, *more = left
    others = f" ({counted(len(more), 'more reason')}: --dry-run)" if more else ""
    return Conflict(f"cannot adopt network {network}: {first.object}: {first.why}{others}", first.fix)
