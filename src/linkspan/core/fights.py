"""Fights: objects that another program changes as often as linkspan puts them back.

An object is put back FREE times at once. If it is found wrong in the same way once more within WINDOW, somebody keeps
changing it: from then on linkspan waits between two repairs, FIRST seconds and each time twice as long, up to LONGEST.
So neither program costs the machine much, and the log has one event instead of thousands.

Guards, the rules that keep containers from forging addresses and from each other, are never left wrong: they are put
back at every look. While somebody keeps changing them, the ports of the containers that they guard are down instead,
until the guards held for the pause.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable

import msgspec

from linkspan.core.errors import Conflict
from linkspan.core.kinds import ALL, BRIDGED, Kinds
from linkspan.core.states.host import Key, State

FREE = 3
"""Repairs without a pause."""
WINDOW = 60.0
"""Seconds: repairs of one object that lie further apart have nothing to do with each other."""
FIRST, LONGEST = 4.0, 60.0
"""Seconds of pause between repairs."""
MOST = 60
"""Repairs within WINDOW that are a fight even if the object was wrong in another way each time: one a second."""

FRESH = 5.0
"""Seconds after a change in which whoever made it may be the one that fights."""


class Contested(Conflict):
    """Another program keeps changing the object; ``there`` tells whether the object exists."""

    def __init__(self, message: str, there: bool) -> None:
        super().__init__(message, "stop that program, or have it leave what is linkspan's alone")
        self.there = there


class Fight(msgspec.Struct):
    """One object and its repairs. ``pause`` is 0 until somebody is known to fight for it."""

    key: Key
    what: str
    state: State
    """What was found wrong first."""
    guard: bool
    recent: list[tuple[float, State | None]] = []
    """The repairs within WINDOW: when, and what was there instead."""
    repairs: int = 0
    pause: float = 0.0
    since: float = 0.0
    wrong_at: float = 0.0
    repaired_at: float = 0.0
    by: str = ""
    ports: set[str] = set()
    """Whose ports a guard closes: names of links, ALL or BRIDGED."""
    closed: bool = False
    waiting: bool = False
    """Whether it is wrong now, and left so until it is due."""
    refused: str = ""
    """Why a guard could not be put back at the last look."""

    @property
    def kind(self) -> type[State]:
        """Its kind; of a table's or a set's, that of what was found wrong first."""
        return type(self.state)

    @property
    def open(self) -> bool:
        """Tell whether somebody is known to fight for it."""
        return self.pause > 0

    @property
    def due(self) -> float:
        """When it may be put back again."""
        return max(self.since, self.repaired_at) + self.pause

    @property
    def message(self) -> str:
        """Say who does what, and what linkspan does."""
        who = f"another program{f' ({self.by})' if self.by else ''} keeps changing {self.what}"
        if self.refused:
            who = f"linkspan cannot put back {self.what} ({self.refused})"
        if self.guard:
            return f"{who}, by which containers are guarded: their ports are down until it holds"
        return f"{who}: linkspan puts it back every {FIRST:g} to {LONGEST:g} s"


class Fights:
    """All objects that were put back lately.

    The worker's thread changes them; the loop's asks ``open``, ``kinds`` and ``soon``.
    """

    def __init__(self, kinds: Kinds, clock: Callable[[], float] = time.monotonic) -> None:
        self._kinds = kinds
        self._clock = clock
        self._known: dict[Key, Fight] = {}
        self._actors: dict[str, tuple[float, str]] = {}

    def changed_by(self, kinds: Iterable[type[State]], actor: str) -> None:
        """Take in who changed an object of one of these kinds, where the kernel tells it."""
        self._actors.update((kind.__name__, (self._clock(), actor)) for kind in kinds if actor)

    def open(self) -> list[Fight]:
        """Return the fights that go on, or that have been quiet for less than WINDOW."""
        return [fight for fight in list(self._known.values()) if fight.open]

    def fought(self, state: State) -> bool:
        """Tell whether somebody is known to fight for the object."""
        found = self._known.get(self._kinds.subject(state))
        return found is not None and found.open

    def wrong(self, state: State, seen: State | None) -> Fight | None:
        """Take in that an object is wrong, ``seen`` (None: absent or superfluous) instead of ``state``.

        Returns the fight because of which it must not be put back now; a guard always may.
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
        """Name who fights, as soon as the kernel has told it."""
        at, actor = self._actors.get(fight.kind.__name__, (0.0, ""))
        if not fight.by and self._clock() - at < FRESH:
            fight.by = actor

    def right(self, kinds: Iterable[type[State]], wrong: Collection[Key]) -> None:
        """Take in that of these kinds all but ``wrong`` (subjects) is as it should be, or not desired any more."""
        names = {kind.__name__ for kind in kinds}
        for key, fight in self._known.items():
            if fight.waiting and fight.kind.__name__ in names and key not in wrong:
                fight.waiting = False

    def repaired(self, state: State, seen: State | None) -> None:
        """Take in that the object was put back."""
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
        """Take in that the kernel refused the object: that is no fight, and the next chance must not be missed.

        Ports that a guard is for are closed at once.
        """
        if (fight := self._known.get(self._kinds.subject(state))) is None:
            return
        if not fight.guard:
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
        """Return whose ports must be down: names of links, ALL or BRIDGED."""
        return {port for fight in self._known.values() if fight.closed for port in fight.ports}

    def closing(self, link: str, *, bridged: bool) -> Fight | None:
        """Return the fight because of which a container's port must be down."""
        names = {link, ALL, *([BRIDGED] if bridged else [])}
        return next((f for f in self._known.values() if f.closed and f.ports & names), None)

    def kinds(self) -> set[type[State]]:
        """Return the kinds of what is left wrong until it is due."""
        return {fight.kind for fight in list(self._known.values()) if fight.waiting}

    def soon(self) -> float | None:
        """Return in how many seconds there is something to do; None where nothing waits."""
        now, known = self._clock(), list(self._known.values())
        times = [fight.wrong_at + fight.pause for fight in known if fight.closed]
        times += [fight.due for fight in known if fight.waiting]
        return max(0.0, min(times) - now) if times else None
