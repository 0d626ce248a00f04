"""Podman's command line. It has no daemon: each call is a process of `podman`, which ends with its answer."""

from __future__ import annotations

import asyncio
from typing import TypeVar

import msgspec

from linkspan.core.errors import Unavailable
from linkspan.runtimes import go_json

PATIENCE = 60.0
"""Seconds for one call: netavark waits for other calls of its own."""
T = TypeVar("T")


class PodmanCommand:
    """Root's Podman, with the configuration that `podman` finds in this process's environment."""

    async def run(self, *words: str) -> bytes:
        """Run a command, and return what it prints. Raises Unavailable with its last words if it fails.

        The command has a session of its own: an interrupt by the keyboard would leave a container half moved.
        """
        pipe = asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(
                *self.command(words), stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe, start_new_session=True
            )
        except OSError as error:
            raise Unavailable(f"podman cannot be executed: {error.strerror}", "is it installed?") from error
        try:
            async with asyncio.timeout(PATIENCE):
                said, complaint = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            raise Unavailable(f"podman {words[0]} has not ended after {PATIENCE:.0f} s") from None
        if process.returncode:
            last = complaint.decode(errors="replace").strip().rpartition("\n")[2]
            raise Unavailable(last or f"podman {words[0]} ended with {process.returncode}")
        return said

    def command(self, words: tuple[str, ...]) -> list[str]:
        """Return the process to execute."""
        return ["podman", *words]

    async def asked(self, kind: type[T], *words: str) -> T:
        """Return what a command prints, which is JSON, as a value of this type. Raises Unavailable."""
        said = await self.run(*words)
        try:
            return go_json.decoded(said, kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Unavailable(f"podman {words[0]}: its answer cannot be read: {error}") from error
