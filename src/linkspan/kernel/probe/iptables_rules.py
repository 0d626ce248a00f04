"""Rules of iptables, of both variants: the command of each, its rules, and those that are ours."""

from __future__ import annotations

import functools
import shlex
import shutil
import subprocess
from collections.abc import Sequence

from linkspan.core.addresses import Prefix, prefix
from linkspan.core.errors import Invalid, KernelError, LinkspanError, Unavailable
from linkspan.kernel.probe import foreign_chains

COMMENT = "linkspan: "
CHAINS = ("DOCKER-USER", "FORWARD")
WAIT = "5"
"""Seconds to wait for the legacy variant's lock, which is one for the machine."""
_COMMANDS = {4: "iptables", 6: "ip6tables"}


def legacy_rules(family: int) -> list[list[str]]:
    """Return the rules and policies of the legacy filter table, split into words; none if it does not exist."""
    command = command_of(family, "legacy") if foreign_chains.legacy(family) else ""
    return [words for words in listed(command) if len(words) > 1] if command else []


def command_of(family: int, variant: str) -> str:
    """Return the command of a variant, or '': some distributions name it by the variant, some have only one."""
    plain = _COMMANDS[family]
    if found := shutil.which(f"{plain}-{variant}"):
        return found
    found = shutil.which(plain)
    return found if found and _variant(found) == variant else ""


def usual(command: str) -> str:
    """Return the short name of a variant's command (``iptables-nft``) if both are the same on this machine."""
    plain, _, variant = command.partition("-")
    found = shutil.which(plain)
    return plain if found and _variant(found) == variant else command


@functools.lru_cache(maxsize=8)
def _variant(command: str) -> str:
    return "nft" if "nf_tables" in run(command, "-V") else "legacy"


def run(*argv: str) -> str:
    """Run a command and return its output. Raises KernelError with its message."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{shlex.join(argv)}: {error}") from error
    if done.returncode:
        raise KernelError(f"{shlex.join(argv)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def listed(command: str, chain: str = "", table: str = "filter") -> list[list[str]]:
    """Return the rules and policies that a command lists, of all chains of a table or one, split into words."""
    said = run(command, "-w", WAIT, "-t", table, "-S", *([chain] if chain else []))
    return [words(line) for line in said.splitlines() if line.startswith("-")]


def saved(family: int, variant: str) -> list[str] | None:
    """Return all tables of a variant, as lines of iptables-save; None if its command is missing or fails.

    It lists the tables that exist, so it makes none.
    """
    command = command_of(family, variant)
    try:
        return run(f"{command}-save").splitlines() if command else None
    except LinkspanError:
        return None


def words(line: str) -> list[str]:
    """Return a rule's line as words."""
    try:
        return shlex.split(line)
    except ValueError:  # another program's comment with an open quotation mark
        return line.split()


def pool_of(words: Sequence[str]) -> Prefix | None:
    """Return the pool of a rule with our comment, or None for a rule of others."""
    for word in words:
        if word.startswith(COMMENT):
            try:
                return prefix(word.removeprefix(COMMENT))
            except Invalid:
                return None
    return None
