"""nftables objects: our tables, with their sets, chains and elements.

Rules are compared as nft lists them. Versions of nft differ in how they print a rule, so the driver remembers
what nft printed right after a put as this chain's rendering. A new agent with a version of nft that prints it
otherwise puts the chain once more (one transaction, no packet passes fewer rules).
"""

from __future__ import annotations

import contextlib
import functools
import re
import shlex
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import msgspec

from linkspan.core.driver_contract import Support
from linkspan.core.errors import KernelError, LinkspanError
from linkspan.core.kinds import ALL, BRIDGED, Event, Kind, Sort
from linkspan.core.shell import Shell
from linkspan.core.states.host import (
    HOST,
    Key,
    NftChain,
    NftElement,
    NftExit,
    NftLinkChain,
    NftSet,
    NftTable,
    State,
)
from linkspan.kernel.drivers import nftables_chains, nftables_elements
from linkspan.kernel.drivers.nftables_elements import Layout, layout, link_index, transact
from linkspan.kernel.drivers.nftables_texts import (
    chains_of,
    delete_commands,
    element_text,
    has_flag,
    put_commands,
    set_text,
    sets_of,
)
from linkspan.kernel.io.nftables import Nft, generation, netfilter_socket, table_exists
from linkspan.kernel.local_host import LocalHost

_MANY = 200
"""Elements of new sets from which on they are put before the rules, without libnftables: 10,000 take it 0.1 s."""
_FEW = 8
"""Chains up to which each is listed by itself after a put: a thousand policies have some thousand chains."""

TABLES = (("inet", "linkspan"), ("bridge", "linkspan"), ("netdev", "linkspan"))
"""All tables of ours, by (family, name)."""
_EVERYWHERE, _FAST = TABLES[:2], TABLES[2]
"""Those that every host with containers has, and that of networks with ``fast=true``."""

NEWER = ("icmpv6 taddr",)
"""Expressions of our rules that an older nft does not know: 1.0.6, of Debian 12, has no ``taddr``. Without its rule a
container may answer for the IPv6 address of another one on its bridge; ``doctor`` says so."""

_SomeChain = TypeVar("_SomeChain", bound=NftChain)


