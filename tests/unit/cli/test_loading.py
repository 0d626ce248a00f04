"""Loading: a command waits for no other command's modules."""

import subprocess
import sys

import pytest

from linkspan.cli.main import COMMANDS, GROUPS, commands

LOADED = (
    "import sys; from linkspan.cli.main import commands; commands({!r});"
    "print(*(name for name in sys.modules if name.startswith('linkspan')))"
)


def loaded(name: str) -> set[str]:
    """Return the modules of linkspan in a fresh interpreter that has loaded a command."""
    done = subprocess.run([sys.executable, "-c", LOADED.format(name)], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("name", ["status", "endpoint", "attach"])
def test_a_frequent_command_loads_neither_the_agent_nor_other_groups(name: str) -> None:
    """Their imports would take most of the command's time."""
    found = loaded(name)
    assert "linkspan.api.client" in found
    rooms = ("agent", "backends", "cluster", "controller", "demo", "dns", "endpoints", "lab")
    assert not [one for one in found if one.split(".")[1:2] and one.split(".")[1] in rooms]
    others = {f"linkspan.cli.{module or group}" for group, module in GROUPS.items() if group != name}
    assert not found & (others - {"linkspan.cli.address", f"linkspan.cli.{COMMANDS.get(name)}"})


def test_every_name_of_the_help_is_loaded_alone_as_with_all() -> None:
    """A command that is loaded alone has the same options, or the same commands below it."""
    every = commands().commands
    assert set(every) == {*GROUPS, *COMMANDS}
    for name, one in every.items():
        alone = commands(name).commands
        assert set(alone) == {name}
        assert [param.opts for param in alone[name].params] == [param.opts for param in one.params]
        assert set(getattr(alone[name], "commands", ())) == set(getattr(one, "commands", ()))


def test_a_command_looks_for_no_garbage_among_what_it_imported() -> None:
    """Python would look through all of it at the end, which takes as long as many commands work."""
    code = (
        "import atexit, gc, sys; atexit.register(lambda: print(len(gc.get_objects()), gc.get_freeze_count()));"
        "sys.argv = ['linkspan', 'version']; from linkspan.cli.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    left, frozen = map(int, done.stdout.splitlines()[-1].split())
    assert frozen > left
