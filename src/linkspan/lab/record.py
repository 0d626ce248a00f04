"""Record of a lab, as a file: written before a thing is made, so that `down` knows everything that may exist.

/run/linkspan-lab/NAME has it (lab.json), each host's folder (state, socket, logs) and a shared SQLite store.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from linkspan.core.config import LABS
from linkspan.core.errors import Conflict, Denied, Invalid, LinkspanError, NotFound, closest

T = TypeVar("T", bound="Host | Container | Router | Switch | Controller")
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,29}")
"""Short enough for a unix socket in the lab's folder (108 bytes, unix(7))."""


class Attachment(msgspec.Struct):
    """A container's interface: the request (``ip`` may be empty), and the result."""

    network: str
    ip: list[str] = []
    ifname: str = ""
    labels: dict[str, str] = {}
    addresses: list[str] = []
    gateways: list[str] = []
    mtu: int = 0


class Container(msgspec.Struct):
    """A container: a network namespace on a host."""

    name: str
    host: str
    namespace: str
    attachments: list[Attachment] = []

    @property
    def addresses(self) -> list[str]:
        """Return all its addresses."""
        return [address for one in self.attachments for address in one.addresses]


class Host(msgspec.Struct):
    """A virtual host. ``broken`` are the lasting failures from `lab break`, until `lab mend`.

    Behind a NAT it has ``outside`` addresses on the segment, which are the NAT's, and its own are behind
    that.
    """

    name: str
    namespace: str
    segment: int
    addresses: list[str]
    boot_id: str = ""
    broken: list[str] = []
    outside: list[str] = []

    @property
    def nat(self) -> str:
        """Return the namespace of its NAT, '' if it has none."""
        return f"{self.namespace}-nat" if self.outside else ""


class Router(msgspec.Struct, kw_only=True):
    """A BGP speaker of the underlay, by ``software`` bird or frr: a segment's router, or a route reflector.

    ``addresses`` are on its segment, ``core`` on the link between routers; a reflector forwards nothing, and
    has none there. ``number`` distinguishes it from the lab's other routers.
    """

    name: str
    number: int
    namespace: str
    software: str
    segment: int
    asn: int
    addresses: list[str]
    core: list[str] = []
    broken: list[str] = []

    @property
    def reflector(self) -> bool:
        """Return whether it passes on routes of one AS and forwards nothing."""
        return not self.core


class Switch(msgspec.Struct, kw_only=True):
    """An OpenFlow switch, in the namespace that all switches share."""

    name: str
    broken: list[str] = []


class Controller(msgspec.Struct, kw_only=True):
    """A controller of the switches, in their namespace."""

    name: str
    broken: list[str] = []


class Lab(msgspec.Struct, kw_only=True):
    """A lab. Until ``complete`` it is being made, or was left incomplete."""

    name: str
    backend: str
    options: dict[str, str] = {}
    store: str = "sqlite"
    store_members: int = 1
    segments: int = 1
    mtu: int = 1500
    network: str = "demo"
    pools: list[str] = []
    hosts: list[Host] = []
    routers: list[Router] = []
    switches: list[Switch] = []
    controllers: list[Controller] = []
    containers: list[Container] = []
    bare: bool = False
    """Whether its hosts have nothing but the program: who uses the lab starts agents, and makes a cluster."""
    complete: bool = False

    @property
    def folder(self) -> Path:
        """Return the lab's folder."""
        return LABS / self.name

    @property
    def hidden(self) -> bool:
        """Return whether it is another user's, so that this one cannot see its processes or enter its namespaces."""
        return os.geteuid() not in (0, self.folder.stat().st_uid)

    def require_own(self, what: str) -> None:
        """Raise Denied, which names the refused action, if the lab is another user's."""
        if self.hidden:
            owner = self.folder.owner() if self.folder.stat().st_uid else "root"
            raise Denied(f"{what}: lab {self.name} is {owner}'s", f"run the command as {owner} (sudo)")

    @property
    def switch(self) -> str:
        """Return the namespace of the underlay's bridges, and of etcd."""
        return f"{self.name}-switch"

    @property
    def router(self) -> str:
        """Return the namespace that joins segments; it does not exist for one segment, or if each has routers."""
        return f"{self.name}-router" if self.segments > 1 and not self.routers else ""

    @property
    def alone(self) -> bool:
        """Return whether each host is a cluster of its own: nothing of backend bridge crosses hosts."""
        return self.backend == "bridge"

    @property
    def namespaces(self) -> list[str]:
        """Return every namespace that may have been made, the containers' first."""
        named: list[Place] = [*self.places, *self.routers]
        nats = [host.nat for host in self.hosts]
        return [*(one.namespace for one in named), *filter(None, (*nats, self.router, self.switch))]

    @property
    def places(self) -> list[Host | Container]:
        """Return containers and hosts."""
        return [*self.containers, *self.hosts]

    def routers_of(self, segment: int) -> list[Router]:
        """Return the BGP speakers on a segment."""
        return [router for router in self.routers if router.segment == segment]

    def socket(self, host: str) -> str:
        """Return the socket of a host's agent."""
        return str(self.folder / host / "agent.sock")

    def settings(self, host: str) -> Path:
        """Return the settings file of a host's agent."""
        return self.folder / host / "agent.toml"

    def host(self, name: str) -> Host:
        """Return a host by its name. Raises NotFound."""
        return self._named("host", name, self.hosts)

    def container(self, name: str) -> Container:
        """Return a container by its name. Raises NotFound."""
        return self._named("container", name, self.containers)

    def place(self, name: str) -> Place:
        """Return a host, container or router. Raises NotFound with all their names."""
        found: list[Place] = [*self.places, *self.routers]
        return self._named("host or container", name, found)

    def breakable(self, name: str) -> Breakable:
        """Return a host, router, switch or controller by its name. Raises NotFound."""
        every: list[Breakable] = [*self.hosts, *self.routers, *self.switches, *self.controllers]
        kinds = " or ".join(dict.fromkeys(type(one).__name__.lower() for one in every))
        return self._named(kinds, name, every)

    def _named(self, kinds: str, name: str, every: Sequence[T]) -> T:
        for one in every:
            if one.name == name:
                return one
        names = [one.name for one in every]
        hint = closest(name, names, f"it has {', '.join(names) or 'none'}")
        raise NotFound(f"lab {self.name} has no {kinds} {name}", hint)

    def save(self) -> None:
        """Write the record; a reader gets the old one or the new one."""
        self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        draft = self.folder / "lab.json.draft"
        draft.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n")
        draft.replace(self.folder / "lab.json")


