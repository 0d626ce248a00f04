"""resolv.conf of the host, read repeatedly."""

from __future__ import annotations

from pathlib import Path

from linkspan.dns.service import LONGEST, _text


def test_a_resolv_conf_is_read_as_it_is_now(tmp_path: Path) -> None:
    """Another text of the same length, written in the same moment, is another one."""
    path = tmp_path / "resolv.conf"
    for server in ("192.0.2.1", "192.0.2.2"):
        path.write_text(f"nameserver {server}\n")
        assert _text(path) == f"nameserver {server}\n"


def test_what_cannot_be_read_is_like_an_empty_resolv_conf(tmp_path: Path) -> None:
    """It does not exist, it is a folder, its bytes are no text, or it has no end."""
    assert _text(tmp_path / "absent") == ""
    assert _text(tmp_path) == ""
    path = tmp_path / "resolv.conf"
    path.write_bytes(b"\xff\n")
    assert _text(path) == "\N{REPLACEMENT CHARACTER}\n"
    path.write_bytes(b"#" * (2 * LONGEST))
    assert len(_text(path)) == LONGEST
