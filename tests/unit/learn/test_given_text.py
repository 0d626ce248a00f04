"""Text that people give to links and rules: no check finds its pattern there."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from linkspan.learn import given_text
from linkspan.learn.lesson import Check
from linkspan.learn.sandbox import TIMED_OUT, Sandbox

LINK = "5: mybr0@y: <BROADCAST,UP> mtu 1500 state UP\\    link/ether 02:00:00:00:00:01"
POLICY = "-P FORWARD ACCEPT\n-A FORWARD -m comment --comment "


@pytest.mark.parametrize(
    ("has", "output"),
    [
        ("bridge", f"{LINK}\\    alias bridge"),
        ("bridge", f"{LINK}\\    alias x\\    altname bridge\n"),
        ("vxlan id 42 ", "5: wire: <UP>\n    link/ether 02:00:00:00:00:01\n    alias vxlan id 42 \n6: x: <UP>"),
        ("^-P FORWARD DROP", f'{POLICY}"x\n-P FORWARD DROP"\n'),
        ("^-P FORWARD DROP", f'{POLICY}"a \\"\n-P FORWARD DROP"\n'),
        ("(?i)dnat", f"{POLICY}dnat\n"),
        ("(?i)dnat", "-A x -j LOG --log-prefix dnat\n-A x -j NFLOG --nflog-prefix dnat\n"),
        ("dnat to 172.18.0.2", '  counter packets 0 bytes 0 comment "dnat to 172.18.0.2"\n'),
        ("dnat to 172.18.0.2", '  log prefix "dnat to 172.18.0.2" comment "a\nb"\n'),
    ],
)
def test_a_check_reads_no_given_text(has: str, output: str) -> None:
    """Neither an alias nor a comment makes it hold."""
    assert not Check("run", has=has).holds(0, output)


def test_a_check_reads_all_the_rest() -> None:
    """What the kernel has stays, also behind a comment and in quotes of nft."""
    rule = '-A FORWARD -i mybr0 -m comment --comment "to B" -j ACCEPT'
    assert Check("run", has="-i mybr0 .*-j ACCEPT$").holds(0, f"{rule}\n-P FORWARD DROP")
    assert Check("run", has="^-P FORWARD DROP").holds(0, f"{rule}\n-P FORWARD DROP")
    assert Check("run", has='oifname "mybr0" .*accept').holds(0, 'oifname "mybr0" comment "a" accept')
    assert Check("run", has="link/ether 02:").holds(0, f"{LINK}\\    alias x")
    assert not Check("run", lacks="redirect").holds(0, '--comment "a" -j redirect')


class Printing(Sandbox):
    """A sandbox in which each command prints the same."""

    def __init__(self, output: str, code: int = 0) -> None:
        super().__init__(0)
        self._result = code, output

    def results(self, commands: Sequence[str]) -> list[tuple[int, str]]:
        """Return the result for each command."""
        return [self._result for _ in commands]


@pytest.mark.parametrize(
    "output",
    [
        r'[{"ifname":"wire","ifalias":"x\n5: mybr0"}]',
        r'{"nftables": [{"rule": {"comment": "x\" dnat to 172.18.0.2"}}]}',
        '-A FORWARD -m comment --comment "x\n-P FORWARD DROP"',
        r'-A FORWARD -m comment --comment "x\" y"',
        '{"nftables": [{"table": {"name": "x\x1b"}}]}',
    ],
)
def test_text_that_could_be_another_line_misleads(output: str) -> None:
    """Programs escape it, each in its own way."""
    assert given_text.misleads(Printing(output), ["netns_A"])


def test_other_text_misleads_nobody() -> None:
    """Any language, an apostrophe, and programs that cannot print it or are not there."""
    for output in (
        '[{"ifname":"wire","ifalias":"Li Lei\\\'s \u4e2d"}]',
        '-A FORWARD -m comment --comment "to B" -j ACCEPT\n# Completed',
        "Error: JSON support not compiled-in",
    ):
        assert not given_text.misleads(Printing(output, 1), ["netns_A"])
    assert not given_text.misleads(Printing("sh: 1: nft: not found", 127), ["netns_A"])


@pytest.mark.parametrize("code", [TIMED_OUT, 141])
def test_text_that_cannot_be_read_to_its_end_misleads(code: int) -> None:
    """It may be so much that the program did not end, or that nobody read the rest."""
    assert given_text.misleads(Printing("", code), [])