Place = Host | Container | Router
Breakable = Host | Router | Switch | Controller


def checked(name: str) -> str:
    """Return a lab's name if it is valid. Raises Invalid."""
    if not NAME.fullmatch(name):
        raise Invalid(f"lab {name!r} is no name for a lab", "use 1 to 30 of a-z, 0-9 and -")
    return name


def exists(name: str) -> bool:
    """Return whether there is a lab of this name, complete or not."""
    return (LABS / checked(name) / "lab.json").exists()


def there(name: str) -> bool:
    """Return whether anything of a lab exists: its record, or logs of one that could not be made."""
    return exists(name) or (LABS / f"{name}.failed").exists()


def load(name: str) -> Lab:
    """Read a lab. Raises NotFound if there is none."""
    path = LABS / checked(name) / "lab.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Lab)
    except FileNotFoundError as error:
        others = ", ".join(names())
        hint = f"linkspan lab up --lab {name}" + (f"; existing labs: {others}" if others else "")
        raise NotFound(f"there is no lab {name}", hint) from error
    except OSError as error:
        raise Denied(f"{path}: {(error.strerror or '').lower()}", "run it as root") from error
    except msgspec.DecodeError as error:
        raise LinkspanError(f"{path} cannot be read ({error})", "did another version make it?") from error


def names() -> list[str]:
    """Return the names of all labs."""
    return sorted(path.parent.name for path in LABS.glob("*/lab.json"))


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Lock a lab for a change. Raises Conflict if another command has it, Denied without root."""
    checked(name)
    try:
        LABS.mkdir(mode=0o755, parents=True, exist_ok=True)
        file = (LABS / f"{name}.lock").open("a", encoding="ascii")
    except OSError as error:
        raise Denied(
            f"a lab makes network namespaces, which needs root ({LABS}: {(error.strerror or '').lower()})",
            "sudo linkspan lab ...",
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(f"another command is changing lab {name}", "wait until it ends, or stop it") from None
        yield


def keep_logs(lab: Lab) -> Path:
    """Put the logs of a lab that could not be made beside its folder, until the next `up` or `down`."""
    kept = LABS / f"{lab.name}.failed"
    for path in lab.folder.rglob("*.log"):
        target = kept / path.relative_to(lab.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return kept


def drop_logs(name: str) -> None:
    """Remove the logs of a lab that could not be made."""
    shutil.rmtree(LABS / f"{name}.failed", ignore_errors=True)


def erase(name: str) -> None:
    """Remove a lab's folder, the record last; a missing folder is no error."""
    folder = LABS / name
    for path in sorted(folder.glob("*")):
        if path.name != "lab.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    (LABS / f"{name}.lock").unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        os.rmdir(LABS)  # noqa: PTH106 - only where it is empty
