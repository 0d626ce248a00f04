"""File ownership: finds out whether somebody other than root can change what root runs.

A user who can write one file of a checkout that a service of root runs, or rename a folder on its path,
becomes root. So `install` looks at the program, its interpreter, and all files that these load: each file,
each folder up to /, and the targets of links. If somebody else may write there, the service gets a copy that
only root may write (``copy``).
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import sys
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path

import linkspan
from linkspan.core.errors import Conflict, Denied
from linkspan.kernel.io.private_files import writers

COPY = Path("/opt/linkspan")
_MARK = ".made-by-linkspan"


def program() -> tuple[str, str, str]:
    """Return the paths of `linkspan` and its interpreter for root to run, and a message ("": none).

    They are this installation's if only root may write it, else those of a copy, which this function makes.
    Raises Denied if even the machine's own Python can be written by others.
    """
    executable = command()
    why = writer(executable)
    if not why:
        return executable, sys.executable, ""
    if base := next(writers(_base()), ""):
        raise Denied(
            f"a service of root would run files that others may write: {base}",
            "install linkspan with a Python that only root may write, for example the distribution's",
        )
    copy()
    told = f"users other than root may change this linkspan's files ({why}): root runs a copy of it, in {COPY}"
    return str(COPY / "bin" / "linkspan"), str(COPY / "bin" / "python"), told


def command() -> str:
    """Return the path of `linkspan`: the one beside this interpreter, or the one on the PATH.

    Another version may come first on the PATH: a checkout's in /usr/local/bin before the package's in /usr/bin.
    """
    beside = Path(sys.executable).with_name("linkspan")
    return str(beside) if beside.exists() else shutil.which("linkspan") or str(beside)


def writer(executable: str) -> str:
    """Return a sentence that names who besides root may write this linkspan or a file it loads, "" if nobody."""
    return next(writers([Path(executable), *_loaded()]), "")


def _loaded() -> list[Path]:
    """Return the files that this program loads: interpreter, library, packages, and its own files."""
    here = [Path(sys.executable), Path(sys.prefix, "pyvenv.cfg"), *map(Path, linkspan.__path__)]
    return [*here, *(Path(place) for place in sys.path if place and Path(place).exists()), *_base()]


def _base() -> list[Path]:
    """Return the interpreter on which a virtual environment is based, and its library."""
    interpreter = getattr(sys, "_base_executable", sys.executable)
    library = (place for place in sys.path if place.startswith(f"{sys.base_prefix}/{sys.platlibdir}/python"))
    return [Path(interpreter), Path(sysconfig.get_path("stdlib")), *(Path(p) for p in library if Path(p).exists())]


def copy(target: Path = COPY) -> None:
    """Make, or make again, a copy of linkspan and of the packages it needs, which only root may write.

    Raises Conflict if something else is in its place.
    """
    if target.exists() and not (target / _MARK).exists():
        raise Conflict(f"{target} exists and is not linkspan's", "move it away")
    new, old = (target.with_name(target.name + end) for end in (".new", ".old"))
    mask = os.umask(0o022)
    try:
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)
        venv.create(new, symlinks=True, with_pip=False)
        (new / _MARK).touch()
        packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(new), "platbase": str(new)}))
        for source, name in _files():
            to = packages / name
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, to)
            to.chmod(0o755 if os.access(source, os.X_OK) else 0o644)
        script = new / "bin" / "linkspan"
        script.write_text(
            f"#!{target}/bin/python\nimport sys\n\nfrom linkspan.cli.main import main\n\nsys.exit(main())\n"
        )
        script.chmod(0o755)
        if target.exists():
            target.rename(old)
        new.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        os.umask(mask)


def _files() -> Iterator[tuple[Path, Path]]:
    """Yield the files of linkspan and of the packages it needs, each with its path in site-packages."""
    for folder in map(Path, linkspan.__path__):
        for path in folder.rglob("*"):
            if path.is_file() and path.suffix != ".pyc":
                yield path, Path("linkspan") / path.relative_to(folder)
    for name in _needed("linkspan", set()) - {"linkspan"}:
        for file in importlib.metadata.files(name) or ():
            path = Path(str(file.locate()))
            if ".." not in file.parts and path.suffix != ".pyc" and path.is_file():
                yield path, Path(*file.parts)


def _needed(name: str, found: set[str]) -> set[str]:
    """Return the names of a package and of all its installed dependencies."""
    try:
        requires = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return found
    found.add(name)
    for text in requires:
        word = re.match(r"[A-Za-z0-9._-]+", text)
        if word and "extra ==" not in text and word[0] not in found:
            _needed(word[0], found)
    return found


def copied() -> list[Path]:
    """Return the folder of the copy, if there is one."""
    return [COPY] if (COPY / _MARK).exists() else []
