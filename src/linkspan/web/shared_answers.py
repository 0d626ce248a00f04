"""Answers that several viewers share: a question that somebody asks already is not asked again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Generic, TypeVar

Q = TypeVar("Q", bound=Hashable)

KEEP = 1.0
"""Seconds for which an answer counts."""
AT_ONCE = 4
"""Questions that are under way at a time: the others wait."""


class SharedAnswers(Generic[Q]):
    """Asks questions, each once at a time."""

    def __init__(self, ask: Callable[[Q], Awaitable[Any]]) -> None:
        self._ask = ask
        self._tasks: dict[Q, asyncio.Task[Any]] = {}
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def get(self, question: Q) -> Any:
        """Return the answer, at most KEEP seconds old when it comes. Raises what ``ask`` raises."""
        task = self._tasks.get(question)
        if task is None:
            task = self._tasks[question] = asyncio.create_task(self._answer(question))
            task.add_done_callback(_taken)
        # Shielded: the others still wait for the answer if this viewer goes.
        return await asyncio.shield(task)

    async def _answer(self, question: Q) -> Any:
        loop = asyncio.get_running_loop()
        try:
            async with self._turns:
                return await self._ask(question)
        finally:
            loop.call_later(KEEP, self._tasks.pop, question, None)


def _taken(task: asyncio.Task[Any]) -> None:
    """Take an error, in case that everybody who asked has gone."""
    if not task.cancelled():
        task.exception()
