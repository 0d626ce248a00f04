"""Tables of the user-space IPIP helper: files of ours with a line for each prefix: ``10.244.2.0/24 192.0.2.2``.

``table`` has the prefixes of other hosts, ``exits`` the pools of networks that leave by another host's egress address.
A file is written under another name and renamed, so the helper, which watches the folder, never reads half of it.
The helper swaps a table between two packets and loses none. Only the files are observed: their content is what
was put. They need no fsync: after a power failure the agent writes them again.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import linkspan
from linkspan.core.addresses import SOCKET_FAMILY, prefix
from linkspan.core.desired import Desired
from linkspan.core.driver_contract import Support
from linkspan.core.errors import Invalid, LinkspanError, of_errno
from linkspan.core.kinds import Kind
from linkspan.core.shell import Shell, address_text
from linkspan.core.states.host import HOST, Key, State, TunnelExit, TunnelPrefix
from linkspan.core.states.programs import IpipHelper
from linkspan.kernel.drivers import tunnels
from linkspan.kernel.local_host import LocalHost

TABLE, EXITS = "ipip/table", "ipip/exits"
"""Their places in the state folder; the folder around them is there for the endpoint to watch."""
Row = TunnelPrefix | TunnelExit


def line(row: Row) -> str:
    """Return a row as the file has it."""
    remote = socket.inet_ntop(SOCKET_FAMILY[4 if len(row.remote) == 4 else 6], row.remote)
    return f"{row.prefix} {remote}"


def rows(text: str, kind: type[Row]) -> Iterable[Row]:
    """Yield the rows of a file, as states of a kind; skip invalid lines."""
    for words in map(str.split, text.splitlines()):
        try:
            target, remote = words
            yield kind(prefix(target), prefix(remote).packed)
        except (ValueError, Invalid):
            continue


class TunnelTableDriver:
    """TunnelPrefix and TunnelExit."""

    def __init__(self, path: Path, exits: Path) -> None:
        self.path, self.exits = path, exits
        self._files: dict[type[Row], Path] = {TunnelPrefix: path, TunnelExit: exits}

    def probe(self) -> Support:
        """Return support: files are everywhere."""
        return Support("user space")

    def observe(self, netns: int) -> Iterable[State]:
        """Return the files' rows."""
        return [row for kind in self._files for row in self._read(kind).values()] if netns == HOST else []

    def _read(self, kind: type[Row]) -> dict[Key, Row]:
        path = self._files[kind]
        try:
            return {row.key: row for row in rows(path.read_text(encoding="ascii", errors="replace"), kind)}
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise of_errno(error.errno or 0, f"read {path}") from error

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Write the files of changed rows again; without rows remove them."""
        failed: dict[Key, LinkspanError] = {}
        for kind, path in self._files.items():
            new, gone = ([state for state in some if isinstance(state, kind)] for some in (put, delete))
            if not new and not gone:
                continue
            try:
                table = self._read(kind) | {state.key: state for state in new}
                for state in gone:
                    table.pop(state.key, None)
                _write(path, table.values())
            except LinkspanError as error:
                failed |= {state.key: error for state in (*new, *gone)}
            except OSError as error:
                failure = of_errno(error.errno or 0, f"write {path}")
                failed |= {state.key: failure for state in (*new, *gone)}
        return failed


def _write(path: Path, table: Iterable[Row]) -> None:
    text = "".join(f"{line(row)}\n" for row in table)
    if not text:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(text, encoding="ascii")
    new.rename(path)


def driver(host: LocalHost) -> TunnelTableDriver:
    """Return the driver of the user-space helper's tables."""
    return TunnelTableDriver(host.state_dir / TABLE, host.state_dir / EXITS)


def helper(table: Path) -> IpipHelper:
    """Return how to start the user-space IPIP endpoint, without its addresses.

    An agent starts a helper again whose argv is another one. So ``argv`` stays as it is, or an upgrade cuts every
    tunnel.
    """
    # By its file and isolated: it needs the standard library only, and starts in 20 ms whatever is installed.
    program = Path(linkspan.__file__).with_name("ipip_endpoint.py")
    exits = table.with_name(Path(EXITS).name)
    return IpipHelper((sys.executable, "-IS", str(program), "--table", str(table)), ("--exits", str(exits)))


def _helper(host: LocalHost, _desired: Desired) -> IpipHelper | None:
    return None if host.driver(tunnels.driver).ipip().by == "kernel" else helper(host.driver(driver).path)


def _add(state: Row, shell: Shell) -> tuple[str, ...]:
    file = TABLE if isinstance(state, TunnelPrefix) else EXITS
    return (f"echo '{state.prefix} {address_text(state.remote)}' >>{shell.state_dir}/{file}",)


KINDS = (
    Kind(
        state=TunnelPrefix,
        rank=62,
        driver=driver,
        known_by="the file `ipip/table` in the state folder",
        purpose="what the user-space tunnel sends to which host, and takes from it",
        finds={IpipHelper: _helper},
        commands=_add,
    ),
    Kind(
        state=TunnelExit,
        rank=62,
        driver=driver,
        known_by="the file `ipip/exits` in the state folder",
        purpose="by which host the user-space tunnel sends what leaves a network, and takes answers",
        commands=_add,
    ),
)
