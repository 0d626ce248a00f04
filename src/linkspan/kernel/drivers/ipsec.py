"""IPsec: configures strongSwan's daemon through its control socket: credentials, connections, and their children.

The daemon reports what is loaded, but not with which content. So the driver keeps that in memory while the
same process lives. An agent with no memory loads everything once more, which changes no association, because
the daemon compares. The driver reads a secret, gives it to the daemon, and keeps it nowhere else; a digest
with a key that lives as long as this process shows whether its file has changed. It keeps what is public: the
daemon forgets files only together, and one that somebody is just writing cannot be read again.

A new connection logs under its own name in the daemon's log, from which the agent reads reasons
(``ipsec_sessions``).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import os
import re
import shlex
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from linkspan.core.addresses import prefix, whole
from linkspan.core.driver_contract import Support
from linkspan.core.errors import Invalid, LinkspanError, Unavailable
from linkspan.core.kinds import Ending, Event, Kind
from linkspan.core.shell import HIDDEN, Shell
from linkspan.core.states.host import HOST, Key, State
from linkspan.core.states.ipsec import (
    ANYWHERE,
    CHARON,
    CONTROL,
    PRIVATE,
    IpsecChild,
    IpsecConnection,
    IpsecCredential,
)
from linkspan.kernel.drivers import processes
from linkspan.kernel.io import vici
from linkspan.kernel.io.private_files import alone, trusted
from linkspan.kernel.local_host import LocalHost

IKE = ("aes128gcm16-prfsha256-x25519", "aes256gcm16-prfsha384-ecp384")
ESP = ("aes128gcm16-x25519", "aes256gcm16-ecp384")
"""AES-GCM alone (RFC 4106, RFC 5282), with a key exchange of its own for each renewal."""
IKE_PORT, NAT = 500, 4500
"""UDP: RFC 7296 section 2, RFC 3948."""
FOLDER = "ipsec"
"""The folder of the daemon's files in the state folder."""
_CONF = "swanctl.conf"
_ODD = re.compile(r"[^0-9a-z]+")
"""What no section's name may have, in a file."""
_PLACES = {"key": "private", "certificate": "x509", "ca": "x509ca", "crl": "x509crl"}
LISTED = 60.0
"""Seconds for which a listing counts while the names of connections are the same. It is asked for each second, and a
thousand connections take 65 ms of Python (measured)."""
RENEWED = 4
"""Lifetimes of an ESP association after which the IKE association is renewed as well."""


class _Credential(NamedTuple):
    """What is loaded of a file; ``content`` is None of a private one."""

    state: IpsecCredential
    digest: bytes
    content: bytes | None


