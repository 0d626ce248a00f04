"""Host names shared by several hosts: ids are unique, names come from the machines unless set (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from linkspan.core.errors import Conflict, NotFound, closest

FIX = (
    "use their ids; to rename a machine without --host-id: `hostnamectl set-hostname NAME` and a "
    "restart of its agent"
)


def meant(names: Mapping[str, str], word: str) -> str:
    """Return the id of the host with this id, or of the only one with this name; '' if there is none.

    ``names`` are the hosts' names by their ids. Raises Conflict with the ids if several have the name.
    """
    if word in names:
        return word
    found = sorted(id_ for id_, name in names.items() if name == word)
    if len(found) > 1:
        raise Conflict(
            told(word, found), "give one of the ids: `linkspan host list` shows which host has which"
        )
    return found[0] if found else ""


def missing(names: Mapping[str, str], word: str) -> NotFound:
    """Return the error for a word for which `meant` finds no host, with the probable host."""
    known = ", ".join(sorted(called(names, id_) for id_ in names))
    hint = closest(word, [*names, *filter(None, names.values())], "`linkspan host list` shows them")
    return NotFound(f"host {word!r} does not exist (there are: {known})", hint, records="hosts/")


def shared(names: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the names that several hosts have, with the hosts' ids."""
    found: dict[str, list[str]] = {}
    for id_ in sorted(names):
        found.setdefault(names[id_], []).append(id_)
    return {name: ids for name, ids in sorted(found.items()) if name and len(ids) > 1}


def told(name: str, ids: Iterable[str]) -> str:
    """Return a sentence that several hosts have a name."""
    every = sorted(ids)
    return f"{len(every)} hosts have the name {name}: ids {', '.join(every)}"


def called(names: Mapping[str, str], id_: str) -> str:
    """Return a host's name, with its id if another host has the same name."""
    name = names[id_] or id_
    return f"{name} (id {id_})" if id_ in shared(names).get(name, ()) else name
