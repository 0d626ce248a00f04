"""Kinds known on this host: those declared in ``kernel/drivers``, and those of installed packages.

A package adds kinds by the entry point ``linkspan.kinds``, which leads to its tuple of ``Kind``. A package
whose declarations are invalid or contradict others is left out, and `status` names it. The agent writes down which
kinds of packages it has applied (``used_kinds``), and `uninstall` names those that it no longer finds.

A machine's drivers are made from a ``LocalHost``. A driver that needs another one asks for it there. The controller
makes one driver for each device of its own (a switch, a router), and takes the kinds from that driver's file.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Iterable
from typing import Any

from linkspan.core.errors import Invalid
from linkspan.core.extensions import extended
from linkspan.core.kinds import Kind, Kinds
from linkspan.kernel import drivers

GROUP = "linkspan.kinds"
"""The entry point's group."""
OURS = "ls"
"""Prefix of all link names of packages' kinds: rules treat such links as ours."""


def kinds() -> Kinds:
    """Return all kinds known here; searched once."""
    return _found()[0]


def problems() -> list[str]:
    """Return a sentence for each package whose kinds are left out, with the reason."""
    return [f"the kinds of package {name} are left out: {why}" for name, why in _found()[1].items()]


@functools.cache
def _found() -> tuple[Kinds, dict[str, str]]:
    names = (f"{drivers.__name__}.{module.name}" for module in pkgutil.iter_modules(drivers.__path__))
    own = Kinds(kind for name in names for kind in getattr(importlib.import_module(name), "KINDS", ()))
    return extended(GROUP, own, _with)


def _with(known: Kinds, more: Iterable[Kind[Any]]) -> Kinds:
    added = tuple(more)
    for kind in added:
        if not isinstance(kind, Kind):
            raise Invalid(f"its entry point leads to {kind!r}, which is no Kind")
        if strange := next((name for name in kind.names if not name.startswith(OURS)), ""):
            raise Invalid(f"kind {kind.name} calls its links {strange}, and names of links begin with {OURS}")
    return Kinds((*known, *added))