class CharonDriver:
    """IpsecCredential, IpsecConnection and IpsecChild."""

    def __init__(self, control: Path, pid: Callable[[], int]) -> None:
        """Take ``pid``, which returns the process of our daemon, 0 if it does not run."""
        self._control = control
        self._pid = pid
        self._known_of = 0
        self._connections: dict[str, IpsecConnection] = {}
        self._credentials: dict[Key, _Credential] = {}
        self._digest_key = os.urandom(32)
        self._listed: dict[str, vici.Loaded] = {}
        self._until = -math.inf
        """When the listing ends to count (monotonic)."""

    def probe(self) -> Support:
        """Return support: whether there is a daemon is a fact for the backend."""
        return Support("kernel")

    def observe(self, netns: int) -> Iterable[State]:
        """Return what is loaded; nothing if the daemon does not run."""
        if netns != HOST or not self._running():
            return []
        with vici.session(self._control, self._running) as asked:
            if time.monotonic() > self._until or vici.names(asked) != self._listed.keys():
                self._listed, self._until = vici.connections(asked), time.monotonic() + LISTED
        found: list[State] = [
            IpsecCredential(one.state.kind, one.state.path, self._is_current(one.state, one.digest))
            for one in self._credentials.values()
        ]
        for name, one in self._listed.items():
            # A connection of an earlier agent, whose content is unknown, equals none that is desired.
            found.append(self._connections.get(name) or _unknown(name))
            found += [child for text in one.children if (child := _child(name, text)) is not None]
        return found

    def stamp(self) -> object:
        """Return None while the daemon does not run; what it has loaded is observed each second."""
        return object() if self._running() else None

    def _running(self) -> bool:
        """Return whether the daemon runs; a new process has nothing loaded."""
        pid = self._pid()
        if pid != self._known_of:
            self._known_of, self._until = pid, -math.inf
            self._connections.clear()
            self._credentials.clear()
        return bool(pid)

    def _is_current(self, state: IpsecCredential, digest: bytes) -> bool:
        try:
            return self._digest(_content(state)) == digest
        except LinkspanError:
            return False

    def _digest(self, content: bytes) -> bytes:
        return hashlib.blake2b(content, key=self._digest_key, digest_size=16).digest()

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Load, then unload; a peer's connection is loaded as a whole."""
        self._until = -math.inf
        if not self._running():
            if not put:
                return {}
            error = Unavailable("strongSwan's daemon does not run", "charon.log in the state folder shows why")
            return {state.key: error for state in put}
        try:
            with vici.session(self._control, self._running) as asked:
                return _Batch(self, asked).apply(put, delete)
        except LinkspanError as error:
            return {state.key: error for state in (*put, *delete)}

    def load(self, asked: vici.Session, state: IpsecCredential) -> None:
        """Load a file. Raises LinkspanError with its name if it is missing, wrong, or not for root alone.

        A changed file replaces what was loaded from it only if the daemon takes it: somebody may just be writing it.
        """
        content = _content(state)
        digest = self._digest(content)
        before = self._credentials.get(state.key)
        if not self._credentials:
            _forget_all(asked)  # an earlier agent may have loaded one
        try:
            self._load(asked, state, content)
        except vici.Refused as error:
            what = {"psk": "shared key", "key": "private key", "ca": "certificate of an authority"}
            raise Invalid(
                f"{state.path} is no {what.get(state.kind, state.kind)} that strongSwan takes: {error}",
                "PEM or DER, without a passphrase" if state.kind != "psk" else "one line with the key",
            ) from error
        kept = None if state.kind in PRIVATE else content
        self._credentials[state.key] = _Credential(state, digest, kept)
        if before is not None and before.digest != digest:
            if state.kind != "psk":  # a shared key has taken the place of the one with its name
                self._load_again(asked)  # the old content would stay valid beside the new one
            self._prove_anew(asked)

    def _load(self, asked: vici.Session, state: IpsecCredential, content: bytes) -> None:
        match state.kind:
            case "psk":
                key = {"id": state.path, "type": "IKE", "data": content.strip()}
                asked.load_shared(key)
            case "key":
                asked.load_key({"type": "any", "data": content})
            case "crl":
                asked.load_cert({"type": "X509_CRL", "flag": "NONE", "data": content})
            case _:
                flag = "CA" if state.kind == "ca" else "NONE"
                asked.load_cert({"type": "X509", "flag": flag, "data": content})

    def _prove_anew(self, asked: vici.Session) -> None:
        """End associations that depend on the old credential: a key that was changed, a revoked certificate."""
        for one in vici.associations(asked):
            _quietly(asked.terminate, {"ike-id": str(one.number), "timeout": "-1", "force": "yes"})

    def unload(self, asked: vici.Session, state: IpsecCredential) -> None:
        """Unload a file: the daemon can unload single shared keys, and everything else only together."""
        if self._credentials.pop(state.key, None) is None:
            return
        if state.kind == "psk":
            asked.unload_shared({"id": state.path})
            self._prove_anew(asked)
            return
        self._load_again(asked)
        self._prove_anew(asked)

    def _load_again(self, asked: vici.Session) -> None:
        """Load all files anew, and so let the daemon forget what it has beside them."""
        rest, self._credentials = self._credentials, {}
        _forget_all(asked)
        for key, one in rest.items():
            # The next observation finds a private file that is invalid by now.
            with contextlib.suppress(LinkspanError, vici.Refused):
                content = _content(one.state) if one.content is None else one.content
                if self._digest(content) == one.digest:
                    self._load(asked, one.state, content)
                    self._credentials[key] = one

    def connect(
        self,
        asked: vici.Session,
        state: IpsecConnection | None,
        name: str,
        children: set[IpsecChild],
        *,
        starts: bool,
    ) -> None:
        """Load a connection with its children; this replaces an older one with its name.

        One that an earlier agent let the daemon start goes on to start by itself: the daemon ends the associations
        of a child whose start action changes (strongSwan 6.0.1).
        """
        wanted = state or self._connections.get(name)
        if wanted is None:
            raise Unavailable(f"connection {name} is not loaded, and cannot have children")
        asked.load_conn({name: configuration(wanted, children, starts=starts)})
        self._connections[name] = wanted

    def disconnect(self, asked: vici.Session, name: str) -> None:
        """Unload a connection, and end its associations; the peer is informed."""
        self._connections.pop(name, None)
        _quietly(asked.unload_conn, {"name": name})
        _quietly(asked.terminate, {"ike": name, "timeout": "-1"})


