"""A server on the page's machine that wants what the page has: another user's, to whose page the browser goes."""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from linkspan.lab import sockets

TRIES = """
const [origin, done] = arguments;
const text = (answer) => answer.text(), failed = () => "failed";
const blind = {credentials: "include", mode: "no-cors"};
const element = (name, words) => new Promise((then) => {
  const ends = {onload: () => then("loaded"), onerror: () => then("failed")};
  document.body.append(Object.assign(document.createElement(name), words, ends));
});
element("iframe", {src: origin}).then(() => Promise.all([
  fetch(`${origin}/api/state`, {credentials: "include"}).then(text, failed),
  fetch(`${origin}/api/state`, blind).then(text, failed),
  fetch(`${origin}/api/trace`, {...blind, method: "POST", body: "{}"}).then(text, failed),
  import(`${origin}/stream.js`).then(() => "loaded", failed),
  element("script", {src: `${origin}/stream.js`}),
])).then(done);
"""
"""What its page does to get at the page of an origin; gives the texts, or "failed"."""


class Thief:
    """Knowledge of the server: ``cookies`` are those of its visitors."""

    def __init__(self, place: str, origin: str, cookies: list[str]) -> None:
        self.origin = origin
        self.cookies = cookies
        self._place = place

    def asks(self, origin: str, path: str) -> int:
        """Send the first visitor's cookie to an origin, as the browser would; return the status."""
        with sockets.inside(self._place):
            connection = http.client.HTTPConnection(origin.removeprefix("http://"), timeout=20)
            connection.request("GET", path, headers={"Cookie": self.cookies[0]})
        with contextlib.closing(connection):
            return connection.getresponse().status


@contextlib.contextmanager
def serving(place: str) -> Iterator[Thief]:
    """Serve a page in a namespace within the block."""
    cookies: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            cookies.append(self.headers.get("Cookie", ""))
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>another</title>")

        def log_message(self, *_words: object) -> None:
            pass

    with sockets.inside(place):
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield Thief(place, f"http://127.0.0.1:{server.server_port}", cookies)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
