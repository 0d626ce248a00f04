"""Join tokens: one word that names the signers, and the record that says whom it lets in."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from linkspan.cluster.founding import join_token
from linkspan.cluster.founding.join_token import MARK, JoinToken, TokenRecord, admitted, hashed, new, parsed
from linkspan.core.errors import Denied, Invalid

AUTHORITY = "ab" * 32
SIGNERS = ("192.0.2.1:5381", "[2001:db8::1]:5381")
RECORD = TokenRecord(hash=hashed("secret"), created=100.0, expires=200.0, uses=1)


def test_a_token_is_one_word_with_all_its_parts() -> None:
    """It survives white space around it, and has nothing that a shell reads."""
    token = new(AUTHORITY, SIGNERS)
    assert parsed(f" {token.text}\n") == token
    assert token.text.startswith(MARK)
    assert token.text.replace("-", "").replace("_", "").isalnum()


@given(st.data())
def test_a_changed_token_is_refused(data: st.DataObject) -> None:
    """One other or missing letter is enough, at any place."""
    text = JoinToken("0102030405", "11" * 16, AUTHORITY, SIGNERS).text
    place = data.draw(st.integers(len(MARK), len(text) - 1))
    letter = data.draw(st.sampled_from(["", "A", "b", "9", "-", "é", "=", " "]))
    changed = text[:place] + letter + text[place + 1 :]
    try:
        found = parsed(changed)
    except Invalid:
        return
    assert found == parsed(text)  # nothing changed, or bits of the last letter that count for nothing


@pytest.mark.parametrize(
    "signers", [("example.com:5381",), ("192.0.2.1:0",), ("192.0.2.1:1",) * 17, ("192.0.2.1",), ("\n",)]
)
def test_a_token_with_signers_that_are_no_addresses_is_refused(signers: tuple[str, ...]) -> None:
    """Its checksum proves nothing: whoever makes a token computes one."""
    with pytest.raises(Invalid, match="voter"):
        parsed(JoinToken("0102030405", "11" * 16, AUTHORITY, signers).text)


def test_a_token_lets_a_host_in_once_for_each_use() -> None:
    """The same host again costs no use, also when all are spent."""
    used = admitted(RECORD, "t1", "secret", "h1", 150.0)
    assert used.used == ("h1",)
    assert admitted(used, "t1", "secret", "h1", 150.0) == used
    with pytest.raises(Denied, match="token t1 is used up"):
        admitted(used, "t1", "secret", "h2", 150.0)
    many = msgspec.structs.replace(used, uses=0)
    assert admitted(many, "t1", "secret", "h2", 150.0).used == ("h1", "h2")


@pytest.mark.parametrize(
    ("record", "secret", "now", "why"),
    [
        (None, "secret", 150.0, "is not known, or its secret is wrong"),
        (RECORD, "other", 150.0, "is not known, or its secret is wrong"),
        (RECORD, "secret", 200.0, "is expired"),
        (msgspec.structs.replace(RECORD, revoked=True), "secret", 150.0, "is revoked"),
        (msgspec.structs.replace(RECORD, revoked=True, used=("h1",)), "secret", 150.0, "is revoked"),
        (msgspec.structs.replace(RECORD, used=("h1",)), "secret", 250.0, "is expired"),
        (msgspec.structs.replace(RECORD, revoked=True), "other", 150.0, "is not known, or its secret is wrong"),
    ],
)
def test_a_token_is_refused_with_the_reason(record: TokenRecord | None, secret: str, now: float, why: str) -> None:
    """A caller without the secret learns nothing of the token."""
    with pytest.raises(Denied, match=why):
        admitted(record, "t1", secret, "h1", now)


def test_only_a_hash_of_the_secret_is_kept() -> None:
    """A reader of the record cannot join."""
    token = new(AUTHORITY, SIGNERS)
    assert token.secret not in str(join_token.hashed(token.secret))
    assert new(AUTHORITY, SIGNERS).secret != token.secret
