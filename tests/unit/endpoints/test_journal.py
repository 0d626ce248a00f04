"""The journal: what it keeps over a crash, and what it says of a file that it cannot use."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from linkspan import SCHEMA
from linkspan.core.addresses import pool, prefix
from linkspan.core.errors import Conflict, Exhausted, NotFound, Unavailable
from linkspan.core.ipam import Block
from linkspan.core.model import Endpoint, Port
from linkspan.endpoints.journal import WITNESS, Journal, Released


def endpoint(container: str, *addresses: str) -> Endpoint:
    """Build an endpoint with some of everything in its record."""
    return Endpoint(
        id=container,
        ifname="eth0",
        network="demo",
        addresses=addresses or ("10.0.0.2/24", "fd00::2/64"),
        ports=(Port("", 8080, 80, "tcp"),),
        labels={"app": "wéb"},
    )


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """Open a journal of boot ``b1``."""
    opened = Journal(tmp_path / "journal.db", boot_id="b1")
    yield opened
    opened.close()


def reopened(journal: Journal, boot_id: str = "b1") -> Journal:
    """Close and open again, as the next agent would."""
    journal.close()
    return Journal(journal.path, boot_id=boot_id)


def test_each_phase_of_an_endpoint_outlasts_the_agent(journal: Journal) -> None:
    """The rows are the same after a restart, in the order of their beginning, with boot and clock."""
    for name in ("a", "b", "c"):
        journal.begin(endpoint(name))
    journal.attached(endpoint("b", "10.0.0.9/24"))
    journal.detaching(("c", "eth0"))
    before = journal.rows()
    journal = reopened(journal, "b2")
    assert journal.rows() == before
    assert [(r.endpoint.id, r.phase, r.boot_id) for r in before] == [
        ("a", "attaching", "b1"),
        ("b", "attached", "b1"),
        ("c", "detaching", "b1"),
    ]
    assert before[1].endpoint == endpoint("b", "10.0.0.9/24")
    assert 0 < before[0].attached_ns <= before[1].attached_ns <= before[2].attached_ns
    journal.close()


def test_a_forgotten_endpoint_leaves_its_addresses_cooling(journal: Journal) -> None:
    """Row and addresses change together; a second forget adds nothing."""
    journal.begin(endpoint("a"))
    journal.forget(endpoint("a"), 10.0)
    journal.forget(endpoint("a"), 20.0)
    journal = reopened(journal)
    assert journal.rows() == []
    assert journal.released() == [
        Released("demo", prefix("10.0.0.2/24"), 10.0),
        Released("demo", prefix("fd00::2/64"), 10.0),
    ]
    journal.close()


def test_cooled_addresses_are_pruned(journal: Journal) -> None:
    """An address past its cool-down is removed at the next forget."""
    for name, address, when in (
        ("a", "10.0.0.2/24", 0.0),
        ("b", "10.0.0.3/24", 30.0),
        ("c", "10.0.0.4/24", 60.0),
    ):
        journal.begin(endpoint(name, address))
        journal.forget(endpoint(name, address), when)
    assert [r.address.address for r in journal.released()] == ["10.0.0.3", "10.0.0.4"]


def test_after_a_reboot_released_addresses_cool_from_its_beginning(journal: Journal) -> None:
    """The old boot's clock says nothing in the new one, so they count as released at 0."""
    journal.begin(endpoint("a"))
    journal.forget(endpoint("a"), 1e6)
    journal = reopened(journal, "b2")
    assert {r.at for r in journal.released()} == {0.0}
    journal.close()


def test_an_identity_is_begun_once(journal: Journal) -> None:
    """A second begin names the container and leaves the first endpoint unchanged."""
    journal.begin(endpoint("a", "10.0.0.2/24"))
    with pytest.raises(Conflict, match="eth0 of container a is attached already"):
        journal.begin(endpoint("a", "10.0.0.3/24"))
    assert [r.endpoint.addresses for r in journal.rows()] == [("10.0.0.2/24",)]


