"""Join tokens of this host's cluster: only a voter makes, shows and revokes them."""

from __future__ import annotations

import time

import msgspec

from linkspan.agent.own_cluster import OwnCluster
from linkspan.cluster.founding import authority_rotation, join_token, member_list
from linkspan.cluster.founding.exclusion import end_token
from linkspan.cluster.founding.join_token import NEW_SECONDS, JoinToken, TokenRecord
from linkspan.cluster.founding.signer import TOKENS
from linkspan.core.errors import Invalid, NotFound

MOST_USES = 1_000_000


class TokenTold(msgspec.Struct, frozen=True):
    """A token as it is shown: all but the secret. Times are seconds since the epoch; ``uses`` 0: any number."""

    id: str
    state: str
    created: float
    expires: float
    uses: int
    used: tuple[str, ...]
    member: bool


class JoinTokens:
    """The tokens by which other hosts join."""

    def __init__(self, cluster: OwnCluster) -> None:
        self._cluster = cluster

    async def create(self, seconds: float, uses: int, *, member: bool) -> tuple[JoinToken, TokenTold]:
        """Make a token. Raises Conflict if this host is no voter, and Invalid."""
        self._cluster.required("create a token")
        if not 0 < seconds <= join_token.LONGEST_SECONDS or not 0 <= uses <= MOST_USES:
            raise Invalid("a token is good for up to 366 days, and for up to a million hosts", "give less")
        token = await self.new(seconds=seconds, uses=uses, member=member)
        return token, await self.get(token.id)

    async def new(self, *, seconds: float = NEW_SECONDS, uses: int, member: bool) -> JoinToken:
        """Make a token that names all voters."""
        from linkspan.cluster.founding.foundation import create_token  # cryptography: 10 MB

        signers = [*member_list.signers(self._cluster.places)]
        async with self._cluster.vault() as vault:
            authority = await authority_rotation.for_joiners(self._cluster.files, vault)
            return await create_token(vault, authority, signers, seconds=seconds, uses=uses, member=member)

    async def all(self) -> list[TokenTold]:
        """Return all tokens, the newest first. Raises Conflict if this host is no voter."""
        self._cluster.required("list tokens")
        async with self._cluster.vault() as vault:
            found = await vault.all(TOKENS, TokenRecord)
        return sorted((_told(id_, one) for id_, one in found.items()), key=lambda one: -one.created)

    async def get(self, id_: str) -> TokenTold:
        """Return a token. Raises NotFound."""
        found = [one for one in await self.all() if one.id == id_]
        if not found:
            raise NotFound(f"token {id_} does not exist", "linkspan cluster token list")
        return found[0]

    async def revoke(self, id_: str) -> TokenTold:
        """Let nobody join with a token any more; hosts that did stay. Raises NotFound."""
        await self.get(id_)
        async with self._cluster.vault() as vault:
            await end_token(vault, id_)
        return await self.get(id_)


def _told(id_: str, record: TokenRecord) -> TokenTold:
    now = time.time()
    return TokenTold(id_, record.state(now), record.created, record.expires, record.uses, record.used, record.member)
