"""Settings that every other host would read are checked before the agent starts."""

from __future__ import annotations

import pytest

from linkspan import config
from linkspan.errors import Invalid


@pytest.mark.parametrize("id_", ["a/b", "a b", "-a", "x" * 129])
def test_a_host_id_that_no_key_could_bear_is_refused(id_: str) -> None:
    """It is named, with the setting; `host show` could not ask for it, nor could the store's keys have it."""
    with pytest.raises(Invalid, match="host_id") as refused:
        config.load("", {"host_id": id_})
    assert id_ in refused.value.message


def test_an_address_to_advertise_that_is_none_is_refused() -> None:
    """No peer could read the record of such a host."""
    with pytest.raises(Invalid, match="advertise: 'gate'") as refused:
        config.load("", {"advertise": ["203.0.113.7", "gate"]})
    assert "203.0.113.7" in refused.value.hint


def test_what_is_right_is_taken() -> None:
    """Both families, and a name with dots."""
    loaded = config.load("", {"host_id": "h1.example.org", "advertise": ["203.0.113.7", "2001:db8::7"]})
    assert (loaded.host_id, loaded.advertise) == ("h1.example.org", ("203.0.113.7", "2001:db8::7"))