class FirewallDriver:
    """NftTable, NftSet, NftChain, NftElement, NftLinkChain and NftExit: all by one transaction for a batch."""

    def __init__(self) -> None:
        self._nft = Nft()
        self._netfilter = netfilter_socket()
        self._renderings: dict[Key, tuple[NftChain, NftChain]] = {}
        """Chains that were put, each with how nft listed it then; those that no listing has are forgotten."""
        self._layouts: dict[tuple[str, str, str], Layout] = {}
        self._data: dict[Key, tuple[str, ...]] = {}
        """Where maps lead, as far as it is known: the kernel changes an element's data only by a delete and an add."""
        self._listed: tuple[int, tuple[State, ...]] = (-1, ())
        """The last listing, with the ruleset's generation: it is valid until the kernel has another generation."""
        self._links: dict[str, int] = {}
        """The links of chains and elements in the last listing, with their indexes: a new link has another index."""

    def close(self) -> None:
        """Close the sockets; only this may be called again afterwards."""
        self._netfilter.close()
        self._nft.close()

    def probe(self) -> Support:
        """Return support: ask nf_tables itself for a table of ours, which need not exist."""
        try:
            self._nft.run("list tables")
        except LinkspanError as error:
            return Support("", error.message)
        return Support("kernel")

    @property
    def has_tables(self) -> bool:
        """True if there are the tables that every host with containers has."""
        return all(table_exists(self._netfilter, *table) for table in _EVERYWHERE)

    def observe(self, netns: int) -> Iterable[State]:
        """Return everything in our tables; list again after a transaction, whoever made it."""
        if netns != HOST:
            return ()
        before = generation(self._netfilter)
        if self._is_listed(before):
            return self._listed[1]
        # Before the listing: of a link that is replaced meanwhile, the listing may have what went with the former one.
        links = _every_index() if table_exists(self._netfilter, *_FAST) else {}
        found, owned = self._list()
        on = (s.data[0] if isinstance(s, NftExit) else s.link for s in found if isinstance(s, NftExit | NftLinkChain))
        self._links = {link: links.get(link, 0) for link in on}
        # With an owner's socket its tables go, and that is no transaction (nft_rcv_nl_event in nf_tables_api.c). In a
        # list that another transaction ran into, part may be older than the rest.
        if not owned and generation(self._netfilter) == before:
            self._listed = before, found
        return found

    def stamp(self) -> object:
        """Return the generation of the last listing, and the links that it names, as long as it is valid."""
        now = generation(self._netfilter)
        return (now, frozenset(self._links.items())) if self._is_listed(now) else object()

    def _is_listed(self, now: int) -> bool:
        """Return whether the last listing is valid in a generation: what is on a link goes with it, without another."""
        return self._listed[0] == now and self._links == _indexes(self._links)

    def _list(self) -> tuple[tuple[State, ...], bool]:
        """Return all that is in our tables, and whether a process owns one of them (``flags owner``).

        Each table is listed whole, or not at all where somebody deletes it meanwhile.
        """
        found: list[State] = []
        owned = False
        for family, name in TABLES:
            if not table_exists(self._netfilter, family, name):
                continue
            try:
                listed = self._nft.json(f"list table {family} {name}")
                chains = self._chains(family, name)
            except KernelError as error:
                if not _gone(error):
                    raise
                continue
            owned = owned or has_flag(listed, "owner")
            # Dormant: the kernel passes no packet to its chains. ``add table`` wakes it.
            found.append(NftTable(family, name, ("dormant",) if has_flag(listed, "dormant") else ()))
            for chain in chains:
                wanted, rendering = self._renderings.get(chain.key, (chain, None))
                found.append(wanted if rendering == chain else chain)
            found.extend(sets_of(listed))
        there = {state.key for state in found if isinstance(state, NftChain)}  # others come and go with containers
        self._renderings = {key: known for key, known in self._renderings.items() if key in there}
        self._learn(found)
        self._data = {state.key: state.data for state in found if isinstance(state, NftElement) and state.data}
        return tuple(found), owned

    def _chains(self, family: str, table: str) -> list[NftChain]:
        """Return all chains of a table."""
        return chains_of(family, table, self._nft.text(f"list table {family} {table}"))

    def _chain(self, chain: NftChain) -> list[NftChain]:
        """Return one chain, as it is now."""
        text = self._nft.text(f"list chain {chain.family} {chain.table} {chain.name}")
        return chains_of(chain.family, chain.table, text)

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Put in one transaction, and then delete in one; if one fails, by halves, to find the states that fail.

        Two things have a transaction of their own before that: many elements of new sets, which no rule uses yet, and,
        if libnftables is needed for other things that go, elements whose sets stay. What is in a map that goes is
        deleted with the rules that use the map: until then packets find their way in it. Chains with hooks go before
        that. A packet that has come to one keeps the rules of before a transaction, but finds the elements of after it
        (nft_do_chain and nft_lookup_eval): it would be dropped where it no longer finds its way.
        """
        failed: dict[Key, LinkspanError] = {}
        if put and not self._by_netlink(put, ()):
            self._learn(put)
            rest = self._fill(put)
            before = generation(self._netfilter)
            self._transact(rest, self._putting, failed)
            self._remember([s for s in rest if isinstance(s, NftChain) and s.key not in failed], before)
        self._data.update((s.key, s.data) for s in put if isinstance(s, NftElement) and s.data and s.key not in failed)
        if delete:
            tables = {(s.family, s.name) for s in delete if isinstance(s, NftTable)}
            outside = [s for s in delete if isinstance(s, NftTable) or _table(s) not in tables]
            sets = {_set_name(s) for s in outside if isinstance(s, NftSet)}
            # With a set go its elements, and a map's would keep the chains to which they lead.
            outside = [s for s in outside if not isinstance(s, NftElement) or s.data or _set_name(s) not in sets]
            if not self._by_netlink((), outside):
                early = [s for s in outside if isinstance(s, NftElement) and _set_name(s) not in sets]
                rest = [s for s in outside if not isinstance(s, NftElement) or _set_name(s) in sets]
                if early and not (rest and self._by_netlink((), early)):
                    rest = [*self._present(early), *rest]
                hooks = [s for s in rest if isinstance(s, NftChain) and s.hook]
                self._transact(hooks, delete_commands, failed)
                self._transact([s for s in rest if s not in hooks], delete_commands, failed)
            for state in delete:
                if isinstance(state, NftElement) and state.data:
                    self._data.pop(state.key, None)
        return failed

    def _present(self, states: Sequence[State]) -> Sequence[State]:
        """Return those of the states that exist: a transaction fails because of a single one that does not."""
        if len(states) == 1:
            return states
        keys = {state.key for state in self._list()[0]}
        return [state for state in states if state.key in keys]

    def _learn(self, states: Sequence[State]) -> None:
        """Remember how the elements of plain sets are laid out."""
        for state in states:
            if isinstance(state, NftSet) and (found := layout(state)):
                self._layouts[state.family, state.table, state.name] = found

    def _by_netlink(self, put: Sequence[State], delete: Sequence[State]) -> bool:
        """Apply elements of plain sets, and chains of verdicts, without libnftables; return False for any other work.

        Also if the kernel refuses: libnftables then finds the state, and the reason.
        """
        if not all(self._is_plain(state) for state in (*put, *delete)):
            return False
        added, removed = ([s for s in some if isinstance(s, NftElement)] for some in (put, delete))
        new, gone = ([s for s in some if isinstance(s, NftChain)] for some in (put, delete))
        try:
            adding = [*nftables_elements.messages(added, self._layouts, add=True)]
        except KernelError:  # the link to which one leads is gone
            return False
        batch = [
            *nftables_chains.added(new),
            *nftables_elements.messages([*self._outdated(added), *removed], self._layouts, add=False),
            *adding,
            *nftables_chains.deleted(gone),
        ]
        return not batch or transact(self._netfilter, batch) is None

    def _is_plain(self, state: State) -> bool:
        if isinstance(state, NftElement):
            return (state.family, state.table, state.set) in self._layouts
        return isinstance(state, NftChain) and nftables_chains.of_verdicts(state)

    def _outdated(self, put: Iterable[State]) -> Iterator[NftElement]:
        """Yield the elements of maps that lead somewhere else now."""
        for state in put:
            if isinstance(state, NftElement) and state.data and self._data.get(state.key, state.data) != state.data:
                yield state

    def _fill(self, put: Sequence[State]) -> Sequence[State]:
        """Put new sets with their elements if these are many; return what is left to put."""
        sets = [s for s in put if isinstance(s, NftTable) or (isinstance(s, NftSet) and not s.data)]
        new = {_set_name(s) for s in sets if isinstance(s, NftSet)}
        early, rest = list[State](), list[State]()
        for state in put:
            (early if isinstance(state, NftElement) and _set_name(state) in new else rest).append(state)
        if len(early) < _MANY:
            return put
        try:
            self._nft.run("\n".join(put_commands(sets, ())))
        except KernelError:  # the transaction of all finds out which state fails
            return put
        return rest if self._by_netlink(early, ()) else put

    def _putting(self, states: Sequence[State]) -> Iterator[str]:
        return put_commands(states, list(self._outdated(states)))

    def _transact(
        self,
        states: Sequence[State],
        render: Callable[[Sequence[State]], Iterator[str]],
        failed: dict[Key, LinkspanError],
        *,
        looked: bool = False,
    ) -> None:
        """Render and run one transaction. If it fails, look what there is and try again, and then by halves."""
        if not states:
            return
        try:
            self._nft.run("\n".join(render([self._accepted(state) for state in states])))
        except KernelError as error:
            if not looked:
                there = {state.key for state in self._list()[0]}  # and where maps lead
                left = [state for state in states if state.key in there] if render is delete_commands else states
                self._transact(left, render, failed, looked=True)
            elif (middle := len(states) // 2) > 0:
                for half in (states[:middle], states[middle:]):
                    self._transact(half, render, failed, looked=True)
            elif render is not delete_commands or not _gone(error):
                failed[states[0].key] = error.within(_name(states[0]))

    @functools.cached_property
    def _lacking(self) -> tuple[str, ...]:
        return tuple(word for word in NEWER if not _knows(self._nft, word))

    def _accepted(self, state: State) -> State:
        """Return a chain without the rules that this version of nft cannot read, any other state unchanged."""
        if not isinstance(state, NftChain) or not self._lacking:
            return state
        rules = tuple(rule for rule in state.rules if not any(word in rule for word in self._lacking))
        return msgspec.structs.replace(state, rules=rules)

    def _remember(self, chains: list[NftChain], before: int) -> None:
        """Remember how nft lists the chains, unless anybody else changed anything since generation ``before``.

        Otherwise a chain that somebody emptied in between would be taken for the one that was put.
        """
        try:
            tables = {_table(c) for c in chains} if len(chains) > _FEW else ()
            every = [self._chains(*table) for table in tables] if tables else [self._chain(c) for c in chains]
            listed = {chain.key: chain for found in every for chain in found}
        except KernelError as error:
            if not _gone(error):
                raise
            return
        if generation(self._netfilter) != before + 1:
            return
        for chain in chains:
            if chain.key in listed:
                self._renderings[chain.key] = (chain, listed[chain.key])


def _knows(nft: Nft, expression: str) -> bool:
    """Return whether this version of nft knows an expression."""
    try:
        nft.run(f"describe {expression}")
    except KernelError as error:
        if "syntax error" in error.message:
            return False
        raise  # a guard must not go because of another fault
    return True


def _every_index() -> dict[str, int]:
    """Return the index of each link of the calling thread's namespace."""
    return {link: index for index, link in socket.if_nameindex()}


