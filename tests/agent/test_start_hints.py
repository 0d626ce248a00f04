"""Each error of an agent's start says what to do, and whoever does that loses no container's network."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.agent.agent_host import Host, World, clean, first_ip, pings, refused, run
from support.agent.damage import begin_with_two, endpoints, follow_move, inside, rewritten


@pytest.fixture
def used(world: World) -> Any:
    """Return a host with a bridged and a routed container, whose agent has just been killed."""
    host = Host(world)
    begin_with_two(host)
    host.stop(signal.SIGKILL)
    try:
        yield host
    finally:
        host.close()


def unreadable_row(host: Host) -> str:
    """One row of the journal is garbage."""
    rewritten(host.state_dir / "journal.db", f"UPDATE endpoints SET record = 'x' WHERE id = '{host.containers[0]}'")  # noqa: S608
    return "journal.db has a record that cannot be read"


def damaged_store(host: Host) -> str:
    """Damage the store's file, and its log as well."""
    for file in (host.state_dir / "store").glob("store.db*"):
        file.write_bytes(b"garbage" * 1000)
    return "store.db is corrupt"


def emptied_journal_and_damaged_store(host: Host) -> str:
    """Both are lost at once: the snapshot has the networks, and the kernel the containers."""
    for file in host.state_dir.glob("journal.db*"):
        file.unlink()
    return damaged_store(host)


@pytest.mark.parametrize(
    "damage", [unreadable_row, damaged_store, emptied_journal_and_damaged_store]
)
def test_what_is_moved_away_as_the_hint_says_costs_no_container_anything(
    used: Host, damage: Callable[[Host], str]
) -> None:
    """The agent starts, the networks are there, and nothing has changed inside the containers or on the host."""
    before = {name: inside(name) for name in used.containers}
    rules = sorted(run("nft", "list", "ruleset", netns=used.netns).splitlines())
    what = damage(used)
    said = refused(used)
    assert what in said
    follow_move(said)
    used.start()
    assert {name: inside(name) for name in used.containers} == before
    assert sorted(run("nft", "list", "ruleset", netns=used.netns).splitlines()) == rules
    assert {(e["id"], e["network"]) for e in endpoints(used).values()} == {
        (used.containers[0], "demo"), (used.containers[1], "far")
    }  # fmt: skip
    clean(used)
    assert pings(used.containers[0], "10.201.0.1")
    assert pings(used.containers[1], "10.202.0.1")
    more = used.world.namespace()
    assert first_ip(used.attach(more)) not in {first_ip(e) for i, e in endpoints(used).items() if i[0] != more}


def test_a_store_that_is_a_copy_is_accepted_as_the_hint_says(used: Host) -> None:
    """A backup in the store's place is refused once, with the statement that accepts it."""
    file = used.state_dir / "store" / "store.db"
    rewritten(file, "PRAGMA wal_checkpoint(TRUNCATE)")
    backup = used.folder / "backup"
    shutil.copy(file, backup)
    backup.rename(file)  # not over the same inode, as a backup that is copied to an empty place may be
    said = refused(used)
    assert "store.db is a copy" in said
    told = re.search(r'echo "([^"]+)" \| sqlite3 (\S+)', said)
    assert told is not None
    rewritten(Path(told[2]), told[1])
    used.start()
    assert {identity[0] for identity in endpoints(used)} == set(used.containers)
    clean(used)


def test_a_store_of_another_machine_is_moved_away_as_the_hint_says(used: Host) -> None:
    """On a machine that was copied the snapshot makes the networks again."""
    file = used.state_dir / "store" / "store.db"
    rewritten(file, "UPDATE meta SET value = 'another' WHERE name = 'machine'")
    said = refused(used)
    assert "belongs to machine another" in said
    assert "move the file away" in said
    for one in file.parent.glob("store.db*"):
        one.rename(one.with_name(f"{one.name}.bad"))
    used.start()
    assert {identity[0] for identity in endpoints(used)} == set(used.containers)
    clean(used)


@pytest.mark.parametrize("name", ["journal.db", "store/store.db"])
def test_a_file_of_a_newer_linkspan_is_left_as_it_is(used: Host, name: str) -> None:
    """The hint is to upgrade; until then nothing is changed, and the containers continue."""
    file = used.state_dir / name
    rewritten(file, "UPDATE meta SET value = '99' WHERE name = 'schema'")
    before = {container: inside(container) for container in used.containers}
    said = refused(used)
    assert "has schema 99" in said
    assert "upgrade this one" in said
    assert {container: inside(container) for container in used.containers} == before
    rewritten(file, "UPDATE meta SET value = '1' WHERE name = 'schema'")
    used.start()
    clean(used)


def test_a_second_agent_names_the_first_and_starts_when_that_has_ended(used: Host) -> None:
    """The state folder has one agent, the namespace too: each error names the pid to stop."""
    used.start()
    assert used.process is not None
    said = refused(used)
    assert "stop that one first" in said
    other = used.folder / "other"
    again = refused(used, "--state-dir", str(other))
    assert "an agent runs in this network namespace already, with pid" in again
    assert "stop that one first" in again
    used.restart()
    clean(used)


def test_a_key_that_is_unknown_is_named_with_the_command_that_shows_all(used: Host) -> None:
    """A start that is refused by the settings touches nothing."""
    text = used.config.read_text()
    used.config.write_text(text + "colour = 'red'\n")
    before = {name: inside(name) for name in used.containers}
    said = refused(used)
    assert "setting colour does not exist" in said
    assert "`linkspan agent --print-config` shows every key" in said
    assert "colour" in used.cli("agent", "--print-config", "--config", str(used.config), code=1)
    used.config.write_text(text)
    used.start()
    assert {name: inside(name) for name in used.containers} == before
    clean(used)
