"""BGP settings of a host, parsed once into its speaker and sessions; pure.

Settings belong to the host, because one speaker serves all its networks. They are flat strings: ``bgp.KEY``
for the speaker, and ``bgp.peer.NAME.KEY`` for each configured peer (a route reflector, a router). Peers of
the mesh are not configured: every other host that takes part in the mesh is one.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final, TypeVar

import msgspec

from linkspan.core.addresses import FAMILIES, Prefix, prefix, whole
from linkspan.core.errors import Invalid, Unavailable
from linkspan.core.model import Host
from linkspan.core.states.bgp import HOLD, Session, Span

T = TypeVar("T")

AS = 64512
"""The AS number if none is set: the first one for private use (RFC 6996)."""

RESTART = 120
"""Seconds that routes outlive their speaker: RFC 4724 section 3 has at most the hold time, BIRD and FRR use
this value."""

MOST = (1 << 31) - 1
"""Prefixes: BIRD's numbers have 32 bits, and filters add to this one."""

FAR = 64
"""Hops that a session without a limit may take: the initial TTL of an ordinary packet (RFC 1700)."""

_DIGITS = re.compile("[0-9]{1,10}")
"""A number of up to 32 bits; Python refuses numbers of thousands of digits."""

_RESERVED = {0: "RFC 7607", 23456: "RFC 6793", 65535: "RFC 7300", 4294967295: "RFC 7300"}
"""Reserved AS numbers, and the document that reserves each."""


class Speaker(msgspec.Struct, frozen=True, kw_only=True):
    """A host's speaker; ``sessions`` are those with configured peers, without the mesh's.

    ``communities`` have two numbers (RFC 1997) or three (RFC 8092). ``any_next_hop`` accepts routes whose
    next hop is behind a router.
    """

    asn: int
    router_id: str
    mesh: bool
    communities: tuple[tuple[int, ...], ...]
    med: int | None
    any_next_hop: bool
    hold: int
    prefixes: int | None
    restart_time: int
    sessions: tuple[Session, ...]


def speaker(host: Host) -> Speaker:
    """Return the speaker that a host's settings describe. Raises Invalid with the setting's name."""
    fields = _Fields({k: v for k, v in host.settings.items() if k.startswith("bgp.") and v})
    asn, hold = fields.take("bgp.as", _as, AS), fields.take("bgp.hold", _hold, HOLD)
    most = fields.take("bgp.prefixes", _number(0, MOST), None)
    here = host.underlay
    ours = {text.partition("/")[0] for text in here.addresses} if here else set()
    found = [_peer(fields, name, asn, hold, most, host) for name in fields.peers()]
    _refuse_twins(found)
    made = Speaker(
        asn=asn,
        router_id=fields.take("bgp.router-id", _router_id, "") or router_id(host),
        mesh=fields.take("bgp.mesh", _switch, True),
        communities=fields.take("bgp.community", _communities, ()),
        med=fields.take("bgp.med", _number(0, (1 << 32) - 1), None),
        any_next_hop=fields.take("bgp.next-hops", _next_hops, False),
        hold=hold,
        prefixes=most,
        restart_time=fields.take(
            "bgp.restart-time", _number(1, 4095), RESTART
        ),  # 12 bits, RFC 4724 section 3
        # If set for all hosts, a reflector is a peer of every host except its own.
        sessions=tuple(session for session in found if session.address not in ours),
    )
    fields.finish()
    return made


def mesh_session(here: Host, there: Host, on_link: bool) -> Session:
    """Return the session with another host of the mesh, by IPv4 addresses if both have one.

    Raises Unavailable if the hosts' underlay addresses have no family in common.
    """
    own = speaker(here)
    for family in FAMILIES:
        ours, theirs = (h.underlay.address(family) if h.underlay else None for h in (here, there))
        if ours is not None and theirs is not None:
            return Session(
                name=there.name or there.id,
                protocol=protocol("mesh", there.id),
                mesh=True,
                address=theirs.address,
                source=ours.address,
                local_as=own.asn,
                remote_as=number(there),
                ttl_security=on_link,
                multihop=0 if on_link else FAR,
                hold=own.hold,
                prefixes=own.prefixes,
            )
    raise Unavailable(
        f"host {there.name} and this host have no underlay addresses of the same family",
        "give both IPv4, or both IPv6",
    )


