"""linkspan's own etcd whose quota is full: the voter's agent frees it, and nobody does anything."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from support.lab.bare_runs import BareRun
from support.polling import SHARED, until

pytestmark = pytest.mark.skipif(shutil.which("etcdctl") is None, reason="needs etcd and etcdctl")

QUOTA = 16 << 20
PART = "x" * 500_000
"""A value that is put again and again: history takes the quota."""


@pytest.fixture
def bare() -> Iterator[BareRun]:
    """Give a voter and a client, whose etcd may have 16 MiB."""
    found = BareRun()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("ETCD_QUOTA_BACKEND_BYTES", str(QUOTA))  # which etcd reads by itself
        try:
            found.up(2)
            found.join("h2", found.init())
            yield found
        finally:
            found.run("down")


def fill(bare: BareRun) -> None:
    """Write into etcd as its root until it takes no more."""
    argv = [*bare.etcdctl_words("h1", "root"), "put", "/linkspan/other/file"]

    def full() -> bool:
        done = subprocess.run(argv, input=PART, capture_output=True, text=True, check=False)
        assert done.returncode == 0 or "database space exceeded" in done.stderr, done.stderr
        return done.returncode != 0

    until(full, "its quota is full")


def told(bare: BareRun, host: str) -> list[str]:
    """Return what a host's agent has told of its store."""
    events = map(json.loads, bare.exec(host, "linkspan events -o json").splitlines())
    return [one["what"] for one in events if one["type"] == "store"]


def test_the_voter_frees_its_etcd(bare: BareRun) -> None:
    """It compacts, defragments as etcd's root, and lifts the alarm; a client says that nothing must be done."""

    def known() -> bool:
        fill(bare)  # the voter may have freed it before the client looked
        if bare.status("h2")["store"]["state"] != "full":
            return False
        checks = {one["check"]: one for one in json.loads(bare.exec("h2", "linkspan doctor -o json", code=-1))}
        return "nothing: an agent makes room within two minutes" in checks["store alarms"]["fix"]

    until(known, "the client knows", 60 * SHARED)

    def taken() -> bool:
        words = bare.run("exec", "h2", "--", "linkspan network create demo --pool 10.244.0.0/16", code=-1)
        return words.returncode == 0

    until(taken, "etcd takes writes again", 120 * SHARED)
    until(lambda: any("was defragmented" in words for words in told(bare, "h1")), "h1 has defragmented it", 30 * SHARED)
    assert not any("was defragmented" in words for words in told(bare, "h2"))
    until(lambda: bare.status("h1")["store"]["ok"] and bare.status("h2")["store"]["ok"], "all is well", 60 * SHARED)
