"""Files of the page, as they are served: read once, compressed, with what the page's policy must know of them."""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
from pathlib import Path

import msgspec

FOLDER = Path(__file__).with_name("page")
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""The types of all files that are served: others in the folder (licences) are not."""
INJECTED_STYLE = ".__________cytoscape_container { position: relative; }"
"""The one style that cytoscape.js puts into the page as text; the policy allows it by its hash."""
_INLINE = re.compile(r"<script[^>]*>(.+?)</script>", re.DOTALL)


class PageFile(msgspec.Struct, frozen=True):
    """A file: ``content`` is compressed by gzip."""

    type: str
    content: bytes
    etag: str


def read() -> dict[str, PageFile]:
    """Return all files by their paths below the page's folder."""
    found = {}
    for path in sorted(FOLDER.rglob("*")):
        if (type_ := TYPES.get(path.suffix)) is not None:
            content = path.read_bytes()
            name = str(path.relative_to(FOLDER))
            found[name] = PageFile(type_, gzip.compress(content, 9, mtime=0), _digest(content)[:24])
    return found


def policy() -> str:
    """Return the page's Content-Security-Policy: everything from this server, and no text as script or style."""
    page = (FOLDER / "index.html").read_text(encoding="utf-8")
    scripts = " ".join(f"'sha256-{_digest(one.encode())}'" for one in _INLINE.findall(page))
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src 'self' {scripts}".strip(),
            f"style-src 'self' 'sha256-{_digest(INJECTED_STYLE.encode())}'",
            "img-src 'self'",
            "connect-src 'self'",
            "worker-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def _digest(content: bytes) -> str:
    return base64.b64encode(hashlib.sha256(content).digest()).decode()
