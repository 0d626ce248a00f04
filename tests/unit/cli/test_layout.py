"""Tables and sentences on terminals of 60, 80 and 120 cells: nothing is cut in the middle of a word."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linkspan.cli import layout, output

TRACE = ("there", "host", "in", "device", "action", "mtu", "detail", "headers")
HOPS = [
    (
        *("1", "h1", "c1", "eth0", "sent", "1450"),
        "route default via 10.244.0.1 dev eth0",
        "ip 10.244.1.2>10.244.2.2 / icmp",
    ),
    (
        *("2", "h1", "host", "lsx64", "encapsulated", "1450"),
        "neighbour 10.244.2.1 is 32:d6:56:4b:f6:99, whose FDB entry leads to 192.0.2.2",
        "ip 192.0.2.1>192.0.2.2 / udp 4789 / vxlan 100 / eth / ip 10.244.1.2>10.244.2.2 / icmp",
    ),
]
WORD = st.text("abcdefgh0123456789", min_size=1, max_size=20)
CELL = st.lists(WORD, min_size=1, max_size=8).map(" ".join)
NAME = st.text("abcdefgh", min_size=1, max_size=14)
TABLE = st.integers(1, 8).flatmap(
    lambda number: st.tuples(
        st.lists(NAME, min_size=number, max_size=number),
        st.lists(st.lists(CELL, min_size=number, max_size=number), min_size=1, max_size=4),
    )
)


@given(TABLE, st.sampled_from((60, 80, 120)))
def test_no_line_is_too_long_and_no_word_is_cut(found: tuple[list[str], list[list[str]]], width: int) -> None:
    """Each word of each cell is there as a whole, whatever is in a table."""
    columns, rows = found
    lines = layout.laid_out(columns, rows, width)
    assert all(len(line) <= width for line in lines)
    words = {word for line in lines for word in line.split()}
    assert {word for row in rows for cell in row for word in cell.split()} <= words


@pytest.mark.parametrize("width", [60, 80])
def test_a_trace_keeps_its_short_columns_and_has_the_long_ones_below(width: int) -> None:
    """A hop's place and action stay in columns; detail and headers follow below with their names."""
    lines = layout.laid_out(TRACE, HOPS, width)
    assert lines[0].split()[:6] == list(TRACE[:6])
    second = next(line for line in lines if line.startswith("2 "))
    assert second.index("encapsulated") == lines[0].index("action")
    assert any(re.match(r"    headers  ip 192\.0\.2\.1>192\.0\.2\.2 / udp 4789", line) for line in lines)


def test_a_table_that_fits_is_one_line_a_row() -> None:
    """On a wide terminal nothing is taken out of it."""
    lines = layout.laid_out(TRACE, HOPS, 240)
    assert len(lines) == 3
    assert lines[0].split() == list(TRACE)


def test_what_is_empty_takes_no_line_below_a_row() -> None:
    """A row of a list whose last columns have nothing stays one line."""
    columns = ("container", "mac", "host end", "ports")
    rows = [("web", "72:db:2a:75:ec:79", "lsp9941894117b8", "8080->80/tcp"), ("db", "-", "-", "-")]
    lines = layout.laid_out(columns, rows, 30)
    assert lines[-1].split() == ["db", "-"]
    assert "    ports     8080->80/tcp" in lines


def test_a_word_that_is_longer_than_the_terminal_breaks_after_a_separator() -> None:
    """A path or a rule is broken after a separator."""
    path = "/run/linkspan-lab/lab/h1/state/wireguard/run/private-key"
    lines = layout.wrapped(path, 30)
    assert "".join(lines) == path
    assert all(line.endswith(("/", "-")) for line in lines[:-1])


@pytest.mark.parametrize("columns", ["60", "80"])
def test_a_terminal_gets_what_fits_it_and_a_pipe_gets_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: str
) -> None:
    """Scripts that read columns see the same on every terminal."""
    monkeypatch.setenv("COLUMNS", columns)
    output.table(TRACE, HOPS, "")
    plain = capsys.readouterr().out.splitlines()
    assert (len(plain), max(map(len, plain)) > 120) == (3, True)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    output.table(TRACE, HOPS, "")
    output.details([("store", "etcd://192.0.2.253:2379/lab, away, last answer 15 s ago " + "and more " * 9)])
    output.say("broken at h1/host/lsx64: " + "the peer does not answer " * 6)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= int(columns)
    assert not [line for line in lines if line.endswith(("answ", "mor", "doe"))]


KEY = f"networks/{'x' * 3000}/end"


@pytest.mark.parametrize("room", [0, 60, 80])
def test_a_very_long_key_widens_no_other_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], room: int
) -> None:
    """It is shortened in its middle, in a file and on a terminal, and the other rows are as near as ever."""
    monkeypatch.setattr(output, "width", lambda: room)
    monkeypatch.setenv("NO_COLOR", "1")
    output.table(("record not used", "host", "why"), [(KEY, "h1", "it is no JSON"), ("hosts/h2", "h2", "why")], "")
    printed = capsys.readouterr().out
    assert all(len(line) <= (room or 220) for line in printed.splitlines())
    joined = "".join(printed.split())
    assert "networks/xxx" in joined
    assert "xxx/end" in joined
    assert "..." in joined


def test_a_long_cell_of_short_words_pads_no_other_row(capsys: pytest.CaptureFixture[str]) -> None:
    """All of its words are printed, in its own row alone."""
    output.table(("record", "host"), [("a b " * 800, "h1"), ("hosts/h2", "h2")], "")
    header, long, short = capsys.readouterr().out.splitlines()
    assert long.count("a b") == 800
    assert max(len(header), len(short)) < 200
    assert short.split() == ["hosts/h2", "h2"]


def test_json_has_a_long_key_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """Only tables shorten."""
    output.as_json({"key": KEY})
    assert KEY in capsys.readouterr().out
