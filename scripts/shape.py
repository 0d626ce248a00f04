"""Check the project's shape: folders, the direction of imports, outgrown files, and words that must not be in them."""

from __future__ import annotations

import ast
import functools
import re
import shutil
import subprocess
import sys
from collections.abc import Container, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "linkspan"

LEVELS = (
    "cli",
    "controller",
    "learn",
    "web",
    "demo",
    "lab",
    "api",
    "agent",
    "dns",
    "runtimes",
    "endpoints",
    "cluster",
    "diagnose/doctor",
    "diagnose/plan diagnose/trace",
    "store",
    "kernel backends policy",
    "kernel/drivers",
    "kernel/local_host",
    "kernel/probe",
    "kernel/io",
    "core",
    "shim",
)
"""The folders of src/linkspan from the top down (ARCHITECTURE.md has the picture).

A file imports from its own folder and from those below it. Two folders on one level never import each other. A file
belongs to the longest name that begins its path: kernel/worker.py belongs to ``kernel``, kernel/io/netlink.py to
``kernel/io``, and kernel/local_host.py is a level of its own, for drivers are made from it.
"""

APART = (("diagnose", "backends"), ("backends", "kernel"))
"""Folders of which the first never imports the second, though it is above it.

A backend returns states, and a driver applies them: they meet in core/states.
What a trace, a plan or a doctor must know of a backend is declared in its kinds, or passed down by the agent.
So a new backend changes nothing there.
"""

LEVEL = {folder: level for level, folders in enumerate(LEVELS) for folder in folders.split()}

FLAT = {"__init__", "daemon", "ipip_endpoint"}
"""The only modules beside the folders.

Everybody may import the package's own names (its version). The other two start a process: nobody imports them.
``daemon`` imports what the API may.
"""

FOLDERS = 19
"""Folders directly in src/linkspan, at most: a newcomer reads the list in a minute."""

PURE = frozenset({"__future__", "collections", "contextlib", "hashlib", "msgspec", "re", "struct", "typing"})
"""What a backend imports from outside linkspan, at most: it is a pure function, and calls no open() either."""
PURE_CORE = frozenset(
    (
        *("addresses", "backend_contract", "egress", "errors", "fast_path", "host_view", "ipam", "model", "needs"),
        *("program", "ruleset", "seal", "states"),
    )
)
"""What a backend imports from core, at most: other modules there read files, wait or run tasks.

The list of backends also imports ``extensions``, which finds those of packages.
"""
INTERPRETER_ONLY = frozenset({"ipip_endpoint", "shim"})
"""What runs without the agent's packages: it imports the standard library and its own folder."""

LINES = 700
"""A longer file has a second noun in it. The number catches an accident: nobody cuts a file to a length."""
CHAIN = 28
"""Files in the longest chain of imports, at most: more of them, and nobody can say what a change of one reaches."""
LONGEST = 10
"""How many of the longest files the check prints, as a hint where to look."""

_ROOTS = sorted({folder.split("/")[0] for folder in LEVEL} | {"bench", "docs", "scripts", "tests"})
NAMED = re.compile(rf"`((?:{'|'.join(_ROOTS)})(?:/[a-z0-9_]+)+)/?((?:\.[a-z0-9]+)?)`")
"""A path in backticks: of the sources, from src/linkspan on, or of the checkout."""

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


def folder_of(parts: tuple[str, ...]) -> str:
    """Return the folder in LEVELS of a module, by its path's parts, '' if it has none."""
    for length in range(len(parts), 0, -1):
        if (folder := "/".join(parts[:length])) in LEVEL:
            return folder
    return ""


def modules() -> dict[str, Path]:
    """Return every module of linkspan by its dotted name; a package is its __init__.py."""
    found = {}
    for path in files():
        if path.suffix == ".py" and path.is_relative_to(SOURCE):
            parts = path.relative_to(SOURCE).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join(("linkspan", *parts))] = path
    return found


def _inside(where: ast.AST) -> list[ast.stmt]:
    """Return the statements (and except clauses and cases) directly in one; expressions have none."""
    return [one for name in ("body", "orelse", "finalbody", "handlers", "cases") for one in getattr(where, name, ())]


def statements(where: ast.AST) -> Iterator[ast.AST]:
    """Yield all statements inside one, which are far fewer than all nodes."""
    left = [where]
    while left:
        inside = _inside(left.pop())
        yield from inside
        left += inside


