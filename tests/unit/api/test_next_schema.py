"""`linkspan cluster finalize`: which schema of records all hosts write then."""

from __future__ import annotations

import pytest

from linkspan.api.cluster import next_schema
from linkspan.core.errors import Conflict
from linkspan.core.model import Host


def hosts(*reads: int) -> list[Host]:
    """Return hosts that can read these schemas."""
    return [Host(id=f"id{number}", name=f"h{number}", reads=one) for number, one in enumerate(reads)]


def test_it_is_the_newest_that_all_hosts_read() -> None:
    """Without a newer one there is nothing to do, which is no error: a release need not have one."""
    assert next_schema(hosts(2, 3, 4), 1) == 2
    assert next_schema(hosts(1, 1), 1) == 1
    assert next_schema((), 1) == 1


def test_hosts_of_an_older_release_are_named() -> None:
    """They could not read what the others write."""
    with pytest.raises(Conflict, match="writes schema 1, and h0, h2 can read no newer one"):
        next_schema(hosts(1, 2, 1), 1)
