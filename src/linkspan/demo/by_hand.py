"""Act one: a container network by hand, one command after the other, and what fails before each.

The commands are not written here: they are linkspan's own plan of a network with two containers, typed in the
order in which a person would find out that each is needed.
"""

from __future__ import annotations

import msgspec

from linkspan.core import ruleset
from linkspan.core.model import host_ifname
from linkspan.core.states.host import (
    Address,
    Bridge,
    ForwardAccept,
    Interface,
    NftChain,
    NftElement,
    NftSet,
    NftTable,
    Route,
    State,
    Sysctl,
    Veth,
)
from linkspan.demo.chapter_network import CONTAINERS, GATEWAY, planned
from linkspan.demo.stage import HOST, Stage
from linkspan.diagnose.plan import plan
from linkspan.kernel.io.namespaces import Namespaces, inode, open_namespace

BEYOND = "198.51.100.2"
"""An address of a range for documentation (RFC 5737)."""


class ByHand:
    """The steps of chapter 2.1, in order."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._namespaces = Namespaces()
        self._inodes: dict[str, int] = {}

    def _commands(self, *states: State) -> list[str]:
        return [c for state in plan.ordered(states) for c in plan.commands(state, self._namespaces.path)]

    def _states(self) -> list[State]:
        """Return the whole plan: rules, network and both containers, for a host whose FORWARD chain drops."""
        for name in CONTAINERS:
            fd = open_namespace(f"/run/netns/{name}")
            self._namespaces.register(inode(fd), f"/run/netns/{name}")
            self._inodes[name] = inode(fd)
        return planned(self._inodes)

    def show(self) -> None:
        """Go through the steps."""
        stage, words = self._stage, self._stage.words
        stage.title(words("1. Two containers: network namespaces, with nothing in them but lo"))
        for name in CONTAINERS:
            stage.say(f"  [cyan]$[/cyan] ip netns add {name}")
            stage.add(name)
        states = self._states()
        a, b = (self._of(states, name) for name in CONTAINERS)
        self._bridge(states)
        stage.title(words("3. A cable from netns_A to the bridge: a veth pair, its other end born in the container"))
        stage.typed(self._commands(*(s for s in a if isinstance(s, Veth | Interface | Address))))
        bridge = next(s for s in states if isinstance(s, Bridge))
        stage.ping("netns_A", GATEWAY, works=False, why=words("the bridge is down"))
        stage.typed([f"ip link set {bridge.name} up"])
        stage.ping("netns_A", GATEWAY, works=True)
        self._outside(states, a)
        self._neighbour(b)
        self._guard(states)

    def _of(self, states: list[State], container: str) -> list[State]:
        number = next(
            s.peer_netns
            for s in states
            if isinstance(s, Veth) and s.name == host_ifname(False, container, "eth0")
        )
        return [
            s
            for s in states
            if (isinstance(s, Veth) and s.peer_netns == number) or getattr(s, "netns", 0) == number
        ]

    def _bridge(self, states: list[State]) -> None:
        stage = self._stage
        stage.title(stage.words("2. A bridge on the host, whose address is the containers' gateway"))
        bridge = next(s for s in states if isinstance(s, Bridge))
        address = next(s for s in states if isinstance(s, Address) and s.device == bridge.name)
        stage.typed(self._commands(msgspec.structs.replace(bridge, up=False), address))

    def _outside(self, states: list[State], container: list[State]) -> None:
        stage, words = self._stage, self._stage.words
        title = words(
            "4. The way out: {address} is a machine beyond the host, which has no route to containers", address=BEYOND
        )
        stage.title(title)
        stage.ping("netns_A", BEYOND, works=False, why=words("netns_A has no route to it"))
        stage.typed(self._commands(*(s for s in container if isinstance(s, Route))))
        stage.ping("netns_A", BEYOND, works=False, why=words("the host does not forward"))
        stage.typed(self._commands(*(s for s in states if isinstance(s, Sysctl))))
        stage.say("  " + words("Docker, if installed, makes the host drop forwarded packets:"))
        stage.typed(["iptables -P FORWARD DROP"])
        stage.ping("netns_A", BEYOND, works=False, why=words("the FORWARD chain drops it"))
        stage.typed(self._commands(*(s for s in states if isinstance(s, ForwardAccept))))
        why = words("it arrives, but nobody there has a route back to {address}", address=CONTAINERS["netns_A"])
        stage.ping("netns_A", BEYOND, works=False, why=why)
        text = words("Source NAT gives outgoing packets the host's own address, to which answers can return:")
        stage.say(f"  {text}")
        stage.typed(self._commands(*map(_shortened, (s for s in states if _is_nat(s)))))
        stage.ping("netns_A", BEYOND, works=True)

    def _neighbour(self, container: list[State]) -> None:
        stage, words = self._stage, self._stage.words
        stage.title(words("5. The second container, in the same way, and the two reach each other"))
        stage.typed(self._commands(*container))
        stage.ping("netns_A", CONTAINERS["netns_B"], works=True)
        stage.ping("netns_B", CONTAINERS["netns_A"], works=True)
        stage.typed(["ip -n netns_A neigh show to 172.18.0.3"], HOST)
        text = words(
            "On one bridge only the other's MAC matters (layer 2); for all else the bridge is the gateway (layer 3)."
        )
        stage.say(f"  {text}")

    def _guard(self, states: list[State]) -> None:
        stage, words = self._stage, self._stage.words
        rest = [
            s for s in states if isinstance(s, NftTable | NftSet | NftChain | NftElement) and not _is_nat(s)
        ]
        stage.title(words("6. What by-hand set-ups leave out: no container may speak with another's address"))
        forged = "ip -n netns_B addr add 172.18.0.99/16 dev eth0"
        stage.typed([forged])
        stage.typed(
            ["ip netns exec netns_B ping -c1 -W1 -I 172.18.0.99 172.18.0.2 >/dev/null && echo answered"]
        )
        commands = self._commands(*rest)
        for command in commands:
            stage.quietly("nsenter", f"--net=/run/netns/{HOST}", "sh", "-c", command)
        text = words(
            "({number} nft commands: `linkspan plan` shows them; one more container is one more element)",
            number=len(commands),
        )
        stage.say(f"  {text}")
        probe = "ip netns exec netns_B ping -c1 -W1 -I 172.18.0.99 172.18.0.2 >/dev/null || echo no answer"
        stage.typed([probe])
        stage.ping("netns_B", CONTAINERS["netns_A"], works=True, why=words("its own address is allowed"))

    def take_away(self) -> None:
        """Remove everything made by hand, so that linkspan starts from nothing."""
        self._stage.typed(
            [
                "ip link delete ls-mybr0",
                *(f"ip link delete {host_ifname(False, name, 'eth0')}" for name in CONTAINERS),
                "nft delete table inet linkspan",
                "nft delete table bridge linkspan",
                "sysctl -qw net/ipv4/ip_forward=0",
                "iptables -P FORWARD ACCEPT && iptables -F FORWARD",
            ]
        )


def _is_nat(state: State) -> bool:
    """Return whether a state is what IPv4 masquerade needs."""
    match state:
        case NftTable(family, _):
            return family == ruleset.INET
        case NftSet(family, _, name) | NftElement(family, _, name):
            return family == ruleset.INET and name in ("pools4", "masquerade4")
        case NftChain(_, _, name):
            return name == "postrouting"
    return False


def _shortened(state: State) -> State:
    """Reduce the chain to the one rule that the tour explains."""
    if isinstance(state, NftChain):
        return msgspec.structs.replace(state, rules=tuple(r for r in state.rules if "@masquerade4" in r))
    return state
