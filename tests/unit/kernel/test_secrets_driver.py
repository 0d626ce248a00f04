from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from linkspan.core.errors import Denied, Invalid, KernelError, LinkspanError
from linkspan.core.states.host import HOST
from linkspan.core.states.programs import SECRET, Secret
from linkspan.kernel.drivers.secrets import SecretDriver
from linkspan.kernel.io.private_files import apart, trusted

VALUE = "s3cret word"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text(f"{VALUE}\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def wanted(tmp_path: Path, source: Path) -> Secret:
    return Secret(str(tmp_path / "peers/r1.conf"), str(source), f"password {SECRET};\n")


@pytest.fixture
def driver(tmp_path: Path) -> SecretDriver:
    return SecretDriver(tmp_path / "state/secrets.json")


def test_a_secret_is_written_for_root_alone_and_taken_away(driver: SecretDriver, wanted: Secret) -> None:
    """Only the file has the value, quoted, and nothing else that is kept."""
    assert driver.apply([wanted], []) == {}
    path = Path(wanted.path)
    assert path.read_text() == f'password "{VALUE}";\n'
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(driver.observe(HOST)) == [wanted]
    memory = path.parent.parent / "state/secrets.json"
    assert VALUE not in memory.read_text() + repr(wanted)
    assert driver.apply([], [wanted]) == {}
    assert not path.exists()
    assert list(driver.observe(HOST)) == []
    assert driver.apply([], [wanted]) == {}


def test_the_next_agent_knows_it_and_sees_what_has_changed(
    driver: SecretDriver, wanted: Secret, source: Path, tmp_path: Path
) -> None:
    """The file, its mode or the password itself: what differs is put again."""
    driver.apply([wanted], [])
    again = SecretDriver(tmp_path / "state/secrets.json")
    stale = msgspec.structs.replace(wanted, current=False)
    for change in (
        lambda: Path(wanted.path).write_text("by hand"),
        lambda: Path(wanted.path).chmod(0o644),
        lambda: source.write_text("another\n"),
    ):
        assert list(again.observe(HOST)) == [wanted]
        change()
        assert list(again.observe(HOST)) == [stale]
        assert again.apply([wanted], []) == {}
    assert Path(wanted.path).read_text() == 'password "another";\n'


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (lambda path: path.chmod(0o640), Denied, "must belong to root"),
        (lambda path: os.chown(path, 1, 1), Denied, "must belong to root"),
        (lambda path: path.unlink(), KernelError, "read the secret"),
        (lambda path: (path.unlink(), path.symlink_to("/etc/hostname")), KernelError, "read the secret"),
        (lambda path: (path.unlink(), path.mkdir(0o700)), KernelError, "read the secret"),
        (lambda path: path.write_text(""), Invalid, "is no valid password"),
        (lambda path: path.write_text("x" * 81), Invalid, "is no valid password"),
        (lambda path: path.write_text('a"; bad'), Invalid, "is no valid password"),
        (lambda path: path.write_text("two\nlines"), Invalid, "is no valid password"),
        (lambda path: path.write_bytes(b"\xff"), Invalid, "is no valid password"),
    ],
)
@pytest.mark.root
def test_what_is_no_secret_is_refused_by_its_file(
    driver: SecretDriver,
    wanted: Secret,
    source: Path,
    spoil: Callable[[Path], object],
    error: type[LinkspanError],
    words: str,
) -> None:
    """The error has the file and not its content; nothing is written: no session without its password."""
    spoil(source)
    found = driver.apply([wanted], [])[wanted.key]
    assert isinstance(found, error)
    assert words in found.message
    assert str(source) in found.message
    assert "bad" not in found.message
    assert not Path(wanted.path).exists()


@pytest.mark.root
def test_who_is_trusted_is_root_s_to_say(source: Path, tmp_path: Path) -> None:
    """Everybody may read a certificate, and a link may lead to it; others may neither own nor change it."""
    source.chmod(0o644)
    (tmp_path / "link").symlink_to(source)
    assert trusted(str(tmp_path / "link"), "ca") == source.read_bytes()
    for mode, owner in ((0o664, 0), (0o646, 0), (0o644, 1)):
        source.chmod(mode)
        os.chown(source, owner, -1)
        with pytest.raises(Denied) as refusal:
            trusted(str(source), "ca")
        assert f"{source} (ca) can be changed by others than root" in refusal.value.message
        assert f"chown root {source}" in refusal.value.hint
    with pytest.raises(KernelError, match="nothing"):
        trusted(str(tmp_path / "nothing"), "ca")


@pytest.mark.root
def test_a_folder_of_secrets_is_root_s_alone_whatever_it_was(tmp_path: Path) -> None:
    """A new folder, one with loose permissions, and another user's; a link is not followed."""
    folder = tmp_path / "keys"
    spoils: tuple[Callable[[], None], ...] = (
        lambda: None,
        lambda: folder.chmod(0o755),
        lambda: os.chown(folder, 1, 1),
    )
    for spoil in spoils:
        spoil()
        apart(folder)
        assert (stat.S_IMODE(folder.stat().st_mode), folder.stat().st_uid) == (0o700, 0)
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(KernelError, match="for root"):
        apart(tmp_path / "link")
