"""scripts/packaging: what a build takes from Debian, and what it does if linkspan itself is broken."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[3] / "scripts" / "packaging"


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Give the module of downloads, with a cache of its own."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import sources as module

    monkeypatch.setattr(module, "CACHE", tmp_path)
    return module


@pytest.fixture
def unpacked(sources: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Give what is unpacked of one package, whose newest version the archive knows; "": it does not answer."""
    known = ""

    def run(*argv: str | Path, cwd: Path = Path(), env: dict[str, str] | None = None) -> str:
        words = [str(word) for word in argv]
        if "indextargets" in words:
            return "http://mirror/debian/ http://mirror/debian-security/"
        if "update" in words and not answers:
            raise sources.Missing("no route to host")
        if "--print-uris" in words:
            return f"'http://mirror/x' libssl3_{known}_amd64.deb 0 SHA256:{hashlib.sha256().hexdigest()}\n"
        if "download" in words:
            (cwd / f"libssl3_{known}_amd64.deb").touch()
        if "dpkg-deb" in words:
            found.append(Path(words[2]).name.split("_")[1])
        return ""

    answers, found = True, list[str]()
    monkeypatch.setattr(sources, "run", run)

    def unpack(version: str) -> list[str]:
        nonlocal answers, known
        answers, known = bool(version), version or known
        found.clear()
        sources.debian("bookworm", ["libssl3"], Path("/nowhere"), "amd64")
        return list(found)

    return unpack


def test_a_build_takes_the_newest_packages(
    unpacked: Callable[[str], list[str]], sources: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also if an older one is kept, and with security updates; without the archive it says that they may be old."""
    assert unpacked("3.0.20") == ["3.0.20"]
    assert unpacked("3.0.22") == ["3.0.22"]
    lists = (sources.CACHE / "debian/bookworm-amd64/sources.list").read_text()
    assert "http://mirror/debian-security/ bookworm-security main" in lists
    assert capsys.readouterr().err == ""
    assert unpacked("") == ["3.0.22"]
    assert "may be old: no route to host" in capsys.readouterr().err


def test_a_kept_package_that_is_not_debian_s_is_had_again(
    unpacked: Callable[[str], list[str]], sources: ModuleType
) -> None:
    """A download that was cut off, for example: apt tells the hash."""
    unpacked("3.0.20")
    file = sources.CACHE / "debian/bookworm-amd64/kept/libssl3_3.0.20_amd64.deb"
    file.write_text("spoilt")
    assert unpacked("3.0.20") == ["3.0.20"]
    assert file.read_text() == ""


def test_packages_for_another_machine_have_that_machines_parts(
    sources: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian's packages and Python's are those for arm64, and the versions are Debian's own words."""
    said: list[tuple[str, ...]] = []

    def run(*argv: str | Path, **_: object) -> str:
        words = tuple(map(str, argv))
        said.append(words)
        if "indextargets" in words:
            return "http://mirror/debian/ http://mirror/debian-security/"
        return "'http://mirror/x' zlib1g_1%3a1.2-1_arm64.deb 0 SHA256:0\n" if "--print-uris" in words else ""

    monkeypatch.setattr(sources, "run", run)
    assert sources.debian("bookworm", ["zlib1g"], tmp_path, "arm64") == {"zlib1g": "1:1.2-1"}
    settings = (sources.CACHE / "debian/bookworm-arm64/apt.conf").read_text()
    assert 'APT::Architecture "arm64";' in settings
    sources.wheels(tmp_path / "linkspan.whl", tmp_path, "3.11", "aarch64")
    platforms = {word for word in said[-1] if word.startswith(("linux", "manylinux"))}
    assert {"linux_aarch64", "manylinux_2_28_aarch64", "manylinux2014_aarch64"} <= platforms
    assert not any("x86" in word for word in platforms)


def test_a_broken_linkspan_gives_no_empty_completion(
    sources: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The build fails with the command's last words."""
    import manual

    command = tmp_path / "linkspan"
    command.write_text("#!/bin/sh\necho 'ImportError: typer' >&2; exit 1\n")
    command.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(sources.Missing, match="ImportError: typer"):
        manual.completion("bash")
    command.write_text("#!/bin/sh\n")
    with pytest.raises(sources.Missing, match="no completion for bash"):
        manual.completion("bash")


def test_a_folder_with_other_files_is_not_emptied(sources: ModuleType, tmp_path: Path) -> None:
    """`--output ~` is a mistake."""
    import build

    (tmp_path / "linkspan-1-py3-none-any.whl").touch()
    (tmp_path / "letter").touch()
    with pytest.raises(sources.Missing, match="letter, which no build made"):
        build.build(tmp_path, build.ARCHES["amd64"])
    assert (tmp_path / "letter").exists()