def _indexes(links: Iterable[str]) -> dict[str, int]:
    """Return the indexes of links, 0 for one that does not exist."""
    found = {}
    for link in links:
        found[link] = 0
        with contextlib.suppress(KernelError):
            found[link] = link_index(link)
    return found


def _gone(error: KernelError) -> bool:
    """Return whether nft says that the object does not exist: somebody may delete it between two calls."""
    return re.search("No such file|does not exist", error.message) is not None


def alone(state: State) -> bool:
    """Return whether a state is an element that leads nowhere: of a set, not of a map, which may lead to new chains.

    One of the fast path is not alone: it comes with others of a map, or one direction of a flow would be on the path.
    """
    return isinstance(state, NftElement) and not state.data and state.family != "netdev"


def _set_name(state: NftSet | NftElement) -> tuple[str, str, str]:
    """Return the set that a state is, or is in."""
    return state.family, state.table, state.name if isinstance(state, NftSet) else state.set


def _table(state: State) -> tuple[str, str]:
    assert isinstance(state, NftSet | NftChain | NftElement)
    return state.family, state.table


def _name(state: State) -> str:
    return " ".join(str(part) for part in state.key)


def driver(_host: LocalHost) -> FirewallDriver:
    """Return the driver of nftables."""
    return FirewallDriver()


