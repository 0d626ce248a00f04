"""nftables texts: our objects as nft reads them, and what nft lists as our objects."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from linkspan.core.states.host import NftChain, NftElement, NftExit, NftLinkChain, NftSet, NftTable, State

MOST = 65535
"""Largest number of elements of a set that rules fill; beyond it rules add none."""
_INDEX = "iface_index"
"""The type of a map's data that is a link."""
_CHAIN = re.compile(r"^\tchain (\S+) \{\n(.*?)^\t\}", re.MULTILINE | re.DOTALL)


def chains_of(family: str, table: str, text: str) -> list[NftChain]:
    """Return the chains of a table that nft has listed as text."""
    found = []
    for name, body in _CHAIN.findall(text):
        lines = [line.strip() for line in body.splitlines() if line.strip()]
        hook = lines.pop(0) if lines and lines[0].startswith("type ") else ""
        hook = hook.replace("output priority dstnat;", "output priority -100;")  # as every version reads it
        of = NftLinkChain if family == "netdev" else NftChain
        found.append(of(family, table, name, hook, tuple(lines)))
    return found


_BARE = re.compile(r"[0-9a-f.:/-]+|tcp|udp|sctp")


def _quoted(part: str) -> str:
    """Return the part as nft needs it: interface names are quoted; addresses, MACs, ports and protocols are not."""
    return part if not part.startswith("ls") and _BARE.fullmatch(part) else f'"{part}"'


def element_text(state: NftElement) -> str:
    """Return an element as nft reads it: ``"lsp1" . 02:.. `` or ``tcp . 80 : 10.0.0.2 . 80``."""
    key = " . ".join(_quoted(p) for p in state.parts)
    return key + (" : " + " . ".join(state.data) if state.data else "")


def set_text(state: NftSet) -> str:
    """Return a set's or map's declaration body."""
    more = " flags interval;" if state.interval else ""
    if state.dynamic:
        more += f" size {MOST}; flags dynamic;"
    if state.timeout:
        more += f" timeout {state.timeout}s;"
    return f"{{ type {state.type}{f' : {state.data}' if state.data else ''};{more} }}"


def put_commands(states: Sequence[State], outdated: Sequence[NftElement]) -> Iterator[str]:
    """Yield the commands of one transaction; ``outdated`` elements of maps lead somewhere else until now."""
    for state in states:
        if isinstance(state, NftTable):
            yield f"add table {state.family} {state.name}"
    chains = [s for s in states if isinstance(s, NftChain)]
    for chain in chains:  # before the maps: nft 1.0.6 sends a new map with its elements, which may lead to chains
        at = f"{chain.family} {chain.table} {chain.name}"
        yield f"add chain {at}" + (f" {{ {chain.hook} }}" if chain.hook else "")
        yield f"flush chain {at}"
    for state in states:
        if isinstance(state, NftSet):
            what = "map" if state.data else "set"
            yield f"add {what} {state.family} {state.table} {state.name} {set_text(state)}"
    for chain in chains:
        for rule in chain.rules:
            yield f"add rule {chain.family} {chain.table} {chain.name} {rule}"
    yield from _elements("delete", outdated)
    yield from _elements("add", [s for s in states if isinstance(s, NftElement)])


def delete_commands(states: Sequence[State]) -> Iterator[str]:
    """Yield the commands of one transaction that deletes states."""
    yield from _elements("delete", [s for s in states if isinstance(s, NftElement)])
    chains = [s for s in states if isinstance(s, NftChain)]
    for verb in ("flush", "delete"):
        for chain in chains:
            yield f"{verb} chain {chain.family} {chain.table} {chain.name}"
    for state in states:
        match state:
            case NftSet(family, table, name, _, data):
                yield f"delete {'map' if data else 'set'} {family} {table} {name}"
            case NftTable(family, name):
                yield f"delete table {family} {name}"


def _elements(verb: str, elements: Sequence[NftElement]) -> Iterator[str]:
    """Return one command for each set: libnftables parses that several times faster than one for each element."""
    by_set: dict[tuple[str, str, str], list[NftElement]] = {}
    for element in elements:
        by_set.setdefault((element.family, element.table, element.set), []).append(element)
    for (family, table, name), found in by_set.items():
        # A delete names an element by its key alone.
        texts = (
            element_text(e if verb == "add" else NftElement(family, table, name, e.parts)) for e in found
        )
        yield f"{verb} element {family} {table} {name} {{ {', '.join(texts)} }}"


def sets_of(listed: list[dict[str, dict[str, object]]]) -> Iterator[State]:
    """Yield the sets and maps of a table that nft has listed as JSON, and their elements."""
    for item in listed:
        for found in (item[word] for word in ("set", "map") if word in item):
            family, table, name = str(found["family"]), str(found["table"]), str(found["name"])
            type_, data = _types(found["type"]), _types(found.get("map", ""))
            flags, timeout = found.get("flags", []), found.get("timeout", 0)
            assert isinstance(flags, list)
            assert isinstance(timeout, int)
            dynamic = "dynamic" in flags or "size" in found  # nft 1.0.6 lists no such flag; only these have a size
            yield NftSet(family, table, name, type_, data, "interval" in flags, dynamic, timeout)
            elements = [] if dynamic else found.get("elem", [])
            assert isinstance(elements, list)
            for element in elements:
                if data:
                    of = NftExit if data == _INDEX else NftElement
                    yield of(family, table, name, _parts(element[0]), _parts(element[1]))
                else:
                    yield NftElement(family, table, name, _parts(element))


def has_flag(listed: list[dict[str, dict[str, object]]], flag: str) -> bool:
    """Return whether a listed table has a flag; nft gives one flag as a word, and several as a list."""
    return any(flag in str(item["table"].get("flags", "")) for item in listed if "table" in item)


def _types(value: object) -> str:
    return " . ".join(str(v) for v in value) if isinstance(value, list) else str(value)


def _parts(value: object) -> tuple[str, ...]:
    """Return the parts of a state's element from nft's JSON."""
    match value:
        case {"concat": list(parts)}:
            return tuple(part for item in parts for part in _parts(item))
        case {"prefix": {"addr": address, "len": length}}:
            return (f"{address}/{length}",)
        case {"range": [first, last]}:
            return (f"{first}-{last}",)
        case {"elem": {"val": inner}}:
            return _parts(inner)
        case {"jump": {"target": chain}}:
            return (f"jump {chain}",)
        case {"goto": {"target": chain}}:
            return (f"goto {chain}",)
        case {"drop": None}:
            return ("drop",)
    return (str(value),)
