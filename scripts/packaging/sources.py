"""Downloads: what a package consists of besides linkspan, kept below the virtual environment."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

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
    folder = CACHE / "tools"
    wanted = (ROOT / "scripts/packaging/requirements.txt").read_text()
    stamp = folder / "requirements.txt"
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        pip("install", "--target", folder, "-r", ROOT / "scripts/packaging/requirements.txt")
        stamp.write_text(wanted)
    return folder / "bin" / name


def pip(*argv: str | Path) -> None:
    """Run pip of this environment."""
    run(sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input", *argv)


def debian(suite: str, names: Sequence[str], unpacked: Path) -> None:
    """Unpack packages of a Debian release, which are downloaded once, and installed nowhere."""
    place = CACHE / "debian" / suite
    kept = place / "kept"
    if not all(any(kept.glob(f"{name}_*.deb")) for name in names):
        kept.mkdir(parents=True, exist_ok=True)
        config = _apt(suite, place)
        env = {"APT_CONFIG": str(config), "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}
        run("apt-get", "-q", "update", env=env)
        run("apt-get", "-q", "download", *names, cwd=kept, env=env)
    for name in names:
        (file,) = kept.glob(f"{name}_*.deb")
        run("dpkg-deb", "-x", file, unpacked)


def mirror() -> str:
    """Return the address of the Debian archive that this machine's apt uses."""
    found = run("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages").split()
    if not (addresses := [one for one in found if one.rstrip("/").endswith("/debian")]):
        raise Missing("apt knows no archive of Debian here")
    return addresses[0]


def _apt(suite: str, place: Path) -> Path:
    """Write settings by which apt knows this release alone, and touches nothing of the machine's own."""
    for folder in ("lists/partial", "archives/partial"):
        (place / folder).mkdir(parents=True, exist_ok=True)
    (place / "status").touch()
    (place / "sources.list").write_text(f"deb [signed-by={KEYS}] {mirror()} {suite} main\n")
    lines = {
        "Dir::State": place,
        "Dir::State::status": place / "status",
        "Dir::State::lists": place / "lists",
        "Dir::Cache": place,
        "Dir::Etc": place,
        "Dir::Etc::sourcelist": place / "sources.list",
        "APT::Architecture": "amd64",
        "APT::Sandbox::User": "root",
    }
    config = place / "apt.conf"
    config.write_text("".join(f'{name} "{value}";\n' for name, value in lines.items()))
    return config


def wheels(wheel: Path, target: Path, python: str) -> None:
    """Install a wheel and what it needs into a folder, for a Python of any Linux with glibc on x86-64."""
    platforms = ["linux_x86_64", *(f"manylinux_2_{minor}_x86_64" for minor in (36, 34, 28, 27, 26, 24, 17, 12, 5))]
    platforms += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]
    options: Iterable[str] = (word for name in platforms for word in ("--platform", name))
    pip(
        "install", "--target", target, "--no-compile", "--only-binary=:all:", "--implementation", "cp",
        "--python-version", python, *options, "-c", ROOT / "requirements-test.txt", wheel,
    )  # fmt: skip
