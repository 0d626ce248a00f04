"""The packages, on clean Debian releases without a network: install, run, upgrade, remove, purge."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.runtimes.debian_root import DebianRoot

ROOT = Path(__file__).parents[2]
LIST = "find / -xdev \\( -path /proc -o -path /tmp -o -path /run -o -path /var/log \\) -prune -o -print | sort"
START = """
linkspan agent >/tmp/out 2>/tmp/err &
for _ in $(seq 300); do grep -q ready /tmp/out && break; sleep 0.2; done
grep ready /tmp/out || cat /tmp/err
"""
NETWORK = """
linkspan network create demo --pool 10.244.0.0/16
ip netns add blue; ip netns add green
linkspan attach blue --network demo
linkspan attach green --network demo
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the packages once; return their folder."""
    folder = tmp_path_factory.mktemp("build")
    argv = [sys.executable, str(ROOT / "scripts/packaging/build.py"), "--quick", "--output", str(folder)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"packages cannot be built here: {done.stderr[-500:]}")
    return folder


def deb(built: Path) -> Path:
    """Return the .deb."""
    (found,) = built.glob("*.deb")
    return found


@pytest.mark.timeout(600)
@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_a_clean_debian(built: Path, tmp_path: Path, suite: str) -> None:
    """One command installs it, containers reach each other, removal is refused while they live, and leaves nothing."""
    root = DebianRoot(suite, tmp_path / "root")
    root.put(deb(built))
    said = root.run(f"""
        {LIST} >/tmp/before
        dpkg -i /tmp/{deb(built).name}
        linkspan --version; man=$(readlink -f /usr/share/man/man8/linkspan.8); grep -c '^.SS' $man
        linkspan doctor >/tmp/doctor || [ $? = 3 ]
        grep -q 'kernel nft inet' /tmp/doctor
        {START}
        {NETWORK}
        ip netns exec blue ping -c 3 -i 0.2 10.244.0.3
        linkspan diff
        /opt/linkspan/bin/python - <<'CHECK'
from pathlib import Path
from linkspan.agent import file_ownership
print("writers:", [*file_ownership.others([Path("/opt/linkspan"), Path("/usr/bin/linkspan")])])
print("writer:", repr(file_ownership.writer("/usr/bin/linkspan")))
CHECK
        ls -l /opt/linkspan/bin/etcd /opt/linkspan/bin/etcdctl
        grep ExecStart /etc/systemd/system/linkspan.service
        ! dpkg -r linkspan
        ip netns exec blue ping -c 1 10.244.0.3 >/dev/null && echo still there
        linkspan detach blue; linkspan detach green
        dpkg -r linkspan
        mkdir -p /etc/linkspan; echo >/etc/linkspan/agent.toml
        dpkg -P linkspan
        {LIST} >/tmp/after
        diff /tmp/before /tmp/after && echo nothing left
    """)
    assert "3 packets transmitted, 3 received" in said
    assert "writers: []" in said
    assert "writer: ''" in said
    assert "ExecStart=/usr/bin/linkspan agent" in said or "ExecStart=/opt/linkspan/bin/linkspan agent" in said
    assert "2 endpoints live on this host" in said
    assert "still there" in said
    assert "nothing of linkspan is left on this machine" in said
    assert said.rstrip().endswith("nothing left")


@pytest.mark.timeout(600)
def test_a_package_over_a_checkout(built: Path, tmp_path: Path) -> None:
    """The package takes the place of the copy that a checkout made, its unit too; the containers keep their network."""
    root = DebianRoot("trixie", tmp_path / "root")
    root.put(deb(built))
    said = root.run(f"""
        dpkg -x /tmp/{deb(built).name} /checkout
        mkdir -p /opt /usr/local/bin
        cp -a /checkout/opt/linkspan /opt/linkspan
        touch /opt/linkspan/.made-by-linkspan /opt/linkspan/of-the-checkout
        ln -s /opt/linkspan/bin/linkspan /usr/local/bin/linkspan
        {START}
        {NETWORK}
        linkspan install systemd
        ip netns exec blue ping -D -i 0.01 10.244.0.3 >/tmp/pings &
        ping=$!
        dpkg -i /tmp/{deb(built).name}
        kill -INT $ping; wait $ping || true
        tail -3 /tmp/pings
        ls -A /opt/linkspan
        grep ExecStart /etc/systemd/system/linkspan.service
    """)
    assert " 0% packet loss" in said
    assert "/usr/local/bin/linkspan comes before the package's" in said
    assert "of-the-checkout" not in said.splitlines()
    assert ".made-by-linkspan" not in said.splitlines()
    assert "ExecStart=/opt/linkspan/bin/linkspan agent" in said


@pytest.mark.timeout(600)
def test_the_wheel(built: Path, tmp_path: Path) -> None:
    """`pip install` of the wheel brings the program and the compiled plugin; the sdist has what builds it."""
    (wheel,) = built.glob("*.whl")
    (sdist,) = built.glob("*.tar.gz")
    listed = subprocess.run(["tar", "-tzf", sdist], capture_output=True, text=True, check=True).stdout
    assert "/hatch_build.py\n" in listed
    assert "/src/linkspan/shim/linkspan_cni.c\n" in listed
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    argv = [str(tmp_path / "env/bin/pip"), "install", "-q", "-c", str(ROOT / "requirements-test.txt"), str(wheel)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no network: {done.stderr[-300:]}")
    said = subprocess.run([tmp_path / "env/bin/linkspan", "version"], capture_output=True, text=True, check=True).stdout
    assert said.startswith("linkspan ")
    (shim,) = (tmp_path / "env").glob("lib/python*/site-packages/linkspan/shim/linkspan-cni")
    assert shim.read_bytes().startswith(b"\x7fELF")
