"""Syntax of published ports: several in one text, and from where clients may come in by each."""

from __future__ import annotations

import pytest

from linkspan.core.errors import Invalid
from linkspan.core.model import Port, PortRange
from linkspan.core.ports import parse_list

FOURS, SIXES = ("192.0.2.0/24", "198.51.100.7/32"), ("2001:db8::/32",)


@pytest.mark.parametrize(
    ("text", "ports", "ranges"),
    [
        ("8080:80", [Port("", 8080, 80, "tcp")], []),
        ("8080:80, 53:53/udp", [Port("", 8080, 80, "tcp"), Port("", 53, 53, "udp")], []),
        ("8080:80,from=192.0.2.0/24", [Port("", 8080, 80, "tcp", FOURS[:1])], []),
        (
            "8080:80/udp,from=2001:db8::/32,from=198.51.100.7,from=192.0.2.0/24,81:81",
            [Port("", 8080, 80, "udp", (*FOURS, *SIXES)), Port("", 81, 81, "tcp")],
            [],
        ),
        (
            "192.0.2.1:80-81:80-81,from=192.0.2.0/24",
            [Port("192.0.2.1", 80, 80, "tcp", FOURS[:1]), Port("192.0.2.1", 81, 81, "tcp", FOURS[:1])],
            [],
        ),
        ("8000-8010:80,from=2001:db8::/32", [], [PortRange("", 8000, 8010, 80, "tcp", SIXES)]),
        ("80:80,from=10.0.0.0/9,from=10.128.0.0/9,from=10.1.2.3", [Port("", 80, 80, "tcp", ("10.0.0.0/8",))], []),
    ],
)
def test_sources_belong_to_the_port_before_them(text: str, ports: list[Port], ranges: list[PortRange]) -> None:
    """They are written as few as they can be: two that meet would be one element too many for the kernel's set."""
    assert parse_list(text) == (tuple(ports), tuple(ranges))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("from=192.0.2.0/24", "from=192.0.2.0/24 has no port"),
        ("8080:80,from=", "'' is not an IP address or prefix"),
        ("8080:80,from=web", "'web' is not an IP address or prefix"),
        ("8080:80,from=192.0.2.1/24", "from=192.0.2.1/24 has bits after its length"),
        ("192.0.2.1:80:80,from=2001:db8::/32", "from=2001:db8::/32 is of another family than 192.0.2.1"),
        ("8080:80,to=192.0.2.0/24", "published port 'to=192.0.2.0/24' is not understood"),
    ],
)
def test_what_is_no_source_is_refused(text: str, why: str) -> None:
    """With the part that is wrong."""
    with pytest.raises(Invalid, match=why):
        parse_list(text)
