"""Downloads: what a package consists of besides linkspan, kept below the virtual environment."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).parents[2]
CACHE = Path(sys.prefix, "cache", "package")
KEYS = "/usr/share/keyrings/debian-archive-keyring.pgp"


class Missing(Exception):
    """This machine lacks something that a build needs."""


def run(*argv: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None) -> str:
    """Run a command and return its output. Raises Missing with its last words if it fails or is not there."""
    words = [str(word) for word in argv]
    if shutil.which(words[0]) is None:
        raise Missing(f"{words[0]} is not installed")
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Missing(f"{' '.join(words)}: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout


def tool(name: str) -> Path:
    """Return the path of a program of PyPI that requirements.txt names."""
    return tools("requirements.txt") / "bin" / name


def tools(requirements: str) -> Path:
    """Return the folder with the packages of PyPI that a file beside this one names."""
    source = ROOT / "scripts/packaging" / requirements
    folder = CACHE / "tools" / source.stem
    stamp = folder / requirements
    if not stamp.exists() or stamp.read_text() != source.read_text():
        shutil.rmtree(folder, ignore_errors=True)
        pip("install", "--target", folder, "-r", source)
        shutil.copyfile(source, stamp)
    return folder


def pip(*argv: str | Path) -> None:
    """Run pip of this environment."""
    run(sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input", *argv)


def debian(suite: str, names: Sequence[str], unpacked: Path, arch: str) -> dict[str, str]:
    """Unpack the newest packages of a Debian release for an architecture; they are installed nowhere.

    Security updates are among them. What earlier builds downloaded is kept. If the archive does not answer, its last
    known packages are the newest. Return the packages' versions by their names.
    """
    place = CACHE / "debian" / f"{suite}-{arch}"
    kept = place / "kept"
    kept.mkdir(parents=True, exist_ok=True)
    env = {"APT_CONFIG": str(_apt(suite, place, arch)), "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}
    try:
        run("apt-get", "-q", "update", "--error-on=any", env=env)
    except Missing as error:
        print(f"note: packages of Debian's {suite} may be old: {error}", file=sys.stderr)
    answer = run("apt-get", "-qq", "download", "--print-uris", *names, env=env)
    newest = {name: told for _, name, _, told in map(str.split, answer.splitlines())}  # 'address' file size hash
    for file in kept.glob("*.deb"):
        if file.name.partition("_")[0] in names and not _is(file, newest.get(file.name, "")):
            file.unlink()
    if any(not (kept / name).exists() for name in newest):
        run("apt-get", "-q", "download", *names, cwd=kept, env=env)  # which checks the hashes
    for name in newest:
        run("dpkg-deb", "-x", kept / name, unpacked)
    return {package: version for package, version, _ in (unquote(name).split("_") for name in newest)}


def _is(file: Path, told: str) -> bool:
    """Return whether a file has the hash that apt tells, as ALGORITHM:DIGEST."""
    algorithm, _, digest = told.partition(":")
    return bool(digest) and hashlib.new(algorithm, file.read_bytes()).hexdigest() == digest


def mirror(archive: str = "debian") -> str:
    """Return the address of an archive of Debian that this machine's apt uses: ``debian`` or ``debian-security``."""
    found = run("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages").split()
    if not (addresses := [one for one in found if one.rstrip("/").endswith(f"/{archive}")]):
        raise Missing(f"apt knows no archive {archive} here")
    return addresses[0]


def _apt(suite: str, place: Path, arch: str) -> Path:
    """Write settings by which apt knows this release alone, and touches nothing of the machine's own."""
    for folder in ("lists/partial", "archives/partial"):
        (place / folder).mkdir(parents=True, exist_ok=True)
    (place / "status").touch()
    archives = ((mirror(), suite), (mirror("debian-security"), f"{suite}-security"))
    lists = "".join(f"deb [signed-by={KEYS}] {address} {name} main\n" for address, name in archives)
    (place / "sources.list").write_text(lists)
    lines = {
        "Dir::State": place,
        "Dir::State::status": place / "status",
        "Dir::State::lists": place / "lists",
        "Dir::Cache": place,
        "Dir::Etc": place,
        "Dir::Etc::sourcelist": place / "sources.list",
        "APT::Architecture": arch,
        "APT::Architectures": arch,
        "APT::Sandbox::User": "root",
    }
    config = place / "apt.conf"
    config.write_text("".join(f'{name} "{value}";\n' for name, value in lines.items()))
    return config


def wheels(wheel: Path, target: Path, python: str, machine: str) -> None:
    """Install a wheel and what it needs into a folder, for a Python of any Linux with glibc on a machine."""
    platforms = ["linux", *(f"manylinux_2_{minor}" for minor in (36, 34, 28, 27, 26, 24, 17, 12, 5))]
    platforms += ["manylinux2014", "manylinux2010", "manylinux1"]
    options: Iterable[str] = (word for name in platforms for word in ("--platform", f"{name}_{machine}"))
    pip(
        "install", "--target", target, "--no-compile", "--only-binary=:all:", "--implementation", "cp",
        "--python-version", python, *options, "-c", ROOT / "requirements-test.txt", wheel,
    )  # fmt: skip
