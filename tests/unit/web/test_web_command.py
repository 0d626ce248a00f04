"""The command: where it listens, its certificate, and the browser that it opens."""

from __future__ import annotations

import asyncio
import os
import ssl
import stat
import subprocess
import sys
import threading
from pathlib import Path

import aiohttp
import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from linkspan.core.errors import Invalid
from linkspan.web import browser, serving
from linkspan.web.listening import place
from support.certificates import Authority
from support.polling import PATIENCE, until

LINK = "http://127.0.0.1:8080/login?token=secret&more=\"'<"


def test_the_browser_is_opened_by_a_file_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The token is in no command line, and nobody else may read the file, which goes afterwards.

    Nobody waits for a browser that runs in the foreground. The file is where browsers from a snap see it.
    """
    opened: list[str] = []
    closed = threading.Event()

    def open_(url: str) -> bool:
        opened.append(url)
        return closed.wait(PATIENCE)

    monkeypatch.setattr("webbrowser.open", open_)
    monkeypatch.setenv("HOME", str(tmp_path))
    with browser.leading_to(LINK) as path:
        assert path.parent == tmp_path
        browser.open_file(path)
        until(lambda: opened, "the browser is opened")
        assert not closed.is_set()
        closed.set()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        text = path.read_text(encoding="utf-8")
        assert "token=secret&amp;more=&quot;&#x27;&lt;" in text
    assert opened == [f"file://{path}"]
    assert not path.exists()


def test_without_a_home_the_file_is_somewhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user of the system may have none."""
    monkeypatch.setenv("HOME", "/nonexistent")
    with browser.leading_to(LINK) as path:
        assert path.exists()


@pytest.mark.parametrize(
    ("environment", "root", "opens"),
    [
        ({"DISPLAY": ":0"}, False, True),
        ({"WAYLAND_DISPLAY": "w"}, False, True),
        ({}, False, False),
        ({"DISPLAY": ":0"}, True, False),
    ],
)
def test_a_browser_is_opened_where_there_is_a_screen(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], root: bool, opens: bool
) -> None:
    """Not over SSH, and not for root."""
    monkeypatch.setattr(os, "geteuid", lambda: 0 if root else 1000)
    assert browser.can_open(environment) is opens


def test_with_a_certificate_the_page_is_served_by_tls(tmp_path: Path) -> None:
    """At the certificate's names only, and the cookie never leaves in clear."""
    authority = Authority(tmp_path / "ca")
    pair = authority.certificate("page")

    async def run() -> None:
        trust = ssl.create_default_context(cafile=authority.cert)
        where = place("127.0.0.1:0", pair.cert, pair.key)
        served = serving.page(where, str(tmp_path / "agent.sock"), {}, "")
        async with served as new_link, aiohttp.ClientSession() as session:
            link = new_link()
            assert link.startswith("https://127.0.0.1:")
            async with session.get(link, ssl=trust) as answer:
                assert answer.status == 200
                assert "Secure" in answer.headers["Set-Cookie"]
            port = link.split(":")[2].partition("/")[0]
            for host, status in ((f"127.0.1.1:{port}", 401), (f"127.0.0.2:{port}", 403)):
                async with session.get(link.partition("/login")[0], ssl=trust, headers={"Host": host}) as answer:
                    assert answer.status == status, host

    asyncio.run(run())


def test_a_page_at_all_addresses_is_called_by_the_certificates_names(tmp_path: Path) -> None:
    """The link leads to one of them, and never to 0.0.0.0."""
    pair = Authority(tmp_path / "ca").certificate("page")
    assert place("0.0.0.0:443", pair.cert, pair.key).authorities(8443) == ("127.0.0.1:8443", "127.0.1.1:8443")


def test_wrong_certificates_are_named(tmp_path: Path) -> None:
    """With the option and the cause."""
    authority = Authority(tmp_path / "ca")
    first, second = authority.certificate("first"), authority.certificate("second")
    with pytest.raises(Invalid, match=r"--cert .*: no such file"):
        place("192.0.2.1:443", str(tmp_path / "none"), first.key)
    with pytest.raises(Invalid, match="belong together"):
        place("192.0.2.1:443", first.cert)
    with pytest.raises(Invalid, match=r"--cert .* and --key"):
        place("192.0.2.1:443", first.cert, second.key)
    for wrong in (tmp_path, Path(first.cert, "below")):  # which nobody moves away for a page
        with pytest.raises(Invalid, match=r"--key .*directory") as error:
            place("192.0.2.1:443", first.cert, str(wrong))
        assert error.value.hint == "correct --key"


def test_an_encrypted_key_is_named(tmp_path: Path) -> None:
    """Without a terminal nobody can give its pass phrase."""
    pair = Authority(tmp_path / "ca").certificate("page")
    key = load_pem_private_key(Path(pair.key).read_bytes(), None)
    hidden = tmp_path / "hidden.pem"
    hidden.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    code = "from linkspan.web.listening import place; import sys; place('192.0.2.1:443', *sys.argv[1:])"
    argv = [sys.executable, "-c", code, pair.cert, str(hidden)]
    found = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, start_new_session=True, check=False
    )
    assert f"Invalid: --key {hidden} is encrypted" in found.stderr


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    """With what to do."""

    async def run() -> None:
        async with serving.page(place("127.0.0.1:0"), str(tmp_path / "agent.sock"), {}, "") as new_link:
            port = new_link().split(":")[2].partition("/")[0]
            with pytest.raises(Invalid, match="address already in use") as error:
                async with serving.page(place(f"127.0.0.1:{port}"), str(tmp_path / "agent.sock"), {}, ""):
                    pass
            assert "give --listen another port" in error.value.hint

    asyncio.run(run())