class _Batch:
    """One session's work."""

    def __init__(self, driver: CharonDriver, asked: vici.Session) -> None:
        self._driver = driver
        self._asked = asked
        self._failed: dict[Key, LinkspanError] = {}

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Work in the order of ranks; an error of one credential does not affect the others."""
        connections = {s.name: s for s in put if isinstance(s, IpsecConnection)}
        gone = {s.name for s in delete if isinstance(s, IpsecConnection)}
        added = [s for s in put if isinstance(s, IpsecChild)]
        removed = [s for s in delete if isinstance(s, IpsecChild) and s.connection not in gone]
        new, old = _by_connection(added), _by_connection(removed)
        concerned: dict[str, list[State]] = {}
        for one in (*put, *delete):
            if not isinstance(one, IpsecCredential):
                concerned.setdefault(_connection_of(one), []).append(one)
        for state in put:
            if isinstance(state, IpsecCredential):
                self._try([state], functools.partial(self._driver.load, self._asked, state))
        loaded = vici.connections(self._asked)
        for name in sorted(connections.keys() | new.keys() | old.keys()):
            before = loaded.get(name, vici.Loaded(()))
            there = {child for text in before.children if (child := _child(name, text))}
            children = (there | new.get(name, set())) - old.get(name, set())
            connect = functools.partial(
                self._driver.connect,
                self._asked,
                connections.get(name),
                name,
                children,
                starts=before.starts,
            )
            self._try(concerned[name], connect)
        for child in removed:
            _quietly(self._asked.terminate, {"ike": child.connection, "child": child.name, "timeout": "-1"})
        for name in gone:
            self._driver.disconnect(self._asked, name)
        for state in delete:
            if isinstance(state, IpsecCredential):
                self._try([state], functools.partial(self._driver.unload, self._asked, state))
        return self._failed

    def _try(self, states: Iterable[State], act: Callable[[], None]) -> None:
        try:
            act()
        except LinkspanError as error:
            self._failed.update((state.key, error) for state in states)
        except vici.Refused as error:
            refused = Unavailable(f"strongSwan refuses: {error}")
            self._failed.update((state.key, refused) for state in states)


def _by_connection(children: Iterable[IpsecChild]) -> dict[str, set[IpsecChild]]:
    found: dict[str, set[IpsecChild]] = {}
    for child in children:
        found.setdefault(child.connection, set()).add(child)
    return found


def _connection_of(state: State) -> str:
    assert isinstance(state, IpsecConnection | IpsecChild)
    return state.connection if isinstance(state, IpsecChild) else state.name


def begun_at(
    state: IpsecConnection, children: Iterable[IpsecChild], address: str, port: int
) -> dict[str, Any]:
    """Return a variant of the connection with a peer behind a NAT that starts at the peer's last address.

    The path back through the NAT starts at the port from which the peer has sent. There is one attempt,
    because the NAT may have forgotten it. The peer starts, too, and is accepted from any address.
    """
    there = {"remote_addrs": [address, state.remote], "remote_port": str(port), "keyingtries": "1"}
    here = {"local_port": str(NAT)} if port != IKE_PORT else {}
    return configuration(state, children) | there | here


def configuration(
    state: IpsecConnection, children: Iterable[IpsecChild], *, starts: bool = False
) -> dict[str, Any]:
    """Return a connection in swanctl.conf(5) syntax; the plan prints the same, but lets the daemon start."""
    auth = {"auth": "psk" if state.shared else "pubkey"}
    strict = {"revocation": "strict"} if state.strict else {}
    return {
        "version": "2",
        "local_addrs": [state.local],
        "remote_addrs": [state.remote],
        "proposals": list(IKE),
        "mobike": "no",
        "encap": "yes" if state.encapsulated else "no",
        "keyingtries": "0",
        "dpd_delay": f"{state.probe}s",
        "rekey_time": f"{state.rekey * RENEWED}s",
        "send_cert": "always",
        "local": {**auth, "id": state.me},
        "remote": {**auth, "id": state.peer, **strict},
        "children": {
            child.name: {
                "local_ts": [str(child.here)],
                "remote_ts": [str(child.there)],
                **of_children(state, starts=starts),
            }
            for child in sorted(children, key=lambda c: c.name)
        },
    }


def of_children(state: IpsecConnection, *, starts: bool) -> dict[str, Any]:
    """Return what all children of a connection share.

    ``starts`` lets the daemon start them by itself, all at once. Otherwise the agent does
    (``agent/ipsec_sessions``), also after a peer was silent.
    """
    found: dict[str, Any] = {
        "mode": "tunnel",
        "esp_proposals": list(ESP),
        "rekey_time": f"{state.rekey}s",
        "dpd_action": "start" if starts and state.remote != ANYWHERE else "clear",
        "start_action": "start" if starts and state.first else "none",
    }
    if state.mark:
        found |= {
            "if_id_in": hex(state.mark),
            "if_id_out": hex(state.mark),
            "set_mark_in": f"{state.mark:#x}",
        }
    return found


def _content(state: IpsecCredential) -> bytes:
    """Return the file's content. Raises LinkspanError with its name if it is missing, or if others may write it."""
    if state.kind in PRIVATE:
        return alone(state.path)
    return trusted(state.path, f"{state.kind} for IPsec")


