"""Builds a wheel, an sdist, a .deb and an .rpm of this checkout (scripts/package).

Everything of the .deb and the .rpm is below /opt/linkspan: a Python of Debian 12, in ``python``; linkspan and what it
needs, in a virtual environment of that Python; and etcd, beside the environment's Python. So a distribution needs
glibc 2.36 or later, and no other program for the package itself.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import manual
from sources import ROOT, Missing, debian, run, tool, tools, wheels

PREFIX = "opt/linkspan"
PYTHON = "3.11"
GLIBC = "2.36"
"""Debian 12's, for which its Python was built."""
BUILT = re.compile(r"linkspan[-_].*\.(whl|tar\.gz|deb|rpm)|scratch")
"""Names of what a build leaves in its folder."""


class Arch(NamedTuple):
    """An architecture, as Debian calls it, and as the kernel, RPM and Python do."""

    debian: str
    machine: str


ARCHES = {one.debian: one for one in (Arch("amd64", "x86_64"), Arch("arm64", "aarch64"))}
_PYTHON = (
    "python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib",
    "libssl3", "libsqlite3-0", "libffi8", "libexpat1", "zlib1g", "libbz2-1.0", "liblzma5",
)  # fmt: skip
_LIBRARIES = ("ssl", "crypto", "sqlite3", "ffi", "expat", "z", "bz2", "lzma")
_UNUSED = (
    "sitecustomize.py", "EXTERNALLY-MANAGED", "test", "pydoc_data", "lib2to3", "distutils", "idlelib", "ensurepip",
    "turtle.py", "lib-dynload/_test*", "lib-dynload/_xx*", "lib-dynload/xx*", "lib-dynload/_curses*",
    "lib-dynload/_dbm*", "lib-dynload/nis*", "lib-dynload/readline*", "lib-dynload/_crypt*", "lib-dynload/_uuid*",
    "lib-dynload/ossaudiodev*", "lib-dynload/_ctypes_test*",
)  # fmt: skip
"""Of the standard library: nothing here imports it, or it would need further libraries."""
RECOMMENDS = (
    "nftables", "iproute2", "iptables", "conntrack", "kmod", "procps", "ethtool", "dnsmasq-base",
    "bird2", "wireguard-tools", "wireguard-go", "strongswan-swanctl", "charon-systemd", "libcharon-extra-plugins",
    "openvswitch-switch",
)  # fmt: skip
RPM_RECOMMENDS = (
    "nftables", "iproute", "iptables-nft", "conntrack-tools", "kmod", "procps-ng", "ethtool", "dnsmasq",
    "bird", "wireguard-tools", "strongswan", "openvswitch",
)  # fmt: skip


