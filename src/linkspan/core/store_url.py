"""Store URL, parsed once: '' (a host's own store), sqlite:///FOLDER, or an etcd's.

etcd://HOST:PORT,.../PREFIX?ca=FILE&cert=FILE&key=FILE&user=NAME&password-file=FILE

It is a setting: an invalid URL is refused at the start, before anything is opened.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from linkspan.core.errors import Invalid

PORT = 2379
PREFIX = "linkspan"
OWN_CLIENTS, OWN_PEERS, OWN_SIGNER = 5379, 5380, 5381
"""TCP ports of an etcd that linkspan runs itself, for hosts and for its members, and of the signer beside it."""
HOST_USER = "host-"
"""How the names of its users begin; a host's id follows."""
TRUST = "linkspan-trust"
"""Prefix of what its voters keep beside the records, such as tokens: no user but root reads it."""
_FORM = "write etcd://HOST:2379,.../prefix?ca=FILE&cert=FILE&key=FILE&user=NAME&password-file=FILE"
_FILES = ("ca", "cert", "key", "password-file")


class EtcdUrl(msgspec.Struct, frozen=True):
    """The address of an etcd cluster, and the user for it."""

    endpoints: tuple[str, ...]
    prefix: str
    ca: str = ""
    cert: str = ""
    key: str = ""
    user: str = ""
    password_file: str = ""

    @property
    def tls(self) -> bool:
        """Return whether the connections are encrypted."""
        return bool(self.ca or self.cert)

    @property
    def own(self) -> bool:
        """Return whether linkspan runs this etcd, by the user: a host's, or root's for what voters keep."""
        return self.user.startswith(HOST_USER) or self.prefix == f"/{TRUST}/"

    def base(self, endpoint: str) -> str:
        """Return the HTTP URL of an endpoint."""
        return f"{'https' if self.tls else 'http'}://{endpoint}"


def check_url(url: str) -> None:
    """Raise Invalid for an invalid store URL; an empty one means the store in the state folder."""
    if url.startswith("sqlite://"):
        sqlite_folder(url)
    elif url.startswith("etcd://"):
        etcd_parts(url)
    elif url:
        raise Invalid(f"store {url!r} is not understood", "write sqlite:///abs/folder or etcd://HOST:2379,.../prefix")


def told(url: str) -> str:
    """Return a store's URL for people: without user and password, and with its prefix, which need not be written."""
    if not url.startswith("etcd://"):
        return url
    found = etcd_parts(url)
    return f"etcd://{','.join(found.endpoints)}{found.prefix.rstrip('/')}"


def sqlite_folder(url: str) -> Path:
    """Return the folder of a SQLite URL. Raises Invalid."""
    folder = url.removeprefix("sqlite://")
    if not folder.startswith("/") or "?" in folder:
        raise Invalid(f"store {url!r} is not understood", "write sqlite:///abs/folder, with three slashes")
    return Path(folder)


def etcd_parts(url: str) -> EtcdUrl:
    """Return the parts of an etcd URL. Raises Invalid with the problem."""
    rest, _, fragment = url.removeprefix("etcd://").partition("#")
    rest, _, query = rest.partition("?")
    authority, _, path = rest.partition("/")
    try:
        options = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise Invalid(f"store {url!r}: {error}", _FORM) from error
    if "@" in authority:
        raise Invalid(
            f"store {_without_login(url)!r}: a password has no place in a URL", "use user=NAME&password-file=FILE"
        )
    if fragment:
        raise Invalid(f"store {url!r}: nothing may follow a #", _FORM)
    given = dict(options)
    unknown = given.keys() - {*_FILES, "user"}
    if unknown or len(given) < len(options):
        raise Invalid(f"store {url!r}: {', '.join(sorted(unknown)) or 'an option twice'} is not understood", _FORM)
    for name in given:
        if not given[name] or (name in _FILES and not given[name].startswith("/")):
            raise Invalid(f"store {url!r}: {name} is {given[name]!r}", "give an absolute path")
    for one, other in (("cert", "key"), ("key", "cert"), ("user", "password-file"), ("password-file", "user")):
        if one in given and other not in given:
            raise Invalid(f"store {url!r}: {one} is given, and {other} is not", _FORM)
    path = unquote(path).strip("/") or PREFIX
    return EtcdUrl(
        endpoints=tuple(_endpoint(url, text) for text in authority.split(",")),
        prefix=f"/{path}/",
        password_file=given.pop("password-file", ""),
        **given,
    )


def _endpoint(url: str, text: str) -> str:
    """Return HOST:PORT, with etcd's port as the default."""
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port or PORT
    except ValueError as error:
        raise Invalid(f"store {url!r}: endpoint {text!r}: {error}", _FORM) from error
    if not host:
        raise Invalid(f"store {url!r}: an endpoint has no name", _FORM)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _without_login(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://...@{rest.rpartition('@')[2]}"