def number(host: Host) -> int:
    """Return a host's AS number."""
    return _Fields(host.settings).take("bgp.as", _as, AS)


def in_mesh(host: Host) -> bool:
    """Return whether a host takes part in the mesh."""
    return _Fields(host.settings).take("bgp.mesh", _switch, True)


def meshed(hosts: Iterable[Host]) -> int:
    """Return how many hosts take part in the mesh."""
    count = 0
    for host in hosts:
        with contextlib.suppress(Invalid):  # such a host has no speaker
            count += in_mesh(host)
    return count


def router_id(host: Host) -> str:
    """Return the underlay's IPv4 address, or four bytes made from the host's id (RFC 6286: any will do)."""
    address = host.underlay.address(4) if host.underlay else None
    if address is not None:
        return address.address
    return Prefix(b"\x01" + hashlib.blake2b(host.id.encode(), digest_size=3).digest(), 32).address


def protocol(kind: str, name: str) -> str:
    """Return BIRD's name of a session, of letters, digits and ``_``, which names and ids may go beyond."""
    safe = re.sub(r"[^a-zA-Z0-9]", "_", name)[:32]
    return f"{kind}_{safe}" + (
        "" if safe == name else f"_{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"
    )


class _Fields:
    """Settings, each of which is read once; those that nobody reads are unknown."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        self._settings = settings
        self._taken: set[str] = set()

    def take(self, key: str, read: Callable[[str, str], T], default: T) -> T:
        """Return a setting as parsed by ``read(key, text)``, or the default if it is not set."""
        self._taken.add(key)
        text = self._settings.get(key, "")
        return read(key, text) if text else default

    def peers(self) -> list[str]:
        """Return the names of the configured peers."""
        names = {
            words[2] for key in self._settings if len(words := key.split(".")) == 4 and words[1] == "peer"
        }
        return sorted(names)

    def finish(self) -> None:
        """Raise Invalid for the first setting that is unknown."""
        for key in sorted(self._settings.keys() - self._taken):
            peer = key.startswith("bgp.peer.")
            known = ("bgp.peer.NAME.", _OF_PEER) if peer else ("bgp.", _OF_SPEAKER)
            raise Invalid(
                f"setting {key} is unknown", f"the known ones are {', '.join(known[0] + word for word in known[1])}"
            )


_OF_SPEAKER: Final = (
    "as",
    "community",
    "hold",
    "med",
    "mesh",
    "next-hops",
    "prefixes",
    "restart-time",
    "router-id",
    "peer.NAME...",
)
_OF_PEER: Final = (
    *("address", "as", "export", "hold", "import", "multihop", "password-file", "prefixes", "source"),
    "ttl-security",
)


def _peer(fields: _Fields, name: str, asn: int, hold: int, most: int | None, host: Host) -> Session:
    key = f"bgp.peer.{name}."
    if not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name):
        raise Invalid(f"setting {key}address: {name!r} is no valid peer name", "use letters, digits, _ and -")
    address = fields.take(f"{key}address", _address, "")
    if not address:
        raise Invalid(f"setting {key}address is missing", f"give the peer's address: {key}address=192.0.2.1")
    family = prefix(address).family
    default = host.underlay.address(family) if host.underlay else None
    source = fields.take(f"{key}source", _address, "")
    if source and prefix(source).family != family:
        raise Invalid(f"setting {key}source={source} is not of the peer's address family, IPv{family}")
    remote = fields.take(f"{key}as", _as, asn)
    secure = fields.take(f"{key}ttl-security", _switch, False)
    return Session(
        name=name,
        protocol=protocol("peer", name),
        mesh=False,
        address=address,
        source=source or (default.address if default else ""),
        local_as=asn,
        remote_as=remote,
        password_file=fields.take(f"{key}password-file", _path, ""),
        ttl_security=secure,
        # A router is on the link (RFC 4271 section 5.1.3), a reflector may be anywhere.
        multihop=fields.take(f"{key}multihop", _number(1, 255), 0 if remote != asn or secure else FAR),
        hold=fields.take(f"{key}hold", _hold, hold),
        prefixes=fields.take(f"{key}prefixes", _number(0, MOST), most),
        imports=fields.take(f"{key}import", _spans, ()),
        exports=fields.take(f"{key}export", _spans, ()),
    )


def _refuse_twins(sessions: Iterable[Session]) -> None:
    """Raise Invalid if two sessions are between the same addresses: only one of them would ever come up."""
    seen: dict[tuple[str, str], str] = {}
    for one in sessions:
        other = seen.setdefault((one.address, one.source), one.name)
        if other != one.name:
            raise Invalid(
                f"setting bgp.peer.{one.name}.address={one.address} is the address of bgp.peer.{other} already",
                "unset one of the two, or give each its own source",
            )


def _number(low: int, high: int) -> Callable[[str, str], int]:
    def read(key: str, text: str) -> int:
        if not (_DIGITS.fullmatch(text) and low <= int(text) <= high):
            raise Invalid(f"setting {key}={text} is no number from {low} to {high}")
        return int(text)

    return read


def _as(key: str, text: str) -> int:
    found = _number(0, (1 << 32) - 1)(key, text)
    if found in _RESERVED:
        raise Invalid(
            f"setting {key}={text}: AS number {text} is reserved ({_RESERVED[found]})",
            "give your own, or a private one: 64512 to 65534, 4200000000 to 4294967294 (RFC 6996)",
        )
    return found


def _hold(key: str, text: str) -> int:
    found = _number(0, 65535)(key, text)
    if 0 < found < 3:
        raise Invalid(
            f"setting {key}={text}: a hold time is 0 (never) or at least 3 seconds (RFC 4271 section 4.2)"
        )
    return found


def _switch(key: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise Invalid(f"setting {key}={text} is neither true nor false")
    return text == "true"


def _next_hops(key: str, text: str) -> bool:
    if text not in ("on-link", "any"):
        raise Invalid(f"setting {key}={text} is neither on-link nor any")
    return text == "any"


def _path(key: str, text: str) -> str:
    if not text.startswith("/") or not text.isprintable():
        raise Invalid(f"setting {key}={text} is no absolute path", "the password stays in a file on the host")
    return text


def _address(key: str, text: str) -> str:
    try:
        found = prefix(text)
    except Invalid as error:
        raise Invalid(f"setting {key}: {error.message}", error.hint) from error
    first = found.packed[0]
    nobody = not any(found.packed[:15]) if found.family == 6 else first in (0, 127) or first >= 224
    if "/" in text or nobody or first == 0xFF or found.packed[:2] == b"\xfe\x80":
        raise Invalid(
            f"setting {key}={text} is no host address", "give a global one, without a prefix length"
        )
    return found.address


def _router_id(key: str, text: str) -> str:
    found = _address(key, text)
    if prefix(found).family != 4:
        raise Invalid(f"setting {key}={text} is not four bytes", "write it as an IPv4 address (RFC 6286)")
    return found


def _communities(key: str, text: str) -> tuple[tuple[int, ...], ...]:
    found = []
    for word in text.split(","):
        parts = word.strip().split(":")
        most = {2: (1 << 16) - 1, 3: (1 << 32) - 1}.get(len(parts), -1)
        if not all(_DIGITS.fullmatch(part) and int(part) <= most for part in parts):
            raise Invalid(
                f"setting {key}: {word!r} is no BGP community",
                "write 64512:100 (RFC 1997) or 4200000000:1:100 (RFC 8092)",
            )
        found.append(tuple(int(part) for part in parts))
    return tuple(found)


def _spans(key: str, text: str) -> tuple[Span, ...]:
    found: list[Span] = []
    for word in (word.strip() for word in text.split(",")):
        if word == "default":
            found += [Span(whole(family)) for family in FAMILIES]
            continue
        bare = word.removesuffix("+")
        try:
            parsed = prefix(bare)
        except Invalid as error:
            raise Invalid(
                f"setting {key}: {error.message}", "write 192.0.2.0/24, 192.0.2.0/24+ or default"
            ) from error
        if parsed != parsed.network():
            raise Invalid(f"setting {key}: {word} has host bits set", f"did you mean {parsed.network()}?")
        found.append(Span(parsed, bare != word))
    return tuple(found)
