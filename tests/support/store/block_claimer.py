"""A host in a process of its own: claims blocks that another claims too, and prints how many it got.

block_claimer.py URL NAME COUNT
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from linkspan.store.factory import open_store


async def main(url: str, name: str, count: int) -> int:
    """Claim, and return how many claims won."""
    store = open_store(url, Path("/nowhere"))
    value = name.encode()
    won = [
        await store.transaction({f"block/{number}": value, f"by/{name}/{number}": b""}, absent=[f"block/{number}"])
        for number in range(count)
    ]
    await store.close()
    return sum(map(bool, won))


if __name__ == "__main__":
    sys.stdout.write(str(asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))))
