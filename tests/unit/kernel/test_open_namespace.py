"""Namespaces from callers are opened without trust in what they are."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from linkspan.core.errors import Invalid, NotFound
from linkspan.core.model import Endpoint
from linkspan.kernel.drivers.links import LinkDriver
from linkspan.kernel.io import namespaces
from linkspan.kernel.io.namespaces import Namespaces, open_namespace
from support.memory_machine import MemoryMachine

COOKIE = 70


@pytest.fixture
def spaces(monkeypatch: pytest.MonkeyPatch) -> Iterator[Namespaces]:
    """Namespaces on a kernel that says one cookie of each, because to enter them takes root."""
    monkeypatch.setattr(namespaces, "_setns", lambda *_: None)
    monkeypatch.setattr(namespaces, "_cookie", lambda: COOKIE)
    made = Namespaces()
    yield made
    made.close()


def test_a_fifo_without_a_writer_keeps_nobody_waiting(tmp_path: Path) -> None:
    """It is refused at once as what it is: no network namespace."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with ThreadPoolExecutor(1) as pool:
        opened = pool.submit(open_namespace, str(fifo))
        try:
            with pytest.raises(Invalid, match="is not a network namespace"):
                opened.result(10)
        finally:
            os.close(os.open(fifo, os.O_RDWR))  # lets one go that waits


def test_a_namespace_is_held_until_the_last_lets_go(tmp_path: Path) -> None:
    """Each who holds one may enter it by a descriptor, in whichever order the others end."""
    spaces = Namespaces()
    (tmp_path / "held").touch()
    fds = [os.open(tmp_path / "held", os.O_RDONLY) for _ in range(2)]
    try:
        first, second = (spaces.holding(fd) for fd in fds)
        number = first.__enter__()
        assert second.__enter__() == number
        first.__exit__(None, None, None)
        os.close(spaces.open(number))
        second.__exit__(None, None, None)
        with pytest.raises(NotFound):
            spaces.open(number)
    finally:
        spaces.close()
        for fd in fds:
            os.close(fd)


@pytest.mark.parametrize("held", [False, True], ids=["by-its-path", "held"])
def test_a_namespace_with_the_inode_and_another_cookie_is_gone(spaces: Namespaces, held: bool) -> None:
    """By whatever way it is reached: a path, a process that lives in it, or a caller's descriptor."""
    fd = open_namespace("/proc/self/ns/net")
    try:
        with spaces.holding(fd) if held else contextlib.nullcontext():
            spaces.register(spaces.home, "/proc/self/ns/net", COOKIE)
            os.close(spaces.open(spaces.home))
            spaces.register(spaces.home, "/proc/self/ns/net", COOKIE - 1)
            for reach in (spaces.open, lambda number: spaces.entered(number).__enter__()):
                with pytest.raises(NotFound, match="is gone"):
                    reach(spaces.home)
            assert list(spaces.ways(spaces.home)) == []
    finally:
        os.close(fd)


def test_what_is_known_of_a_namespace_ends_when_another_has_its_inode(spaces: Namespaces) -> None:
    """The agent keeps what it learnt of a namespace while its cookie is the same, and drops it with another cookie."""
    spaces.register(7, "/run/netns/c1", COOKIE)
    spaces.renew(7, COOKIE)
    assert spaces.path(7) == "/run/netns/c1"
    spaces.renew(7, COOKIE + 1)
    assert spaces.path(7) == ""


class Pairs(LinkDriver):
    """Links of which these lead into whatever namespace is asked for."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names

    def leads_into(self, name: str, fd: int) -> bool:
        """Return whether it is one of them."""
        return name in self._names


class Few(MemoryMachine):
    """A machine with namespaces and with pairs that lead into them."""

    def __init__(self, spaces: Namespaces, *pairs: str) -> None:
        super().__init__()
        self.namespaces, self.links = spaces, Pairs(pairs)


def test_an_endpoint_lives_in_the_namespace_of_its_cookie_alone(spaces: Namespaces) -> None:
    """Without a cookie it lives in its pair's namespace, and without that in none."""
    machine = Few(spaces, "lsp1")
    endpoint = Endpoint(id="c1", ifname="eth0", network="demo", netns=spaces.home, netns_cookie=COOKIE)
    assert machine.alive(endpoint)
    assert not machine.alive(msgspec.structs.replace(endpoint, netns_cookie=COOKIE - 1))
    unknown = msgspec.structs.replace(endpoint, netns_cookie=0, host_ifname="lsp1")
    assert machine.alive(unknown)
    assert machine.reached(unknown).netns_cookie == COOKIE
    assert not machine.alive(msgspec.structs.replace(unknown, host_ifname="lsp2"))


def test_a_namespace_is_not_entered_for_an_endpoint_whose_cookie_is_unknown(
    spaces: Namespaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be another container's; on a kernel without cookies the inode is all that there is."""
    machine = Few(spaces)
    endpoint = Endpoint(id="c1", ifname="eth0", network="demo", netns=spaces.home)
    machine.enter(endpoint)
    with pytest.raises(NotFound):
        spaces.open(spaces.home)
    monkeypatch.setattr(spaces, "tells_apart", False)
    machine.enter(endpoint)
    os.close(spaces.open(spaces.home))
    assert machine.alive(endpoint)


def test_the_way_of_those_who_stay_is_known_while_one_leaves(spaces: Namespaces) -> None:
    """Another thread may open the namespace at any moment, and it must not take another one with the inode."""
    machine, seen = Few(spaces), list[list[str]]()
    gone = Endpoint(id="c1", ifname="eth0", network="demo", netns=spaces.home, netns_cookie=COOKIE - 1)
    mate = msgspec.structs.replace(gone, ifname="eth1")
    spaces.register(spaces.home, "/proc/self/ns/net", COOKIE - 1)

    def every() -> Iterator[Endpoint]:
        for endpoint in (gone, mate):
            seen.append(list(spaces.ways(spaces.home)))
            yield endpoint
        seen.append(list(spaces.ways(spaces.home)))

    machine.leave(gone, every())
    seen.append(list(spaces.ways(spaces.home)))
    assert seen == [[]] * 4


def test_the_way_of_the_last_is_forgotten(spaces: Namespaces) -> None:
    """Nothing is known of a namespace without endpoints."""
    gone = Endpoint(id="c1", ifname="eth0", network="demo", netns=7, netns_path="/run/netns/c1", netns_cookie=COOKIE)
    machine = Few(spaces)
    machine.enter(gone)
    assert spaces.path(7) == "/run/netns/c1"
    machine.leave(gone, [gone, msgspec.structs.replace(gone, id="c2", netns=8)])
    assert spaces.path(7) == ""
