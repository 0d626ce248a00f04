from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from linkspan.core.errors import Unavailable
from linkspan.kernel.io.dbus import Bus, Refused, _path

BUS = "org.freedesktop.DBus"


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    if not shutil.which("dbus-daemon"):
        pytest.skip("dbus-daemon is not installed")
    command = (
        "dbus-daemon",
        "--session",
        "--nofork",
        "--print-address",
        f"--address=unix:path={tmp_path}/bus",
    )
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        yield child.stdout.readline().strip()
        child.terminate()


def test_strings_go_out_and_come_back(address: str) -> None:
    """One string, an array of strings, and an error with its name and words, over a real bus."""
    with Bus(address) as bus:
        names = bus.call(BUS, "/", BUS, "ListNames")
        assert BUS in names
        (mine,) = (name for name in names if name.startswith(":"))
        assert bus.call(BUS, "/", BUS, "GetNameOwner", mine) == [mine]
        assert bus.owned(mine)
        assert not bus.owned("org.example.Nobody")
        with pytest.raises(Refused, match=r"org\.example\.Nobody") as caught:
            bus.call("org.example.Nobody", "/", BUS, "Ping")
        assert caught.value.name.endswith(
            "NameHasNoOwner" if "Owner" in caught.value.name else "ServiceUnknown"
        )


@pytest.mark.parametrize("length", range(1, 10))
def test_every_alignment_is_packed_and_unpacked(address: str, length: int) -> None:
    """Strings of any length, one after another."""
    with Bus(address) as bus:
        with pytest.raises(Refused) as caught:
            bus.call(BUS, "/", BUS, "GetNameOwner", "a." + "x" * length)
        assert "a." + "x" * length in caught.value.message
        with pytest.raises(Refused):  # two strings where one is wanted: read as such, and refused
            bus.call(BUS, "/", BUS, "GetNameOwner", "a." + "x" * length, "b.c")
        assert bus.call(BUS, "/", BUS, "GetNameOwner", BUS) == [BUS]


def test_no_bus_is_an_error_that_names_the_address(tmp_path: Path) -> None:
    """A machine without D-Bus."""
    with pytest.raises(Unavailable, match=f"{tmp_path}/none"):
        Bus(f"unix:path={tmp_path}/none")


def test_the_first_unix_address_of_a_list_is_taken() -> None:
    """Addresses are listed, escaped, and have more keys (D-Bus specification, "Server Addresses")."""
    assert _path("tcp:host=x,port=1;unix:path=/run/a%20b,guid=1") == "/run/a b"
    assert _path("unix:abstract=/x") == "\0/x"
    with pytest.raises(Unavailable, match="tcp:host=x"):
        _path("tcp:host=x")