def _commands(*texts: str) -> tuple[str, ...]:
    return tuple(f"nft {shlex.quote(text)}" for text in texts)


def _add_table(state: NftTable, _shell: Shell) -> tuple[str, ...]:
    return _commands(f"add table {state.family} {state.name}")


def _add_set(state: NftSet, _shell: Shell) -> tuple[str, ...]:
    what = "map" if state.data else "set"
    return _commands(f"add {what} {state.family} {state.table} {state.name} {set_text(state)}")


def _add_chain(state: NftChain, _shell: Shell) -> tuple[str, ...]:
    where = f"{state.family} {state.table} {state.name}"
    hook = f" {{ {state.hook} }}" if state.hook else ""
    return _commands(f"add chain {where}{hook}", *(f"add rule {where} {rule}" for rule in state.rules))


def _add_element(state: NftElement, _shell: Shell) -> tuple[str, ...]:
    return _commands(f"add element {state.family} {state.table} {state.set} {{ {element_text(state)} }}")


def _typed(states: Sequence[_SomeChain]) -> list[_SomeChain]:
    """Return chains in an order that nft accepts: each one after those to which it jumps."""
    chains = {(state.family, state.table, state.name): state for state in states}
    done: dict[_SomeChain, None] = {}
    met: set[_SomeChain] = set()

    def visit(chain: _SomeChain) -> None:
        met.add(chain)
        for rule in chain.rules:
            for name in _JUMP.findall(rule):
                target = chains.get((chain.family, chain.table, name))
                if target is not None and target not in met:
                    visit(target)
        done.setdefault(chain)

    for state in states:
        if state not in met:
            visit(state)
    return list(done)


