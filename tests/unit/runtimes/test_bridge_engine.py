"""Parts that all engines with adopted networks share: a network's successor, and how many move at once."""

from __future__ import annotations

from linkspan.core.addresses import prefix
from linkspan.runtimes.adoption.bridge_engine import (
    AT_ONCE,
    Attached,
    Move,
    Successor,
    gateway_refusals,
    haste,
)


def _attached(*, running: bool = True) -> Attached:
    return Attached("22a9", "22a9", Move("web", running, ()))


def test_more_containers_than_a_second_suffices_for_are_refused() -> None:
    """Only those that run count."""
    some = [_attached()] * AT_ONCE
    assert haste("shop", [*some, _attached(running=False)]) == []
    assert "containers run on it" in haste("shop", [*some, _attached()])[0].why


def test_a_network_of_linkspan_is_the_successor_by_its_name_and_pools() -> None:
    """Nobody else's is taken or deleted because of its name alone."""
    pools = ["fd00:31::/64", "172.31.0.0/16"]
    shop = Successor("shop", (prefix("172.31.0.0/16"), prefix("fd00:31::/64")))
    assert shop.is_made({"name": "shop", "pools": pools})
    assert not shop.is_made({"name": "shop", "pools": ["10.9.0.0/16"]})
    assert not shop.is_made({"name": "shop2", "pools": pools})
    assert not shop.is_made(None)


def test_a_gateway_is_the_first_address_or_none() -> None:
    """Linkspan has no other, and what is no subnet is named."""
    assert gateway_refusals("172.31.0.0/16", "172.31.0.1") == gateway_refusals("fd00:31::/64", "") == []
    assert "its gateway is 172.31.0.9" in next(iter(gateway_refusals("172.31.0.0/16", "172.31.0.9")))[0]
    assert "subnet nonsense" in next(iter(gateway_refusals("nonsense", "")))[0]