def test_what_was_never_begun_cannot_be_attached_but_may_go(journal: Journal) -> None:
    """Teardown takes "already gone" as done."""
    with pytest.raises(NotFound, match="container a"):
        journal.attached(endpoint("a"))
    journal.detaching(("a", "eth0"))
    journal.forget(endpoint("a"), 1.0)
    assert journal.released() == []


def test_checkpoints_run_in_a_thread_beside_commits(journal: Journal) -> None:
    """The log moves into the file while the loop continues committing, and nothing is lost."""
    failures: list[BaseException] = []
    done = threading.Event()

    def checkpoints() -> None:
        try:
            while not done.is_set():
                journal.checkpoint()
        except BaseException as error:
            failures.append(error)
            raise

    thread = threading.Thread(target=checkpoints)
    thread.start()
    for n in range(300):
        journal.begin(endpoint(f"c{n}"))
    done.set()
    thread.join()
    assert failures == []
    journal.checkpoint()
    alone = sqlite3.connect(f"file:{journal.path}?immutable=1", uri=True)  # reads the file without its log
    assert alone.execute("SELECT count(*) FROM endpoints").fetchone() == (300,)
    alone.close()


def test_a_full_disk_fails_the_attach_and_a_later_one_works(journal: Journal) -> None:
    """The error names the file; nothing half-written is left, and no restart is needed."""
    journal.begin(endpoint("a"))
    size = journal._database.execute("PRAGMA page_count").fetchone()[0]
    journal._database.execute(f"PRAGMA max_page_count={size}")
    fat = Endpoint(id="fat", ifname="eth0", network="demo", labels={"x": "y" * 100_000})
    with pytest.raises(Unavailable, match=r"journal\.db: disk full") as caught:
        journal.begin(fat)
    assert "free some space" in caught.value.hint
    journal._database.execute("PRAGMA max_page_count=1000000")
    journal.begin(fat)
    assert [r.endpoint.id for r in journal.rows()] == ["a", "fat"]


def test_a_corrupt_file_is_named_and_left_as_it_is(tmp_path: Path) -> None:
    """Nothing of it is deleted or overwritten; the hint says how to move it away."""
    path = tmp_path / "journal.db"
    path.write_bytes(b"not a database at all " * 100)
    before = path.read_bytes()
    with pytest.raises(Unavailable, match=r"journal\.db is corrupt") as caught:
        Journal(path, boot_id="b1")
    assert f"mv {path}" in caught.value.hint
    assert path.read_bytes() == before


def test_a_damaged_page_is_found_when_the_file_is_opened(tmp_path: Path) -> None:
    """Damage in the middle, behind a sound header, is not met later by chance."""
    path = tmp_path / "journal.db"
    journal = Journal(path, boot_id="b1")
    for n in range(200):
        journal.begin(endpoint(f"c{n}"))
    journal.close()
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(b"\xa5" * 8192)
    with pytest.raises(Unavailable, match="is corrupt"):
        Journal(path, boot_id="b1")


def test_a_newer_schema_is_refused_and_left_as_it_is(journal: Journal) -> None:
    """An older linkspan does not write into a newer one's file."""
    journal.begin(endpoint("a"))
    journal._database.execute("UPDATE meta SET value = ? WHERE name = 'schema'", (str(SCHEMA + 1),))
    with pytest.raises(Unavailable, match=f"schema {SCHEMA + 1}") as caught:
        reopened(journal)
    assert "upgrade" in caught.value.hint
    again = sqlite3.connect(journal.path)
    assert again.execute("SELECT count(*) FROM endpoints").fetchone() == (1,)
    again.close()


@pytest.mark.parametrize("record", [b"{", b"\xff\xfe", b'{"id": 7}'])
def test_a_record_that_cannot_be_read_is_an_error_naming_the_file(journal: Journal, record: bytes) -> None:
    """It is not skipped: an address that looks free would be given twice."""
    journal.begin(endpoint("a"))
    journal._database.execute("UPDATE endpoints SET record = ?", (record,))
    with pytest.raises(Unavailable, match=r"journal\.db has a record that cannot be read"):
        journal.rows()