_JUMP = re.compile(r"\b(?:jump|goto) ([^\s;,}]+)")


def _table_key(state: NftSet | NftChain | NftElement) -> Key:
    return NftTable(state.family, state.table).key


def _set_key(state: NftElement) -> Key:
    return NftSet(state.family, state.table, state.set, "").key


def _in_table(state: NftSet | NftChain) -> tuple[Key, ...]:
    return (_table_key(state),)


def _in_set(state: NftElement) -> tuple[Key, ...]:
    return _table_key(state), _set_key(state)


_SERVES = (
    *("publish", "permitted", "masquerade", "server_of", "servers", "resolvers", "forwarders", "asking"),
    *("view_of", "viewing"),
)
"""Prefixes of sets that enable something for containers. Every other set of ours keeps containers from
forging addresses or from each other, as the rules do."""
_ONE_PORT = ("macs", "senders", "internal_links")
"""Prefixes of sets whose elements are each for one port, their first part."""


_OF_A_POLICY = re.compile(r"(policy|staged)_(in|out)[46]_(by_)?[0-9a-f]{32}(_no)?")
"""Names of chains that are one policy's own, or that lead some containers to those of their policies."""
_WAYS = ("policed_by_", "watched_by_")
"""Prefixes of the maps that lead each container's packets to the chains of its policies."""


def _is_of_a_policy(state: NftChain) -> bool:
    """Return whether a chain is about some policy's containers alone.

    If the kernel refuses it, nothing can lead there that did not before. So they keep their former rules, or packets
    lose their way in the maps and are dropped (``policy/readings.py``). No other container needs it.
    """
    return _OF_A_POLICY.fullmatch(state.name) is not None


def _is_way(state: NftElement) -> bool:
    return state.set.startswith(_WAYS)


def _fought_for(state: NftChain) -> Key:
    """Return the table's key, or a policy's own chain: whatever becomes of this one says nothing about the others."""
    return state.key if _is_of_a_policy(state) else _table_key(state)


def _guards(state: NftTable | NftSet | NftChain) -> frozenset[str]:
    if state.family == "netdev":  # without these, packets pass the rules
        return frozenset()
    return frozenset({BRIDGED if state.family == "bridge" else ALL})


def _guard(state: NftElement) -> frozenset[str]:
    if state.family == "netdev" or state.set.startswith(_SERVES):
        return frozenset()
    if state.set.startswith(_ONE_PORT):
        return frozenset({state.parts[0]})
    return frozenset({BRIDGED if state.family == "bridge" else ALL})


_KNOWN_BY = "the tables `inet linkspan`, `bridge linkspan` and `netdev linkspan`"
_EVENTS = frozenset({Event.NFT})

TABLE = Kind(
    state=NftTable,
    rank=20,
    driver=driver,
    known_by=_KNOWN_BY,
    purpose="contains all of linkspan's firewall rules of one family",
    sort=Sort.RULE,
    commands=_add_table,
    guards=_guards,
    events=_EVENTS,
)
SET = Kind(
    state=NftSet,
    rank=21,
    driver=driver,
    merges=True,
    known_by=_KNOWN_BY,
    purpose="used by the rules: one more container is one more element",
    sort=Sort.RULE,
    commands=_add_set,
    lost_with=_in_table,
    part_of=_table_key,
    guards=_guards,
    events=_EVENTS,
)
CHAIN = Kind(
    state=NftChain,
    rank=22,
    driver=driver,
    merges=True,
    known_by=_KNOWN_BY,
    purpose="rules, the same however many containers there are",
    sort=Sort.RULE,
    commands=_add_chain,
    typed=_typed,
    lost_with=_in_table,
    part_of=_fought_for,
    guards=_guards,
    contained=_is_of_a_policy,
    events=_EVENTS,
)
ELEMENT = Kind(
    state=NftElement,
    rank=23,
    driver=driver,
    known_by=_KNOWN_BY,
    purpose="one entry that the rules use",
    sort=Sort.RULE,
    commands=_add_element,
    lost_with=_in_set,
    part_of=_set_key,
    guards=_guard,
    contained=_is_way,
    events=_EVENTS,
)
KINDS = (TABLE, SET, CHAIN, ELEMENT)
