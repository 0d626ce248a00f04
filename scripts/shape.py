"""Check the project's shape: the direction of imports, outgrown files, and words that must not be in them."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "linkspan"

LAYERS = {
    "nouns": (
        "addresses associations bgp contracts errors escapes flows ipsec lasting model needs process programs "
        "remedies state store_url wireguard"
    ),
    "kernel": "kernel",
    "logic": (
        "backends database desired dns_names fabric fights firewall ipam migration multihoming names namesakes ports "
        "reconcile sealed steering"
    ),
    "store": "store",
    "tell": "tell",
    "agent": (
        "forwarding stations "
        "agent allocator alterations api api_bgp api_cluster api_docker api_hosts api_json api_telling "
        "api_tracing api_waiting ask associating attach beginning blocks caller cautions cluster config "
        "control_plane controlled controller daemon disputes elsewhere endpoints grants happenings healing holdings "
        "host_settings journal leases ledger locks machine metrics migrating naming networks peerings peers plans "
        "probes published readable "
        "records recovery removals replica revising rotating runtimes segment serving silence speakers standing status "
        "survey tracer tuning versions "
        "contact identity store_health "
        "orphans reconstruction"
    ),
    "top": "cli demo installation ipip_endpoint lab ownership shim uninstall",
}
"""Every module and package directly in src/linkspan belongs to one layer (ARCHITECTURE.md has the picture)."""

BELOW = {
    "nouns": {"nouns"},
    "kernel": {"kernel", "nouns"},
    "logic": {"logic", "nouns"},
    "store": {"store", "logic", "kernel", "nouns"},
    "tell": {"tell", "logic", "kernel", "nouns"},
    "agent": {"agent", "tell", "store", "logic", "kernel", "nouns"},
    "top": {"top", "agent", "tell", "store", "logic", "kernel", "nouns"},
}
"""What a layer may import: itself and what is under it."""

LAYER = {name: layer for layer, names in LAYERS.items() for name in names.split()}

IO = {
    *("aiohttp", "asyncio", "ctypes", "io", "os", "pathlib", "pyroute2"),
    *("select", "socket", "sqlite3", "subprocess", "threading"),
}
"""A backend is a pure function: it imports none of these, and calls no open()."""

LINES = 700
"""A longer file has a second noun in it. The number catches an accident: nobody cuts a file to a length."""
LONGEST = 10
"""How many of the longest files the check prints, as a hint where to look."""

FORBIDDEN = {
    "the address of a package registry": re.compile(
        "|".join(
            re.escape(".".join(parts))
            for parts in (
                ("pypi", "org"),
                ("pythonhosted", "org"),
                ("npmjs", "org"),
                ("deb", "debian", "org"),
                ("archive", "ubuntu", "com"),
                ("proxy", "golang", "org"),
                ("crates", "io"),
            )
        )
    ),
    "a path of somebody's machine": re.compile(r"/home/[a-z]+/|/Users/[A-Za-z]+/|\.py" + r"env/"),
}


def layer_of(module: str) -> str:
    """Return the layer of ``linkspan.NAME...``; the package itself (its version) counts as a noun."""
    parts = module.split(".")
    return "nouns" if len(parts) == 1 else LAYER.get(parts[1], "")


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and full name of every module that is imported, wherever in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            if base == "linkspan":
                for alias in node.names:
                    yield node.lineno, f"linkspan.{alias.name}" if alias.name in LAYER else "linkspan"
            else:
                yield node.lineno, base


def wrong_imports(path: Path) -> Iterator[str]:
    """Yield what a module imports from above it, and what a backend imports to do I/O."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    name = parts[0]
    if name == "__init__":
        return
    layer = LAYER.get(name, "")
    where = path.relative_to(ROOT)
    if not layer:
        yield f"{where}: {name} belongs to no layer; add it to LAYERS in scripts/shape.py"
        return
    tree = ast.parse(path.read_text())
    for line, module in imports(tree):
        if module.startswith("."):
            yield f"{where}:{line}: relative import; write it from linkspan"
        elif module.split(".")[0] == "linkspan":
            target = layer_of(module)
            if target not in BELOW[layer]:
                yield f"{where}:{line}: {name} ({layer}) imports {module} ({target or 'no layer'}), not below it"
        elif name == "backends" and module.split(".")[0] in IO:
            yield f"{where}:{line}: a backend does no I/O, and this imports {module}"
    if name == "backends":
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open":
                yield f"{where}:{node.lineno}: a backend does no I/O, and this opens a file"


