"""Batches of drivers: each state by itself, or one message for each state and one send for each namespace."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

from linkspan.core.errors import LinkspanError, NotFound
from linkspan.core.kinds import netns_of
from linkspan.core.states.host import Key, State
from linkspan.kernel.io.netlink import Message
from linkspan.kernel.io.sockets import Sockets


def each(states: Iterable[State], act: Callable[[Any], None]) -> dict[Key, LinkspanError]:
    """Call a function with each state; continue past errors and return them by key."""
    failed: dict[Key, LinkspanError] = {}
    for state in states:
        try:
            act(state)
        except LinkspanError as error:
            failed[state.key] = error
    return failed


def send(
    sockets: Sockets,
    states: Iterable[State],
    message: Callable[[Any, int], Message],
    gone: Collection[int] = (),
) -> dict[Key, LinkspanError]:
    """Send ``message`` of each state and the index of its link (``device``; 0 for none); return errors by key.

    ``gone`` are the errnos that mean, for removals, that nothing is left to remove; a state whose link or
    namespace is missing is gone as well.
    """
    by_netns: dict[int, list[State]] = {}
    for state in states:
        by_netns.setdefault(netns_of(state), []).append(state)
    failed: dict[Key, LinkspanError] = {}
    for netns, mine in by_netns.items():
        messages, sent = [], []
        indexes = {"": 0}
        for state in mine:
            device = getattr(state, "device", "")
            try:
                if device not in indexes:
                    indexes[device] = sockets.index(netns, device)
                messages.append(message(state, indexes[device]))
                sent.append(state)
            except LinkspanError as error:
                if not gone:
                    failed[state.key] = error
        if not messages:
            continue
        try:
            results = sockets.at(netns).batch(messages)
        except NotFound as error:  # the container is gone, with everything in it
            failed.update({} if gone else {state.key: error for state in sent})
            continue
        failed.update(
            (state.key, error)
            for state, error in zip(sent, results, strict=True)
            if error is not None and error.errno not in gone
        )
    return failed
