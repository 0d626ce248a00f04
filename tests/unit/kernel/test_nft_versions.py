"""Rules that an older nft cannot read are left out, and none for another reason."""

from __future__ import annotations

from typing import Any, cast

import pytest

from linkspan.core.errors import KernelError
from linkspan.kernel.drivers.nftables_objects import _knows


class Answering:
    """An nft that gives one answer to all commands."""

    def __init__(self, said: str) -> None:
        self._said = said

    def run(self, _commands: str) -> str:
        """Refuse, unless there is nothing to say."""
        if self._said:
            raise KernelError(f"nftables: {self._said}")
        return ""


def test_an_expression_is_known_unless_it_is_a_syntax_error() -> None:
    """That is how every version of nft says so."""
    assert _knows(cast("Any", Answering("")), "icmpv6 taddr")
    assert not _knows(cast("Any", Answering("syntax error, unexpected string")), "icmpv6 taddr")


def test_another_fault_takes_no_guard_away() -> None:
    """The answer would be kept for as long as the agent runs."""
    with pytest.raises(KernelError, match="no memory"):
        _knows(cast("Any", Answering("no memory")), "icmpv6 taddr")