def _child(connection: str, name: str) -> IpsecChild | None:
    """Return a child by its name, None if it is not ours."""
    here, equals, there = name.partition("=")
    try:
        return IpsecChild(connection, prefix(here), prefix(there)) if equals else None
    except Invalid:
        return None


def _unknown(name: str) -> IpsecConnection:
    return IpsecConnection(name, "", "", "", "", False, False, False, 0, 0, False, 0)


def _forget_all(asked: vici.Session) -> None:
    """Make the daemon forget everything loaded, and its cache of others' certificates."""
    asked.clear_creds()
    asked.flush_certs()


def _quietly(act: Callable[[dict[str, str]], Any], message: dict[str, str]) -> None:
    """Ask the daemon to end something that may have ended by itself."""
    try:
        found = act(message)
        for _ in found if hasattr(found, "__next__") else ():
            pass
    except vici.Refused:
        pass


def control(host: LocalHost) -> Path:
    """Return the control socket of strongSwan's daemon."""
    return host.state_dir / FOLDER / CONTROL


def driver(host: LocalHost) -> CharonDriver:
    """Return the driver of strongSwan's daemon."""
    pid = host.driver(processes.driver).pid
    return CharonDriver(control(host), lambda: pid(CHARON))


# The equivalent for swanctl, with secrets shown as ***. A connection's configuration is a file below the
# state folder, where swanctl finds it; a child is one more section of it.