def version() -> str:
    """Return this checkout's version."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def distributions(output: Path, scratch: Path, arch: Arch) -> Path:
    """Build the wheel, with the compiled shim, and the sdist; return the wheel."""
    env = os.environ | {"LINKSPAN_PLATFORM": f"linux-{arch.machine}"}
    if arch.machine != platform.machine():
        env["CC"] = str(_compiler(scratch, arch))
    run(sys.executable, "-m", "hatchling", "build", "-d", output, env=env)
    (wheel,) = output.glob(f"linkspan-{version()}-*.whl")
    if wheel.name.endswith("-any.whl"):
        raise Missing("no C compiler: the CNI plugin cannot be compiled (apt install gcc libc6-dev)")
    return wheel


def _compiler(scratch: Path, arch: Arch) -> Path:
    """Return a C compiler for another machine; what it compiles needs no library there."""
    file, folder = scratch / "cc", tools("cross.txt")
    target = f"{arch.machine}-linux-musl"
    file.write_text(f'#!/bin/sh\nPYTHONPATH={folder} exec {sys.executable} -P -m ziglang cc -target {target} "$@"\n')
    file.chmod(0o755)
    return file


def tree(root: Path, scratch: Path, wheel: Path, arch: Arch) -> None:
    """Fill ``root`` with what the package puts on a machine."""
    prefix = root / PREFIX
    versions = _python(prefix / "python", scratch, arch)
    _environment(prefix, wheel, arch)
    etcd = scratch / "etcd"
    versions |= debian("trixie", ("etcd-server", "etcd-client"), etcd, arch.debian)
    for name in ("etcd", "etcdctl"):
        shutil.copyfile(etcd / "usr/bin" / name, prefix / "bin" / name)
        (prefix / "bin" / name).chmod(0o755)
    share = prefix / "share"
    share.mkdir()
    shutil.copyfile(ROOT / "LICENSE", share / "LICENSE")
    (share / "linkspan.8").write_text(manual.page(version()))
    for shell in ("bash", "zsh", "fish"):
        (share / f"completion.{shell}").write_text(manual.completion(shell))
    (share / "build.json").write_text(json.dumps(_stamp(versions, arch), indent=1) + "\n")
    _links(root)


def _python(target: Path, scratch: Path, arch: Arch) -> dict[str, str]:
    """Relocate Debian's Python: it finds its library by its own place, and shared libraries by a relative path.

    Return the versions of Debian's packages by their names.
    """
    versions = debian("bookworm", _PYTHON, scratch / "python", arch.debian)
    usr = scratch / "python/usr"
    library = target / "lib" / f"python{PYTHON}"
    shutil.copytree(usr / "lib" / f"python{PYTHON}", library, symlinks=True)
    for pattern in _UNUSED:
        for path in library.glob(pattern):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    binary = target / "bin" / f"python{PYTHON}"
    binary.parent.mkdir()
    shutil.copyfile(usr / "bin" / f"python{PYTHON}", binary)
    binary.chmod(0o755)
    searched = {binary: "$ORIGIN/../lib"}
    for name in _LIBRARIES:
        for found in sorted((scratch / "python").glob(f"**/lib{name}.so.*")):
            if not found.is_symlink():
                copied = target / "lib" / run(tool("patchelf"), "--print-soname", found).strip()
                shutil.copyfile(found, copied)
                copied.chmod(0o644)
                searched[copied] = "$ORIGIN"
    searched |= dict.fromkeys((library / "lib-dynload").glob("*.so"), "$ORIGIN/../..")
    for file, place in searched.items():
        run(tool("patchelf"), "--set-rpath", place, file)
    return versions


def _environment(prefix: Path, wheel: Path, arch: Arch) -> None:
    """Make the virtual environment, with no path of the machine that builds it."""
    packages = prefix / "lib" / f"python{PYTHON}" / "site-packages"
    wheels(wheel, packages, PYTHON, arch.machine)
    shutil.rmtree(packages / "bin", ignore_errors=True)
    for record in packages.glob("*.dist-info/direct_url.json"):  # where the wheel was on this machine
        record.unlink()
    (prefix / "bin").mkdir()
    (prefix / "bin/python").symlink_to(f"../python/bin/python{PYTHON}")
    (prefix / "bin/python3").symlink_to("python")
    (prefix / "pyvenv.cfg").write_text(f"home = /{PREFIX}/python/bin\ninclude-system-site-packages = false\n")
    script = prefix / "bin/linkspan"
    script.write_text(f"#!/{PREFIX}/bin/python\nimport sys\n\nfrom linkspan.cli.main import main\n\nsys.exit(main())\n")
    script.chmod(0o755)
    for lexer in (packages / "pygments/lexers").glob("*.py"):  # rich brings 3 MB of them, and linkspan colours no code
        if lexer.stem not in ("__init__", "_mapping", "special", "text"):
            lexer.unlink()


def _stamp(versions: Mapping[str, str], arch: Arch) -> dict[str, str]:
    """Return the versions of what is inside, as Debian has them: they tell which security updates are among it."""
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "version": version(),
        "commit": git.stdout.strip(),
        "arch": arch.debian,
        "glibc": GLIBC,
        **dict(sorted(versions.items())),
    }


_LINKS = {
    "usr/bin/linkspan": "bin/linkspan",
    "usr/share/man/man8/linkspan.8": "share/linkspan.8",
    "usr/share/bash-completion/completions/linkspan": "share/completion.bash",
    "usr/share/zsh/vendor-completions/_linkspan": "share/completion.zsh",
    "usr/share/fish/vendor_completions.d/linkspan.fish": "share/completion.fish",
    "usr/share/doc/linkspan/copyright": "share/LICENSE",
}


_FOLDERS = {"/usr/share/doc/linkspan", "/usr/share/fish/vendor_completions.d", "/usr/share/zsh/vendor-completions"}
"""Folders that the package owns besides its own: rpm leaves others behind, if no other package has them."""


def _links(root: Path) -> None:
    """Put links where a shell and ``man`` look."""
    for path, to in _LINKS.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).symlink_to(f"/{PREFIX}/{to}")


def _contents(root: Path) -> Iterable[dict[str, object]]:
    """Yield the files of the package, sorted: the same tree gives the same list."""
    for path in sorted(root.rglob("*")):
        where = f"/{path.relative_to(root)}"
        if path.is_symlink():
            yield {"src": str(path.readlink()), "dst": where, "type": "symlink"}
        elif path.is_dir():
            if where.startswith(f"/{PREFIX}") or where in _FOLDERS:
                yield {"dst": where, "type": "dir", "file_info": {"mode": 0o755, "owner": "root", "group": "root"}}
        else:
            mode = 0o755 if os.access(path, os.X_OK) else 0o644
            info = {"mode": mode, "owner": "root", "group": "root"}
            yield {"src": str(path), "dst": where, "file_info": info}


def pack(root: Path, scratch: Path, output: Path, arch: Arch, *, quick: bool) -> list[Path]:
    """Make the .deb and the .rpm of a tree; ``quick``: larger ones."""
    date = run("git", "show", "-s", "--format=%cI", "HEAD").strip()
    scripts = {word: str(ROOT / "scripts/packaging" / word) for word in ("preinstall", "postinstall", "preremove")}
    settings = {
        "name": "linkspan", "arch": arch.debian, "platform": "linux", "version": version(), "section": "net",
        "maintainer": "linkspan <linkspan@localhost>", "license": "Apache-2.0", "mtime": date,
        "description": "network for containers on one host or many\n"
        "linkspan gives containers addresses and a network, whatever starts them, and can\n"
        "always show why a packet goes where it goes.",
        "scripts": scripts | {"postremove": str(ROOT / "scripts/packaging/postremove")},
        "contents": list(_contents(root)),
        "deb": {"compression": "zstd" if quick else "xz"}, "rpm": {"compression": "zstd" if quick else "xz"},
        "overrides": {
            "deb": {"depends": [f"libc6 (>= {GLIBC})"], "recommends": list(RECOMMENDS)},
            "rpm": {"depends": [f"glibc >= {GLIBC}"], "recommends": list(RPM_RECOMMENDS)},
        },
    }  # fmt: skip
    file = scratch / "nfpm.json"  # YAML, too
    file.write_text(json.dumps(settings, indent=1))
    kinds = {"deb": f"linkspan_{version()}_{arch.debian}.deb", "rpm": f"linkspan-{version()}-1.{arch.machine}.rpm"}
    made = []
    for kind, name in kinds.items():
        run(tool("nfpm"), "package", "--config", file, "--packager", kind, "--target", output / name)
        made.append(output / name)
    return made


def build(output: Path, arch: Arch, *, quick: bool = False) -> list[Path]:
    """Build everything; return the files. Raises Missing, also if the folder has other files than a build's."""
    if platform.machine() != "x86_64":
        raise Missing(f"packages are built on amd64, and this is {platform.machine()}")
    for other in output.iterdir() if output.exists() else ():
        if not BUILT.fullmatch(other.name):
            raise Missing(f"{output} would be emptied, and has {other.name}, which no build made: name another folder")
    mask = os.umask(0o022)
    scratch = output / "scratch"
    try:
        shutil.rmtree(output, ignore_errors=True)
        scratch.mkdir(parents=True)
        wheel = distributions(output, scratch, arch)
        tree(scratch / "root", scratch, wheel, arch)
        made = pack(scratch / "root", scratch, output, arch, quick=quick)
        return [wheel, *output.glob("*.tar.gz"), *made]
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.umask(mask)


def main() -> int:
    """Build, and name the files with their sizes."""
    parser = argparse.ArgumentParser(description="Build a wheel, an sdist, a .deb and an .rpm of this checkout.")
    parser.add_argument("--output", type=Path, default=ROOT / "build", help="the folder, which is emptied (build/)")
    parser.add_argument("--arch", choices=ARCHES, default="amd64", help="the machines that it is for (amd64)")
    parser.add_argument("--quick", action="store_true", help="larger packages, for tests")
    given = parser.parse_args()
    try:
        for path in build(given.output.resolve(), ARCHES[given.arch], quick=given.quick):
            print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")
    except Missing as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
