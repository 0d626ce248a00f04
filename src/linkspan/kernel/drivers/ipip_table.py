"""Table of the user-space IPIP helper: a file of ours with a line for each prefix: ``10.244.2.0/24 192.0.2.2``.

It is written under another name and renamed, so the helper, which watches the folder, never reads half of it.
The helper swaps the table between two packets and loses none. Only the file is observed: its content is what
was put. It needs no fsync: after a power failure the agent writes it again.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import linkspan
from linkspan.core.addresses import SOCKET_FAMILY, prefix
from linkspan.core.contracts import Support
from linkspan.core.desired import Desired
from linkspan.core.errors import Invalid, LinkspanError, of_errno
from linkspan.core.kinds import Kind
from linkspan.core.shell import Shell, address_text
from linkspan.core.states.host import HOST, Key, State, TunnelPrefix
from linkspan.core.states.programs import IpipHelper
from linkspan.kernel.drivers import tunnels
from linkspan.kernel.local_host import LocalHost

TABLE = "ipip/table"
"""Its place in the state folder; the folder around it is there for the endpoint to watch."""


def line(row: TunnelPrefix) -> str:
    """Return a row as the file has it."""
    remote = socket.inet_ntop(SOCKET_FAMILY[4 if len(row.remote) == 4 else 6], row.remote)
    return f"{row.prefix} {remote}"


def rows(text: str) -> Iterable[TunnelPrefix]:
    """Yield the rows of a file; skip invalid lines."""
    for words in map(str.split, text.splitlines()):
        try:
            target, remote = words
            yield TunnelPrefix(prefix(target), prefix(remote).packed)
        except (ValueError, Invalid):
            continue


class TunnelTableDriver:
    """TunnelPrefix."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def probe(self) -> Support:
        """Return support: files are everywhere."""
        return Support("user space")

    def observe(self, netns: int) -> Iterable[State]:
        """Return the file's rows."""
        return list(self._read().values()) if netns == HOST else []

    def _read(self) -> dict[Key, TunnelPrefix]:
        try:
            return {row.key: row for row in rows(self.path.read_text(encoding="ascii", errors="replace"))}
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise of_errno(error.errno or 0, f"read {self.path}") from error

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Write the file again; without rows remove it."""
        try:
            table = self._read()
            for state in put:
                assert isinstance(state, TunnelPrefix)
                table[state.key] = state
            for state in delete:
                table.pop(state.key, None)
            self._write(table.values())
        except LinkspanError as error:
            return {state.key: error for state in (*put, *delete)}
        except OSError as error:
            failure = of_errno(error.errno or 0, f"write {self.path}")
            return {state.key: failure for state in (*put, *delete)}
        return {}

    def _write(self, table: Iterable[TunnelPrefix]) -> None:
        text = "".join(f"{line(row)}\n" for row in table)
        if not text:
            self.path.unlink(missing_ok=True)
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        new.write_text(text, encoding="ascii")
        new.rename(self.path)


def driver(host: LocalHost) -> TunnelTableDriver:
    """Return the driver of the user-space helper's table."""
    return TunnelTableDriver(host.state_dir / TABLE)


def helper(table: Path) -> IpipHelper:
    """Return how to start the user-space IPIP endpoint, without its addresses.

    An agent starts a helper again whose argv is another one. So this stays as it is, or an upgrade cuts every tunnel.
    """
    # By its file and isolated: it needs the standard library only, and starts in 20 ms whatever is installed.
    program = Path(linkspan.__file__).with_name("ipip_endpoint.py")
    return IpipHelper((sys.executable, "-IS", str(program), "--table", str(table)))


def _helper(host: LocalHost, _desired: Desired) -> IpipHelper | None:
    return None if host.driver(tunnels.driver).ipip().by == "kernel" else helper(host.driver(driver).path)


def _add(state: TunnelPrefix, shell: Shell) -> tuple[str, ...]:
    return (f"echo '{state.prefix} {address_text(state.remote)}' >>{shell.state_dir}/{TABLE}",)


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
)
