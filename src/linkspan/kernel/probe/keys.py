"""Private keys of a host, made by itself: files for root alone, in a folder of their own; checked, never displayed.

A key in use is ``private.key``, the next one ``next.key``. `wg` makes them and derives the public key of
each; an unchanged file is not read again.
"""

from __future__ import annotations

import base64
import binascii
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

import msgspec

from linkspan.core.errors import Invalid, LinkspanError, NotFound, Unavailable
from linkspan.kernel.io import durable_files
from linkspan.kernel.io.private_files import alone, apart

PRIVATE, NEXT = "private.key", "next.key"
BYTES = 32
"""Curve25519's (RFC 7748 section 5)."""


class KeyFolder:
    """The keys of one kind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, tuple[tuple[int, ...], str]] = {}

    def public(self, name: str) -> str:
        """Return the public key of a file, '' without the file.

        Raises LinkspanError with the file's name if others may read it, if it cannot be read, or if it has no
        key.
        """
        path = self.folder / name
        try:
            found = path.lstat()
        except OSError:
            self._known.pop(name, None)
            return ""
        look = (found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size)
        if name not in self._known or self._known[name][0] != look:
            self._known[name] = look, _wg("pubkey", given=key(path))
        return self._known[name][1]

    def holding(self, public: str) -> Path | None:
        """Return the file of a public key, None if there is none."""
        for name in (PRIVATE, NEXT):
            try:
                if public and self.public(name) == public:
                    return self.folder / name
            except LinkspanError:
                continue
        return None

    def make(self, name: str) -> str:
        """Make a key, and return the public one. Raises LinkspanError."""
        apart(self.folder)
        durable_files.write(self.folder / name, f"{_wg('genkey')}\n".encode(), 0o600)
        return self.public(name)

    def turn(self) -> None:
        """Turn the next key into the one in use."""
        (self.folder / NEXT).rename(self.folder / PRIVATE)
        self._known.clear()


def key(path: Path) -> str:
    """Return the key in a file, as text. Raises LinkspanError with the file's name if it has no valid key."""
    text = alone(str(path)).decode("ascii", errors="replace").strip()
    try:
        good = len(base64.b64decode(text, validate=True)) == BYTES
    except (binascii.Error, ValueError):
        good = False
    if not good:
        raise Invalid(
            f"the content of {path} is no key: its length is wrong",
            "a key is 32 bytes in base64, as `wg genkey` prints it",
        )
    return text


def amiss(files: Iterable[str]) -> str:
    """Return the problem of the first of these key files that has one, '' if none has, or if a path is ''."""
    for file in sorted(filter(None, files)):
        try:
            key(Path(file))
        except LinkspanError as error:
            return error.told
    return ""


def _wg(verb: str, given: str = "") -> str:
    try:
        done = subprocess.run(
            ["wg", verb], input=given, capture_output=True, text=True, check=False, timeout=10, env=os.environ
        )
    except FileNotFoundError as error:
        raise NotFound("the program wg is not installed on this host", "install the package wireguard-tools") from error
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"wg {verb} does not end") from error
    if done.returncode:
        raise Unavailable(f"wg {verb} ended with status {done.returncode}")
    return done.stdout.strip()


class Found(msgspec.Struct, frozen=True):
    """The public keys of a folder, or why none can be used."""

    public: str = ""
    next: str = ""
    problem: str = ""
    hint: str = ""


def look(folder: KeyFolder) -> Found:
    """Return the present keys of a folder."""
    try:
        return Found(folder.public(PRIVATE), folder.public(NEXT))
    except LinkspanError as error:
        return Found("", "", error.message, error.hint)