def files() -> list[Path]:
    """Return the project's own files: what git has, or would have, in it."""
    names = ""
    if shutil.which("git"):
        command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    if names:
        found = [ROOT / name for name in names.split("\0") if name]
    else:  # no git, an unpacked archive, or a checkout that belongs to somebody else
        found = [path for path in ROOT.rglob("*") if not {".git", ".venv"} & set(path.parts)]
    return sorted(path for path in found if path.is_file() and not path.is_symlink())


def lengths() -> list[tuple[int, Path]]:
    """Return the lines of each source file, the longest file first."""
    sources = [path for path in files() if path.suffix in (".py", ".c", ".sh")]
    return sorted(((len(path.read_text().splitlines()), path) for path in sources), reverse=True)


def too_long() -> Iterator[str]:
    """Yield the source files that have outgrown LINES."""
    for lines, path in lengths():
        if lines > LINES:
            yield f"{path.relative_to(ROOT)}: {lines} lines, more than {LINES}: split it along a noun"


def same_names() -> Iterator[str]:
    """Yield the test files that share their name with another one: pytest imports only one of them."""
    seen: dict[str, Path] = {}
    for path in files():
        if path.name.startswith("test_") and path.suffix == ".py":
            first = seen.setdefault(path.name, path)
            if first != path:
                yield f"{path.relative_to(ROOT)}: named as {first.relative_to(ROOT)}, and pytest imports one of them"


def forbidden(path: Path, text: str) -> Iterator[str]:
    """Yield the lines with words that must not be in the project."""
    own = f"{ROOT.parent}/"
    mine = () if len(ROOT.parts) < 3 or own in ("/tmp/", "/root/", "/home/", "/opt/", "/srv/") else (own,)  # noqa: S108
    for number, line in enumerate(text.splitlines(), 1):
        for what, pattern in FORBIDDEN.items():
            if pattern.search(line):
                yield f"{path.relative_to(ROOT)}:{number}: {what}"
        if any(re.search(rf"(?<![\w.-]){re.escape(place)}", line) for place in mine):
            yield f"{path.relative_to(ROOT)}:{number}: a path of this machine"


def unnamed(page: str, source: Path) -> Iterator[str]:
    """Yield the modules that the page's table of all modules does not name, and those in it that there are not."""
    table = page.partition("\n## Every module\n")[2].partition("\n## ")[0]
    packages = {path.parent.name for path in source.glob("*/__init__.py")}
    named: dict[str, set[str]] = {}
    for where, what in re.findall(r"^\| (.+?) \| (.+) \|$", table, re.MULTILINE):
        own = re.match(r"`(\w+)/`", where)
        named.setdefault(own[1] if own else "", set()).update(re.findall(r"`(\w+)`", what))
    for folder in sorted({"", *named, *packages}):
        there = {path.stem for path in (source / folder).glob("*.py")} - {"__init__"}
        told = named.get(folder, set()) - (set() if folder else packages)
        for name in sorted(there ^ told):
            how = "is missing in" if name in there else "is none, and in"
            yield f"ARCHITECTURE.md: {Path(folder, name)} {how} the table of modules"


def complaints() -> Iterator[str]:
    """Yield everything that is not as it should be."""
    yield from too_long()
    yield from same_names()
    for path in files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        yield from forbidden(path, text)
        if path.suffix == ".py" and path.is_relative_to(SOURCE):
            yield from wrong_imports(path)


def main() -> int:
    """Print the longest files and the complaints; return 1 if there are complaints."""
    found = [*complaints(), *unnamed((ROOT / "ARCHITECTURE.md").read_text(), SOURCE)]
    print("longest:", ", ".join(f"{path.relative_to(ROOT)} {lines}" for lines, path in lengths()[:LONGEST]))
    for complaint in found:
        print(complaint)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
