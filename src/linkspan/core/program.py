"""Program: a fact about a host, the base of what each helper program's kind says of it."""

from __future__ import annotations

import msgspec


class Program(msgspec.Struct, frozen=True):
    """A program that was found on this host: a fact that backends get by its class."""
