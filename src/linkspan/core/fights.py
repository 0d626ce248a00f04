"""Fights: objects that another program changes as often as linkspan puts them back.

Linkspan puts an object back FREE times at once. If it is wrong in the same way once more within WINDOW,
somebody keeps changing it. Then linkspan waits between two repairs, first FIRST seconds and each time twice
as long, up to LONGEST. So neither program costs the machine much, and the log has one event instead of
thousands.

Guards, the rules that keep containers from forging addresses and from each other, are never left wrong:
linkspan puts them back at every observation. While somebody keeps changing them, the ports of the guarded
containers are down, until the guards were in force for the whole pause.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable

import msgspec

from linkspan.core.errors import Conflict
from linkspan.core.kinds import ALL, BRIDGED, Kinds
from linkspan.core.states.host import Key, State

FREE = 3
"""Number of repairs without a pause."""
WINDOW = 60.0
"""Seconds: repairs of one object that are further apart are unrelated."""
FIRST, LONGEST = 4.0, 60.0
"""Seconds of pause between repairs."""
MOST = 60
"""Number of repairs within WINDOW (one a second) that is a fight even if the object was wrong in another way
each time."""

FRESH = 5.0
"""Seconds after a change during which its program may be the one that fights."""


class Contested(Conflict):
    """Another program keeps changing the object; ``there`` says whether the object exists."""

    def __init__(self, message: str, there: bool) -> None:
        super().__init__(message, "stop that program, or configure it to leave linkspan's objects alone")
        self.there = there


class Fight(msgspec.Struct):
    """One object and its repairs. ``pause`` is 0 until a fight is known."""

    key: Key
    what: str
    state: State
    """The state that was wrong first."""
    guard: bool
    recent: list[tuple[float, State | None]] = []
    """The repairs within WINDOW: the time, and the wrong state."""
    repairs: int = 0
    pause: float = 0.0
    since: float = 0.0
    wrong_at: float = 0.0
    repaired_at: float = 0.0
    by: str = ""
    ports: set[str] = set()
    """The ports that a guard closes: names of links, ALL or BRIDGED."""
    closed: bool = False
    waiting: bool = False
    """Whether it is wrong now, and not repaired until it is due."""
    refused: str = ""
    """Why a guard could not be put back at the last observation."""

    @property
    def kind(self) -> type[State]:
        """Return its kind; for a table or a set, the kind that was wrong first."""
        return type(self.state)

    @property
    def open(self) -> bool:
        """Return whether a fight for the object is known."""
        return self.pause > 0

    @property
    def due(self) -> float:
        """Return when it may be put back again."""
        return max(self.since, self.repaired_at) + self.pause

    @property
    def message(self) -> str:
        """Return who does what, and what linkspan does."""
        who = f"another program{f' ({self.by})' if self.by else ''} keeps changing {self.what}"
        if self.refused:
            who = f"linkspan cannot put back {self.what} ({self.refused})"
        if self.guard:
            return f"{who}, which guards containers: their ports are down until it is in force"
        return f"{who}: linkspan puts it back every {FIRST:g} to {LONGEST:g} s"


class Fights:
    """All objects that were recently put back.

    The worker's thread changes them. The event loop reads ``open``, ``kinds`` and ``soon``. It also calls
    ``changed_by`` to say who changed something: that is kept in a table of its own, and no thread iterates over it.
    """

    def __init__(self, kinds: Kinds, clock: Callable[[], float] = time.monotonic) -> None:
        self._kinds = kinds
        self._clock = clock
        self._known: dict[Key, Fight] = {}
        self._actors: dict[str, tuple[float, str]] = {}

    def changed_by(self, kinds: Iterable[type[State]], actor: str) -> None:
        """Record which program changed an object of one of these kinds, if the kernel reports it."""
        self._actors.update((kind.__name__, (self._clock(), actor)) for kind in kinds if actor)

    def open(self) -> list[Fight]:
        """Return the fights that continue, or that have been quiet for less than WINDOW."""
        return [fight for fight in list(self._known.values()) if fight.open]

    def fought(self, state: State) -> bool:
        """Return whether a fight for the object is known."""
        found = self._known.get(self._kinds.subject(state))
        return found is not None and found.open

    def wrong(self, state: State, seen: State | None) -> Fight | None:
        """Record that an object is wrong, ``seen`` (None: absent or superfluous) instead of ``state``.

        Returns the fight that forbids to put it back now; a guard may always be put back.
        """
        now, key = self._clock(), self._kinds.subject(state)
        fight = self._known.get(key)
        if fight is None:
            words = [state.label] if key == state.key else [part for part in key[1:] if isinstance(part, str)]
            guards = bool(self._kinds.guards(state))
            fight = self._known[key] = Fight(key, " ".join([str(key[0]), *words]), state, guards)
        fight.wrong_at = now
        fight.ports |= self._kinds.guards(state)
        seen = None if fight.guard else seen
        fight.recent = [one for one in fight.recent if now - one[0] < WINDOW]
        same = sum(was == seen for _, was in fight.recent)
        if not fight.open and (same >= FREE or len(fight.recent) >= MOST):
            fight.pause, fight.since, fight.closed = FIRST, now, fight.guard
        elif fight.open and fight.guard and not fight.closed:
            fight.pause, fight.closed = min(2 * fight.pause, LONGEST), True
        if fight.open:
            self._accuse(fight)
        fight.waiting = fight.open and not fight.guard and now < fight.due
        return fight if fight.waiting else None

    def _accuse(self, fight: Fight) -> None:
        """Name the program that fights, as soon as the kernel has reported it."""
        at, actor = self._actors.get(fight.kind.__name__, (0.0, ""))
        if not fight.by and self._clock() - at < FRESH:
            fight.by = actor

    def right(self, kinds: Iterable[type[State]], wrong: Collection[Key]) -> None:
        """Record that all objects of these kinds except ``wrong`` (subjects) are right, or no longer desired."""
        names = {kind.__name__ for kind in kinds}
        for key, fight in self._known.items():
            if fight.waiting and fight.kind.__name__ in names and key not in wrong:
                fight.waiting = False

    def repaired(self, state: State, seen: State | None) -> None:
        """Record that the object was put back."""
        if (fight := self._known.get(self._kinds.subject(state))) is None:
            return
        now = self._clock()
        if fight.open and not fight.guard:
            fight.pause = min(2 * fight.pause, LONGEST)
        fight.waiting, fight.refused = False, ""
        fight.repaired_at = now
        fight.repairs += 1
        fight.recent.append((now, None if fight.guard else seen))

    def failed(self, state: State, why: str) -> None:
        """Record that the kernel refused the object: that is no fight, and the next chance must not be missed.

        The ports of a guard are closed at once, unless its refusal is contained, and nobody fights for it.
        """
        if (fight := self._known.get(self._kinds.subject(state))) is None:
            return
        if not fight.guard or (not fight.open and self._kinds.contained(state)):
            del self._known[fight.key]
            return
        if not fight.open:
            fight.pause, fight.since = FIRST, self._clock()
        fight.closed, fight.refused = True, why
        self._accuse(fight)

    def settle(self) -> tuple[list[Fight], bool]:
        """Forget what was quiet for long enough; return the fights that ended, and whether ports may come up again."""
        now, ended, opened = self._clock(), [], False
        for key, fight in list(self._known.items()):
            quiet = now - max(fight.wrong_at, fight.repaired_at)
            if fight.closed and quiet >= fight.pause:
                fight.closed, opened = False, True
            if quiet >= WINDOW and not fight.closed and not fight.waiting:
                del self._known[key]
                ended += [fight] if fight.open else []
        return ended, opened

    def closed(self) -> set[str]:
        """Return the ports that must be down: names of links, ALL or BRIDGED."""
        return {port for fight in self._known.values() if fight.closed for port in fight.ports}

    def closing(self, link: str, *, bridged: bool) -> Fight | None:
        """Return the fight because of which a container's port must be down."""
        names = {link, ALL, *([BRIDGED] if bridged else [])}
        return next((f for f in self._known.values() if f.closed and f.ports & names), None)

    def kinds(self) -> set[type[State]]:
        """Return the kinds of objects that are left wrong until they are due."""
        return {fight.kind for fight in list(self._known.values()) if fight.waiting}

    def soon(self) -> float | None:
        """Return the seconds until there is something to do; None if nothing waits."""
        now, known = self._clock(), list(self._known.values())
        times = [fight.wrong_at + fight.pause for fight in known if fight.closed]
        times += [fight.due for fight in known if fight.waiting]
        return max(0.0, min(times) - now) if times else None
