"""libnftables by ctypes: one command text is one transaction, in the calling thread's namespace."""

from __future__ import annotations

import ctypes
import functools
import os
import struct
import weakref

import msgspec

from linkspan.core.errors import KernelError, Unavailable
from linkspan.kernel.io.netlink import NETFILTER, Message, Socket, attributes, text

# NFT_CTX_OUTPUT_* in nftables/libnftables.h
_STATELESS, _HANDLES, _JSON, _TERSE = 1 << 2, 1 << 3, 1 << 4, 1 << 11
_GET_TABLE = (10 << 8) | 1  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETTABLE
_GET_GENERATION = (10 << 8) | 16  # NFT_MSG_GETGEN
_FD_SETSIZE = 1024  # select(2): a descriptor above it ends the process
_FAMILIES = {"inet": 1, "ip": 2, "netdev": 5, "bridge": 7, "ip6": 10}


@functools.cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libnftables.so.1")
    except OSError as error:
        raise Unavailable("libnftables is not installed", "apt install nftables") from error
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_get_output_buffer.restype = ctypes.c_char_p
    library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
    return library


def _require_low_descriptor() -> None:
    """Raise Unavailable where the next descriptor is too high: libnftables waits by select(), and would abort us."""
    free = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    os.close(free)
    if free >= _FD_SETSIZE:
        raise Unavailable(
            f"this process has {free} files open, and libnftables works with less than {_FD_SETSIZE} only",
            "restart the agent; if that happens again, report it",
        )


class Nft:
    """A libnftables context; only for the thread that made it."""

    def __init__(self) -> None:
        """Make a context, with a netlink socket of its own. Raises Unavailable where the process has too many files."""
        library = _library()
        _require_low_descriptor()
        self._context = ctypes.c_void_p(library.nft_ctx_new(0))
        # Once and never again: the library frees twice what is closed twice.
        self._free = weakref.finalize(self, library.nft_ctx_free, self._context)
        library.nft_ctx_buffer_output(self._context)
        library.nft_ctx_buffer_error(self._context)
        self._library = library

    def close(self) -> None:
        """Free the context; only this may be called again afterwards."""
        self._free()

    def run(self, commands: str) -> str:
        """Run commands as one transaction and return nft's output; raises KernelError.

        The error has nft's own first line, and no errno: libnftables gives none.
        """
        failed = self._library.nft_run_cmd_from_buffer(self._context, commands.encode())
        output = self._library.nft_ctx_get_output_buffer(self._context)
        words = self._library.nft_ctx_get_error_buffer(self._context)
        if failed:
            said = words.decode(errors="replace").strip().splitlines() or ["no reason given"]
            raise KernelError(f"nftables: {said[0].removeprefix('Error: ')}")
        return str(output.decode(errors="replace"))

    def try_out(self, commands: str) -> None:
        """Have the kernel check a transaction, and change nothing; raises KernelError as ``run``."""
        self._library.nft_ctx_set_dry_run(self._context, True)
        try:
            self.run(commands)
        finally:
            self._library.nft_ctx_set_dry_run(self._context, False)

    def text(self, command: str, *, handles: bool = False) -> str:
        """List as text, without counters and without sets' elements; ``handles`` adds those of chains and rules."""
        flags = _STATELESS | _TERSE | (_HANDLES if handles else 0)
        self._library.nft_ctx_output_set_flags(self._context, flags)
        try:
            return self.run(command)
        finally:
            self._library.nft_ctx_output_set_flags(self._context, 0)

    def json(
        self, command: str, *, terse: bool = False, counters: bool = False
    ) -> list[dict[str, dict[str, object]]]:
        """List as JSON: a list of objects such as {"set": {...}}; ``terse`` leaves sets' elements out.

        ``counters`` includes their numbers.
        """
        flags = _JSON | (0 if counters else _STATELESS) | (_TERSE if terse else 0)
        self._library.nft_ctx_output_set_flags(self._context, flags)
        try:
            listed = msgspec.json.decode(self.run(command))
        finally:
            self._library.nft_ctx_output_set_flags(self._context, 0)
        return list(listed["nftables"])


def table_exists(socket: Socket, family: str, name: str) -> bool:
    """Ask the kernel for one table: 20 us, while a listing by libnftables reads the whole ruleset."""
    body = bytes([_FAMILIES[family], 0, 0, 0]) + text(1, name)  # NFTA_TABLE_NAME
    try:
        socket.get(Message(_GET_TABLE, 0, body, f"find table {family} {name}"))
    except KernelError:
        return False
    return True


def generation(socket: Socket) -> int:
    """Return the ruleset's generation, which grows by one with each transaction of any program."""
    answer = socket.get(Message(_GET_GENERATION, 0, bytes(4), "find the generation of the ruleset"))
    return int(struct.unpack(">I", attributes(answer, 4)[1])[0])  # NFTA_GEN_ID


def netfilter_socket() -> Socket:
    """Return a netlink socket to the netfilter subsystems of the calling thread's namespace."""
    return Socket(NETFILTER)
