"""Containers of a large cluster, in parts: a search looks through all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import msgspec

from linkspan.web.view_state import container, container_key

PAGE = 200
"""Containers in one part of a list."""


class Wanted(msgspec.Struct, frozen=True):
    """Part of a list of containers: those of a host and a network (empty: all) whose text contains ``search``."""

    search: str = ""
    host: str = ""
    network: str = ""
    page: int = 0


class ContainerList:
    """The endpoints of one reading. Their texts are made with the first search, and kept for the next ones."""

    def __init__(self, endpoints: Sequence[Mapping[str, Any]] = ()) -> None:
        self._endpoints = endpoints

    def part(self, wanted: Wanted) -> dict[str, Any]:
        """Return at most PAGE containers. With 100,000 it takes a while: call it in a thread."""
        found = self._endpoints
        if words := wanted.search.lower().split():
            found = [
                one
                for one, text in zip(found, self._texts, strict=True)
                if all(word in text for word in words)
            ]
        if wanted.host or wanted.network:
            found = [
                one for one in found if wanted.host in ("", one["host"]) and wanted.network in ("", one["network"])
            ]
        first = wanted.page * PAGE
        shown = {container_key(one): container(one) for one in found[first : first + PAGE]}
        return {"total": len(found), "page": wanted.page, "pages": -(-len(found) // PAGE), "containers": shown}

    @cached_property
    def _texts(self) -> list[str]:
        return [_text(one) for one in self._endpoints]


def _text(endpoint: Mapping[str, Any]) -> str:
    words = (endpoint["name"], endpoint["id"], endpoint["host"], endpoint["network"], *endpoint["addresses"])
    labels = (f"{key}={value}" for key, value in (endpoint.get("labels") or {}).items())
    return "\n".join((*words, *labels)).lower()
