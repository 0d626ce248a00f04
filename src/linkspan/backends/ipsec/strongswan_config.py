"""Configuration of strongSwan's daemon, as text: an instance of our own, apart from any other on the host.

It has no connection and no secret: the agent loads those through the control socket, and they end with the
process.
"""

from __future__ import annotations

from linkspan.core.states.ipsec import CONTROL

LOG, CONF = "charon.log", "strongswan.conf"

_PLUGINS = (
    "random nonce openssl pem x509 revocation constraints pubkey pkcs1 pkcs8 kdf {kernel}kernel-netlink "
    "socket-default vici"
)


def main(folder: str, *, user_space: bool, rule: int, table: int) -> str:
    """Return the daemon's main file.

    ``make_before_break`` renews without a gap. Lost messages are sent again after 1, 1.4, 2 s and so on: the
    daemon knows that a peer is gone 16 s after it asked. It does not keep certificates that a peer once had,
    because they would stay valid. In user space the daemon insists on routes of its own, which it puts into
    ``table`` behind ``rule``.
    """
    lines = [
        "charon {",
        f"  load = {_PLUGINS.format(kernel='kernel-libipsec ' if user_space else '')}",
        "  install_routes = no",
        "  install_virtual_ip = no",
        f"  routing_table = {table if user_space else 0}",
        f"  routing_table_prio = {rule}",
        "  make_before_break = yes",
        "  retransmit_timeout = 1.0",
        "  retransmit_base = 1.4",
        "  retransmit_tries = 5",
        "  close_ike_on_child_failure = no",
        "  cert_cache = no",
        "  plugins {",
        "    vici {",
        f"      socket = unix://{folder}/{CONTROL}",
        "    }",
        "    kernel-libipsec {",
        f"      load = {'yes' if user_space else 'no'}",
        "    }",
        "  }",
        "  filelog {",
        "    linkspan {",
        f"      path = {folder}/{LOG}",
        "      append = yes",
        "      flush_line = yes",
        "      ike_name = yes",
        "      time_format = %s",
        "      default = 0",
        "      ike = 1",
        "      cfg = 1",
        "    }",
        "  }",
        "}",
    ]
    return "".join(f"{line}\n" for line in lines)
