"""Take the libraries of `linkspan web`'s page from npm, unchanged, and check them.

    scripts/vendor.py                        take every file again, and compare it with the checkout's
    scripts/vendor.py --update NAME VERSION  take another version, and write down its hashes
    scripts/vendor.py --into FOLDER NAME     take the files of one package into a folder (those of the tests)

vendor.json beside the files names the packages, their versions, licences and hashes. npm takes each package from where
it is set up to; what comes must have the hash that is written down.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "src" / "linkspan" / "web" / "page" / "vendor"
LIST = FOLDER / "vendor.json"
"""By package: ``version``, ``license``, ``integrity`` (of the archive, as npm writes it), ``test`` (true: no part of
the page), and ``files``: by our name, its ``path`` in the package and its ``sha256``."""


def listed() -> dict[str, dict[str, Any]]:
    """Return what is vendored."""
    found: dict[str, dict[str, Any]] = json.loads(LIST.read_text(encoding="utf-8"))
    return found


def archive(name: str, version: str, folder: Path) -> bytes:
    """Return a package's archive, which npm puts into the folder."""
    command = ["npm", "pack", "--silent", "--ignore-scripts", "--pack-destination", str(folder), f"{name}@{version}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    except FileNotFoundError:
        sys.exit("error: npm is missing\n       sudo apt-get install npm")
    if done.returncode:
        sys.exit(f"error: npm pack {name}@{version} failed: {done.stderr.strip()}")
    return (folder / done.stdout.strip().splitlines()[-1]).read_bytes()


def integrity(content: bytes) -> str:
    """Return an archive's hash as npm writes it."""
    return f"sha512-{base64.b64encode(hashlib.sha512(content).digest()).decode()}"


def files(name: str, package: dict[str, Any]) -> dict[str, bytes]:
    """Return a package's files by our names. Ends the program if the archive has another hash than the list's."""
    with tempfile.TemporaryDirectory() as folder:
        content = archive(name, package["version"], Path(folder))
        if (found := integrity(content)) != package["integrity"]:
            sys.exit(f"error: {name}@{package['version']} has hash {found}, and not {package['integrity']}")
        path = Path(folder, "archive.tgz")
        path.write_bytes(content)
        with tarfile.open(path) as packed:
            return {ours: _read(packed, f"package/{one['path']}") for ours, one in package["files"].items()}


def _read(packed: tarfile.TarFile, path: str) -> bytes:
    found = packed.extractfile(path)
    if found is None:
        sys.exit(f"error: {path} is no file")
    return found.read()


def spoilt(folder: Path, packages: dict[str, dict[str, Any]]) -> list[str]:
    """Return the names of the page's files that are missing, or differ from the list's hashes."""
    wanted = {
        ours: one["sha256"]
        for package in packages.values()
        if not package.get("test")
        for ours, one in package["files"].items()
    }
    return [
        ours
        for ours, digest in wanted.items()
        if not (folder / ours).is_file() or hashlib.sha256((folder / ours).read_bytes()).hexdigest() != digest
    ]


def update(name: str, version: str) -> None:
    """Take a version of a package that is on the list, and write its files and hashes."""
    packages = listed()
    package = packages[name]
    with tempfile.TemporaryDirectory() as folder:
        package["integrity"] = integrity(archive(name, version, Path(folder)))
    package["version"] = version
    for ours, content in files(name, package).items():
        package["files"][ours]["sha256"] = hashlib.sha256(content).hexdigest()
        if not package.get("test"):
            (FOLDER / ours).write_bytes(content)
    LIST.write_text(json.dumps(packages, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Do what the arguments say."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--update", nargs=2, metavar=("NAME", "VERSION"))
    parser.add_argument("--into", nargs=2, metavar=("FOLDER", "NAME"))
    arguments = parser.parse_args()
    if arguments.update:
        update(*arguments.update)
        return
    if arguments.into:
        folder, name = Path(arguments.into[0]), arguments.into[1]
        folder.mkdir(parents=True, exist_ok=True)
        for ours, content in files(name, listed()[name]).items():
            (folder / ours).write_bytes(content)
        return
    wrong = []
    for name, package in listed().items():
        for ours, content in files(name, package).items():
            digest = hashlib.sha256(content).hexdigest()
            if digest != package["files"][ours]["sha256"]:
                wrong.append(f"{ours}: npm has another file than vendor.json says")
            elif not package.get("test") and (FOLDER / ours).read_bytes() != content:
                wrong.append(f"{ours}: the checkout has another file than npm")
        print(f"{name} {package['version']}: {len(package['files'])} files")
    if wrong:
        sys.exit("\n".join(f"error: {one}" for one in wrong))


if __name__ == "__main__":
    main()
