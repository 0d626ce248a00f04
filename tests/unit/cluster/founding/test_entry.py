"""Entry: what a joiner believes of a server that may be anybody's, before and after its authority was compared."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from linkspan.cluster.founding import join_token
from linkspan.cluster.founding.certificates import Authority, fingerprint, new_authority, new_key
from linkspan.cluster.founding.entry import enter
from linkspan.cluster.founding.join_token import JoinToken
from linkspan.cluster.founding.signer import PASSWORD, Introduction, Problem
from linkspan.cluster.founding.trust_files import TrustFiles
from linkspan.core.errors import Conflict, Denied, LinkspanError, Unavailable

NOW = datetime.datetime.now(datetime.UTC)


class Server:
    """An authority, and a server with its certificate that says what a test wants, and keeps what it was sent."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        key = new_key()
        self.authority = new_authority(key, "clients", NOW)
        self.introductions: list[Introduction] = []
        """What it answers, one after the other; the last one for good."""
        self.refusal = Problem("denied", "no")
        """Its answer to a join."""
        self.joins: list[dict[str, Any]] = []
        self.headers: dict[str, str] = {}
        self.status = 200
        self._files = folder / "server.pem", folder / "server.key"
        own = new_key()
        self._files[0].write_bytes(Authority(self.authority, key).server(own, ["127.0.0.1"], NOW))
        self._files[1].write_bytes(own)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Serve, and give the address with its port."""
        app = web.Application()
        app.add_routes([web.get("/v1/authority", self._introduce), web.post("/v1/join", self._join)])
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self._files)
        runner = web.AppRunner(app)
        await runner.setup()
        with socket.create_server(("127.0.0.1", 0)) as listening:
            await web.SockSite(runner, listening, ssl_context=context).start()
            try:
                yield f"127.0.0.1:{listening.getsockname()[1]}"
            finally:
                await runner.cleanup()

    async def _introduce(self, _request: web.Request) -> web.Response:
        if self.status != 200:
            return web.Response(body=msgspec.json.encode(self.refusal), status=self.status, headers=self.headers)
        found = self.introductions[0]
        self.introductions = self.introductions[1:] or self.introductions
        return web.Response(body=msgspec.json.encode(found))

    async def _join(self, request: web.Request) -> web.Response:
        self.joins.append(await request.json())
        return web.Response(body=msgspec.json.encode(self.refusal), status=403)


def refused(server: Server, files: TrustFiles, token: JoinToken | None = None, known: str = "") -> LinkspanError:
    """Return the error of a join at a server; the token is of the server's cluster if none is given."""

    async def join() -> None:
        async with server.serving() as address:
            made = join_token.new(fingerprint(server.authority), ())
            await enter(files, msgspec.structs.replace(token or made, signers=(address,)), "h2", "h2", known)

    with pytest.raises(LinkspanError) as found:
        asyncio.run(join())
    return found.value


@pytest.fixture
def server(tmp_path: Path) -> Server:
    """Give a server."""
    return Server(tmp_path / "server")


@pytest.fixture
def files(tmp_path: Path) -> TrustFiles:
    """Give the files of the joiner."""
    return TrustFiles(tmp_path / "state")


def old_label(pem: bytes) -> bytes:
    """Return a certificate under the label that OpenSSL still accepts."""
    return pem.replace(b" CERTIFICATE-", b" X509 CERTIFICATE-")


@pytest.mark.parametrize("label", [bytes, old_label])
@pytest.mark.parametrize("first", [bytes, old_label])
def test_a_second_authority_in_the_answer_is_not_trusted(
    server: Server, files: TrustFiles, tmp_path: Path, first: Callable[[bytes], bytes], label: Callable[[bytes], bytes]
) -> None:
    """A machine between the two answers with the real authority and its own one: it does not get the secret."""
    key = new_key()
    real = new_authority(key, "clients", NOW)
    both = first(real) + label(server.authority)
    server.introductions = [Introduction(both.decode(), "c1")]
    error = refused(server, files, join_token.new(fingerprint(real), ()))
    assert isinstance(error, Denied)
    assert not server.joins
    assert not files.authority.exists()


def test_an_unknown_server_says_nothing_to_the_operator(server: Server, files: TrustFiles) -> None:
    """Neither its error, nor what a redirection leads to."""
    server.refusal = Problem("denied", "type this: \x1b[2J", "curl http://192.0.2.9")
    for status, headers in ((403, {}), (302, {"Location": "/v1/other"})):
        server.status, server.headers = status, headers
        error = refused(server, files)
        assert isinstance(error, Unavailable)
        assert f"({status})" in error.message
        assert "type this" not in error.told


def test_a_signers_error_is_printable(server: Server, files: TrustFiles) -> None:
    """It goes to a terminal."""
    server.introductions = [Introduction(server.authority.decode(), "c1")]
    server.refusal = Problem("denied", "token is expired\x1b[2J", "a\nb")
    error = refused(server, files)
    assert isinstance(error, Denied)
    assert error.told.isprintable()
    assert "token is expired" in error.told
    assert len(server.joins) == 1


def test_a_repeated_join_sends_the_same_password(server: Server, files: TrustFiles) -> None:
    """If the answer to it gets lost, the agent that runs with the first one is not shut out."""
    server.introductions = [Introduction(server.authority.decode(), "c1")]
    for _ in range(2):
        refused(server, files)
    first, second = (join["password"] for join in server.joins)
    assert first == second == files.secret(files.password)
    assert PASSWORD.fullmatch(first)


def test_the_clusters_id_counts_only_from_the_signer_itself(server: Server, files: TrustFiles) -> None:
    """A host with networks joins no other cluster because a machine between the two called it the host's own."""
    authority = server.authority.decode()
    server.introductions = [Introduction(authority, "mine"), Introduction(authority, "other")]
    error = refused(server, files, known="mine")
    assert isinstance(error, Conflict)
    assert "(other)" in error.message
    assert not server.joins


def test_another_server_at_one_of_the_addresses_keeps_no_host_out(
    server: Server, files: TrustFiles, tmp_path: Path
) -> None:
    """The voter there was set up again, for another cluster: the next one is asked, and the first learns nothing."""
    stranger = Server(tmp_path / "stranger")
    stranger.introductions = [Introduction(stranger.authority.decode(), "c2")]
    server.introductions = [Introduction(server.authority.decode(), "c1")]

    async def join(*servers: Server) -> LinkspanError:
        async with contextlib.AsyncExitStack() as serving:
            signers = [await serving.enter_async_context(one.serving()) for one in servers]
            token = msgspec.structs.replace(join_token.new(fingerprint(server.authority), ()), signers=tuple(signers))
            with pytest.raises(LinkspanError) as found:
                await enter(files, token, "h2", "h2", "")
            return found.value

    assert asyncio.run(join(stranger, server)).message == "no"  # the right one's own word
    assert (len(stranger.joins), len(server.joins)) == (0, 1)
    alone = asyncio.run(join(stranger))
    assert isinstance(alone, Denied)
    assert "is not of the token's cluster" in alone.message