DAMAGED = {
    "phase": "UPDATE endpoints SET phase = 'atta'",
    "clock": "UPDATE endpoints SET attached_ns = 'x'",
    "record": "UPDATE endpoints SET record = 7",
    "address": "UPDATE endpoints SET record = replace(CAST(record AS TEXT), '10.0.0.2', '10.a.0.2')",
    "released": "UPDATE released SET address = 'x'",
    "time": "UPDATE released SET at = 'x'",
}


@pytest.mark.parametrize("statement", DAMAGED.values(), ids=DAMAGED)
def test_a_row_that_was_changed_by_no_agent_is_no_reason_to_end_a_container(journal: Journal, statement: str) -> None:
    """An invalid phase or address is damage: the error says so, and its hint keeps the network."""
    journal.begin(endpoint("a"))
    journal.attached(endpoint("a"))
    journal.begin(endpoint("b", "10.0.0.9/24"))
    journal.forget(endpoint("b", "10.0.0.9/24"), 5.0)
    journal._database.execute(statement)
    with pytest.raises(Unavailable, match=r"journal\.db has a record that cannot be read") as caught:
        _read(journal)
    assert f"mv {journal.path} " in caught.value.hint
    assert "containers keep their network" in caught.value.hint


def _read(journal: Journal) -> object:
    return [*journal.rows(), *journal.released()]


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    """The error says which file, and why."""
    with pytest.raises(Unavailable, match=r"missing/journal\.db cannot be opened: no such file"):
        Journal(tmp_path / "missing" / "journal.db", boot_id="b1")


POOLS = (pool("10.0.0.0/29"), pool("fd00::/125"))


class CrashMachine(RuleBasedStateMachine):
    """Attach and detach as the agent does them, with a crash possible between any two steps."""

    @initialize()
    def start(self) -> None:
        """Open a journal in a folder of its own."""
        self.folder = Path(tempfile.mkdtemp())
        self.now, self.count = 0.0, 0
        self.promised: dict[str, Endpoint] = {}
        self.underway: dict[str, Endpoint] = {}
        self.open()

    def open(self) -> None:
        """Do what the agent does at its start: rows, then blocks, then finish or undo what was underway."""
        self.journal = Journal(self.folder / "journal.db", boot_id="b1", cooldown=5.0)
        self.blocks = [Block(p, cooldown=5.0) for p in POOLS]
        for row in self.journal.rows():
            for block, address in zip(self.blocks, row.endpoint.prefixes, strict=True):
                block.restore(address, row.endpoint.id)
        for released in self.journal.released():
            next(b for b in self.blocks if b.pool.holds(released.address.single())).cool(
                released.address, released.at
            )

    @rule()
    def begin(self) -> None:
        """Allocate and record the intent; what is full restores the first family's address."""
        self.count += 1
        name, given = f"c{self.count}", []
        try:
            for block in self.blocks:
                given.append((block, block.allocate(self.now, name).address))
        except Exhausted:
            for block, address in given:
                block.release(address, self.now)
            return
        made = endpoint(name, *(str(a) for _, a in given))
        self.journal.begin(made)
        self.underway[name] = made

    @precondition(lambda self: self.underway)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        """Finish an attach: the kernel's part is done, and the runtime gets its answer."""
        name = data.draw(st.sampled_from(sorted(self.underway)))
        self.journal.attached(self.underway[name])
        self.promised[name] = self.underway.pop(name)

    @precondition(lambda self: self.promised)
    @rule(data=st.data(), steps=st.integers(1, 3))
    def detach(self, data: st.DataObject, steps: int) -> None:
        """Up to three steps of a detach; the agent is killed after the last where it is not the third."""
        name = data.draw(st.sampled_from(sorted(self.promised)))
        gone = self.promised[name]
        self.journal.detaching(gone.identity)
        if steps > 1:
            self.journal.forget(gone, self.now)
            del self.promised[name]
        if steps > 2:
            for block, address in zip(self.blocks, gone.prefixes, strict=True):
                block.release(address, self.now)
        else:
            self.crash()

    @rule(data=st.data())
    def crash_after_allocation(self, data: st.DataObject) -> None:
        """Killed before the intent was written: the address was promised to nobody and is free again."""
        block = data.draw(st.sampled_from(self.blocks))
        if block.free(self.now):
            block.allocate(self.now, "nobody")
        self.crash()

    @rule()
    def crash(self) -> None:
        """Killed: only the file is left. The next agent undoes what was never promised."""
        self.journal.close()
        self.open()
        for row in self.journal.rows():
            if row.phase == "attached":
                continue
            self.journal.forget(row.endpoint, self.now)
            for block, address in zip(self.blocks, row.endpoint.prefixes, strict=True):
                block.release(address, self.now)
            self.promised.pop(row.endpoint.id, None)
        self.underway.clear()

    @rule(seconds=st.floats(0.0, 6.0))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.now += seconds

    @invariant()
    def held_is_what_the_rows_say(self) -> None:
        """No address is lost or held twice, and every endpoint that a runtime was promised is there."""
        rows = {r.endpoint.id: r.endpoint for r in self.journal.rows()}
        assert rows == {**self.promised, **self.underway}
        for index, block in enumerate(self.blocks):
            recorded = [(e.prefixes[index].packed, e.id) for e in rows.values()]
            assert dict(block.held) == dict(recorded)
            assert len(dict(recorded)) == len(recorded)

    def teardown(self) -> None:
        """Take the folder away."""
        self.journal.close()
        shutil.rmtree(self.folder)