@functools.cache
def _import_lines(text: str) -> list[tuple[int, str, str]]:
    """Return the line, the module and the name ('' for a whole module) of every import."""
    found = []
    for node in statements(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            found += [(node.lineno, base, alias.name) for alias in node.names]
    return found


def imports(text: str, known: Container[str]) -> Iterator[tuple[int, str]]:
    """Yield line and full name of every imported module, wherever in the file: also those for types only."""
    for line, base, name in _import_lines(text):
        module = f"{base}.{name}"
        yield line, module if name and module in known else base


def wrong_imports(path: Path, known: Container[str]) -> Iterator[str]:
    """Yield imports of a module from above or beside it, and imports of a backend for I/O."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    where = path.relative_to(ROOT)
    folder = folder_of(parts)
    if len(parts) == 1:
        if parts[0] not in FLAT:
            yield f"{where}: a module belongs into a folder (LEVELS in scripts/shape.py)"
            return
    elif not folder and path.stat().st_size:
        yield f"{where}: its folder has no level; add it to LEVELS in scripts/shape.py"
        return
    text = path.read_text()
    for line, module in imports(text, known):
        if module.startswith("."):
            yield f"{where}:{line}: relative import; write it from linkspan"
        elif module.split(".")[0] == "linkspan":
            yield from (f"{where}:{line}: {what}" for what in _upward(parts, folder, module))
        elif folder == "backends" and module.split(".")[0] not in PURE:
            yield f"{where}:{line}: a backend is a pure function, and this imports {module}"
        elif parts[0] in INTERPRETER_ONLY and module.split(".")[0] not in sys.stdlib_module_names:
            yield f"{where}:{line}: imports {module}: it needs the standard library only"
    if folder == "backends":
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open":
                yield f"{where}:{node.lineno}: a backend is a pure function, and this opens a file"


def _upward(parts: tuple[str, ...], folder: str, module: str) -> Iterator[str]:
    """Yield why a module must not import another one."""
    target = tuple(module.split(".")[1:])
    there = folder_of(target)
    if not target or (parts == ("backends", "__init__") and target == ("core", "extensions")):
        return
    folder = "api" if parts == ("daemon",) else folder
    if not there:
        yield f"imports {module}, which nobody imports" if target[0] in FLAT else f"imports {module}, which is nowhere"
    elif parts[0] in INTERPRETER_ONLY and there != folder:
        yield f"imports {module}: it needs the standard library only"
    elif there != folder and LEVEL[there] <= LEVEL[folder]:
        yield f"{folder} imports {module}, which is {'beside' if LEVEL[there] == LEVEL[folder] else 'above'} it"
    elif (parts[0], target[0]) in APART:
        yield f"{folder} imports {module}, and {parts[0]} knows no {target[0]}"
    elif folder == "diagnose/trace" and target == ("kernel", "io", "netlink"):
        yield f"imports {module}: a trace asks the drivers, and the readers in kernel/io and kernel/probe"
    elif folder == "backends" and there == "core" and not PURE_CORE.issuperset(target[1:2]):
        yield f"a backend is a pure function, and this imports {module}"


def imported(known: dict[str, Path]) -> dict[str, list[str]]:
    """Return the modules of linkspan that each one imports."""
    return {
        name: sorted({module for _, module in imports(path.read_text(), known)} & known.keys() - {name})
        for name, path in known.items()
    }


def longest_chain(below: Mapping[str, list[str]]) -> tuple[str, ...]:
    """Return the longest chain of modules that each import the next one; there is no circle."""
    found: dict[str, tuple[str, ...]] = {}

    def chain(name: str) -> tuple[str, ...]:
        if name not in found:
            found[name] = (name, *max(map(chain, below[name]), key=len, default=()))
        return found[name]

    return max(map(chain, below), key=len, default=())


def circles(known: dict[str, Path]) -> Iterator[str]:
    """Yield the circles of files that import each other, one for each file in which one is closed."""
    below = imported(known)
    done: set[str] = set()

    def follow(name: str, way: tuple[str, ...]) -> Iterator[str]:
        if name in way:
            yield "a circle of imports: " + " -> ".join((*way[way.index(name) :], name))
        elif name not in done:
            for target in below[name]:
                yield from follow(target, (*way, name))
            done.add(name)

    for name in sorted(known):
        yield from follow(name, ())


def set_from_outside(known: dict[str, Path]) -> Iterator[str]:
    """Yield where an attribute of an object is set by somebody else.

    An object that is not whole after its constructor works or not by the order in which others are made, and a value
    that several modules set has no owner. So what changes is changed by a method. Left alone are fields of mutable
    structs, which are records and not parts; attributes that no class of linkspan sets, which are a library's; and
    what the function made itself, or caught.
    """
    functions: dict[str, list[ast.AST]] = {}
    classes: list[ast.ClassDef] = []
    for name, path in known.items():
        nodes = list(statements(ast.parse(path.read_text())))
        functions[name] = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        classes += [node for node in nodes if isinstance(node, ast.ClassDef)]
    fields = _fields(classes)
    own = {target.attr for one in classes for target in _set_attributes(one) if _is_own(target)}
    for name, function in ((name, one) for name, every in functions.items() for one in every):
        if targets := list(_set_attributes(function)):
            made = _made(function)
            for target in targets:
                of = target.value
                apart = isinstance(of, ast.Name) and of.id in made
                if not (_is_own(target) or apart or target.attr in fields) and target.attr in own:
                    where = f"{known[name].relative_to(ROOT)}:{target.lineno}"
                    yield f"{where}: sets {ast.unparse(target)}: let a method of its class do it"


def _is_own(target: ast.Attribute) -> bool:
    return isinstance(target.value, ast.Name) and target.value.id in ("self", "cls")


def _set_attributes(where: ast.AST) -> Iterator[ast.Attribute]:
    """Yield the attributes that are assigned to, but for those in functions inside: they are looked at themselves."""
    for node in _body(where):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign) else ():
            for one in target.elts if isinstance(target, ast.Tuple | ast.List) else [target]:
                if isinstance(one, ast.Attribute):
                    yield one


def _body(where: ast.AST) -> Iterator[ast.AST]:
    """Yield the statements of a class with its methods, or of a function without those inside."""
    left = [where]
    while left:
        outer = left.pop()
        inside = _inside(outer)
        if not isinstance(outer, ast.ClassDef):
            inside = [one for one in inside if not isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
        yield from inside
        left += inside


def _made(function: ast.AST) -> set[str]:
    """Return the names that a function gives to what it makes by a call, or catches."""
    found = set()
    for node in _body(function):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        if isinstance(node, ast.ExceptHandler) and node.name:
            found.add(node.name)
    return found


def _fields(classes: list[ast.ClassDef]) -> set[str]:
    """Return the names of the fields of mutable structs."""
    found = set()
    for one in classes:
        frozen = any(keyword.arg == "frozen" for keyword in one.keywords)
        if not frozen and any(ast.unparse(base).split(".")[-1] == "Struct" for base in one.bases):
            found |= {s.target.id for s in one.body if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name)}
    return found


def too_many_folders() -> Iterator[str]:
    """Yield a complaint if src/linkspan has more folders than a newcomer can read."""
    there = {path.relative_to(SOURCE).parts[0] for path in modules().values() if path.parent != SOURCE}
    if len(there) > FOLDERS:
        yield f"{SOURCE.relative_to(ROOT)}: {len(there)} folders, more than {FOLDERS}"


def without_a_mirror() -> Iterator[str]:
    """Yield the files in tests/unit that are in no folder of the sources, nor in that of scripts or benchmarks."""
    folders = {level.split("/")[0] for level in LEVEL} | {"scripts", "bench"}
    for path in files():
        parts = path.relative_to(ROOT).parts
        if parts[:2] == ("tests", "unit") and path.name.startswith("test_"):
            flat = path.stem.removeprefix("test_") in FLAT
            if not (flat if len(parts) == 3 else parts[2] in folders):
                yield f"{'/'.join(parts)}: tests/unit has the folders of src/linkspan; put it into one"


def misplaced_helpers() -> Iterator[str]:
    """Yield the helpers of tests that are not in tests/support, and the test files that others import."""
    for path in files():
        parts = path.relative_to(ROOT).parts
        if parts[0] != "tests" or path.suffix != ".py":
            continue
        where = "/".join(parts)
        if parts[1] != "support" and not path.name.startswith("test_") and path.name != "conftest.py":
            yield f"{where}: what tests import is in tests/support"
        for line, module in imports(path.read_text(), ()):
            if module.startswith("test_"):
                yield f"{where}:{line}: imports {module}; put what both use into tests/support"


def files() -> list[Path]:
    """Return the project's own files: those that git has, or would have, in it."""
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


def stale(path: Path, text: str) -> Iterator[str]:
    """Yield the files and folders that a page, a docstring or a comment names in backticks, and that do not exist."""
    for number, line in enumerate(text.splitlines(), 1):
        for name, ending in NAMED.findall(line):
            places = [name + ending] if ending else [name, f"{name}.py"]
            if not any((base / place).exists() for base in (SOURCE, ROOT, ROOT / "tests") for place in places):
                yield f"{path.relative_to(ROOT)}:{number}: names {name}{ending}, which does not exist"


def unnamed(page: str, source: Path) -> Iterator[str]:
    """Yield the modules that the page's list of all modules lacks, and those in it that do not exist."""
    listed = page.partition("\n## Every module\n")[2].partition("\n## ")[0]
    named: dict[str, set[str]] = {}
    for where, what in re.findall(r"^### (.+)\n((?:[^#\n].*\n)+)", listed, re.MULTILINE):
        own = re.match(r"`([\w/]+)/`", where)
        named.setdefault(own[1] if own else "", set()).update(re.findall(r"`(\w+)`", what))
    folders = {str(path.parent.relative_to(source)) for path in source.rglob("__init__.py")} - {"."}
    for folder in sorted({"", *named, *folders}):
        there = {path.stem for path in (source / folder).glob("*.py")} - {"__init__"}
        told = named.get(folder, set())
        for name in sorted(there ^ told):
            how = "is missing in" if name in there else "is none, and in"
            yield f"docs/modules.md: {Path(folder, name)} {how} the list of modules"


def pictured(page: str) -> list[str]:
    """Return the folders that the page's picture shows, from the top down."""
    picture = page.partition("\n## The folders\n")[2].partition("```\n")[2].partition("```")[0]
    found = []
    for line in picture.splitlines():
        left, inside = line[:14].split(), re.findall(r"\b([a-z_/]+): ", line[14:])
        below = [f"{left[0]}/{name}" if left and f"{left[0]}/{name}" in LEVEL else name for name in inside]
        found += [name for name in (*left, *below) if not any(one.startswith(f"{name}/") for one in below)]
    return found


def unlike_the_picture(page: str) -> Iterator[str]:
    """Yield where LEVELS and the page's picture are not one."""
    shown = pictured(page)
    for name in sorted(set(shown) ^ LEVEL.keys()):
        yield f"ARCHITECTURE.md: {name} is {'no folder, but' if name in shown else 'not'} in the picture of the folders"
    levels = [LEVEL[name] for name in shown if name in LEVEL]
    if levels != sorted(levels):
        yield "ARCHITECTURE.md: the picture has the folders in another order than LEVELS in scripts/shape.py"


def complaints() -> Iterator[str]:
    """Yield all complaints."""
    known = modules()
    yield from too_long()
    yield from same_names()
    yield from circles(known)
    yield from set_from_outside(known)
    yield from too_many_folders()
    yield from without_a_mirror()
    yield from misplaced_helpers()
    for path in files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        yield from forbidden(path, text)
        yield from stale(path, text)
        if path.suffix == ".py" and path.is_relative_to(SOURCE):
            yield from wrong_imports(path, known)


def main() -> int:
    """Print the longest files, the complaints, and the longest chain of imports; return 1 if there are complaints."""
    page = (ROOT / "ARCHITECTURE.md").read_text()
    modules_page = (ROOT / "docs" / "modules.md").read_text()
    found = [*complaints(), *unnamed(modules_page, SOURCE), *unlike_the_picture(page)]
    print("longest:", ", ".join(f"{path.relative_to(ROOT)} {lines}" for lines, path in lengths()[:LONGEST]))
    for complaint in found:
        print(complaint)
    if not found:  # a circle is a complaint, and has no longest chain
        chain = longest_chain(imported(modules()))
        names = " > ".join(one.removeprefix("linkspan.") for one in chain)
        print(f"longest chain of imports: {len(chain)} files (at most {CHAIN}), {names}")
        return 1 if len(chain) > CHAIN else 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