def _write_credential(state: IpsecCredential, shell: Shell) -> tuple[str, ...]:
    folder, path = f"{shell.state_dir}/{FOLDER}", shlex.quote(state.path)
    if state.kind == "psk":
        # The key goes from file to file, in base64 (swanctl.conf(5)), and is never displayed.
        text = " ".join(map(shlex.quote, ("secrets { ike-linkspan {", f"secret = {HIDDEN}", "} }")))
        key = f"0s$(tr -d '\\n' <{path} | base64 -w0)"
        return (f"(umask 077; printf '%s\\n' {text} | sed \"s|[*]*[*]|{key}|\" >>{folder}/{_CONF})",)
    note = f"  # {HIDDEN}" if state.kind in PRIVATE else ""
    return (f"install -D -m 0600 {path} -t {folder}/{_PLACES[state.kind]}{note}",)


def _write_connection(state: IpsecConnection, shell: Shell) -> tuple[str, ...]:
    own = {key: value for key, value in configuration(state, ()).items() if key != "children"}
    # Both hosts start: the later one succeeds, because without agents nobody restarts the earlier attempt.
    begins = {"start_action": "start"} if state.remote != ANYWHERE else {}
    children = of_children(state, starts=True) | begins
    return (_appended({f"of-{state.name}": children, "connections": {state.name: own}}, shell),)


def _write_child(state: IpsecChild, shell: Shell) -> tuple[str, ...]:
    here, there = state.here, state.there
    ways = "everything" if here == there == whole(here.family) else f"{here} === {there}"
    own = {"local_ts": [str(here)], "remote_ts": [str(there)]}
    name = f"{_ODD.sub('-', state.name)} : of-{state.connection}"
    section = {"connections": {state.connection: {"children": {name: own}}}}
    return (f"{_appended(section, shell)}  # {ways}",)


def _load(state_dir: str) -> str:
    folder = f"{state_dir}/{FOLDER}"
    waits = f"until [ -S {folder}/{CONTROL} ]; do sleep 0.1; done"
    return f"{waits}; SWANCTL_DIR={folder} swanctl --load-all --noprompt --uri unix://{folder}/{CONTROL}"


def _appended(sections: Mapping[str, Any], shell: Shell) -> str:
    lines = " ".join(map(shlex.quote, _lines(sections)))
    return f"printf '%s\\n' {lines} >>{shell.state_dir}/{FOLDER}/{_CONF}"


def _lines(section: Mapping[str, Any]) -> Iterable[str]:
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield f"{key} {{"
            yield from _lines(value)
            yield "}"
        else:
            yield f"{key} = {','.join(value) if isinstance(value, list) else value}"


_ENDING = Ending(IpsecConnection, _load, "the daemon reads everything that the commands above give it")
_EVENTS = frozenset({Event.HELPER})

KINDS = (
    Kind(
        state=IpsecCredential,
        rank=73,
        driver=driver,
        known_by="all that our own daemon has loaded",
        purpose="what this host proves itself by to others, or checks them by",
        commands=_write_credential,
        ending=_ENDING,
        events=_EVENTS,
        poll=True,
        counted=False,
    ),
    Kind(
        state=IpsecConnection,
        rank=74,
        driver=driver,
        known_by="a name that begins with `ls-`, in our own daemon",
        purpose="how this host and another prove themselves to each other",
        commands=_write_connection,
        ending=_ENDING,
        events=_EVENTS,
        poll=True,
        counted=False,
    ),
    Kind(
        state=IpsecChild,
        rank=75,
        driver=driver,
        known_by="its connection",
        purpose="what the two then encrypt for each other",
        commands=_write_child,
        events=_EVENTS,
        poll=True,
        counted=False,
    ),
)
