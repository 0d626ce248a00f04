"""Checks: their result, and the surroundings that they examine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import msgspec

from linkspan.core.backend_contract import Backend
from linkspan.core.model import Network, Underlay

if TYPE_CHECKING:  # the command line reads runtimes' checks, and needs no trace
    from linkspan.diagnose.trace.kernel_view import KernelView

Status = Literal["ok", "warn", "fail", "skip"]


class Check(msgspec.Struct, frozen=True):
    """One finding; ``detail`` says what was found, ``fix`` what to do about it ('' if nothing)."""

    check: str
    status: Status
    detail: str
    fix: str = ""


class Surroundings(msgspec.Struct, frozen=True):
    """The machine that a doctor examines; ``root`` differs from / only for an image or a test.

    ``backends`` are the available ones, by name.
    """

    networks: Sequence[Network] = ()
    state_dir: Path = Path("/var/lib/linkspan")
    root: Path = Path("/")
    underlay: Underlay | None = None
    backends: Mapping[str, Backend] = {}

    def file(self, path: str) -> Path:
        """Return a path below the root."""
        return self.root / path.lstrip("/")

    def families(self) -> tuple[int, ...]:
        """Return the address families of the networks' pools."""
        return tuple(sorted({p.family for n in self.networks for p in n.prefixes}))


Look: TypeAlias = "Callable[[KernelView, Surroundings], Iterable[Check]]"
"""Looks at one thing, by the kernel's answers and by what is known of the host; it changes nothing."""
Checks = tuple[tuple[str, Look], ...]
"""What a file of checks looks at, in order, each by the name under which it is skipped where it fails."""