TestCrashAtAnyStep = CrashMachine.TestCase
TestCrashAtAnyStep.settings = settings(deadline=None)


def test_a_journal_that_is_new_or_older_than_the_last_agent_s_is_doubted(journal: Journal) -> None:
    """The file beside it shows that; a host's first agent doubts nothing, and one recovery ends the doubt."""
    assert journal.doubt() == ""
    journal.witness()
    assert journal.doubt() == ""
    assert journal.witnessed_this_boot()
    journal = reopened(journal)
    backup = journal.path.with_name("backup")
    journal.checkpoint()
    shutil.copy(journal.path, backup)
    journal.witness()
    assert reopened(journal).doubt() == ""
    for file in journal.path.parent.glob("journal.db*"):
        file.unlink()
    journal = Journal(journal.path, boot_id="b2")
    assert journal.doubt() == "is new, though an agent ran here before"
    assert not journal.witnessed_this_boot()
    journal.close()
    for file in journal.path.parent.glob("journal.db*"):
        file.unlink()
    shutil.copy(backup, journal.path)
    journal = Journal(journal.path, boot_id="b1")
    assert journal.doubt() == "is older than the last agent"
    journal.witness()
    assert journal.doubt() == ""
    journal.close()


@pytest.mark.parametrize("content", [b"", b"{", b'{"boot_id": 1}'])
def test_a_damaged_witness_doubts_nothing(journal: Journal, content: bytes) -> None:
    """It is written over at the next start."""
    journal.path.with_name(WITNESS).write_bytes(content)
    assert journal.doubt() == ""
    journal.witness()
    assert journal.witnessed_this_boot()


def test_an_endpoint_goes_on_under_another_id(journal: Journal) -> None:
    """One row, in the place of the other, without a cool-down of its address; every queued removal counts for it."""
    journal.begin(endpoint("lsr0"))
    journal.attached(endpoint("lsr0"))
    journal.adopt(endpoint("c1"), instead=("lsr0", "eth0"))
    (row,) = journal.rows()
    assert (row.endpoint, row.phase, row.boot_id, row.attached_ns) == (endpoint("c1"), "attached", "b1", 0)
    assert journal.released() == []
