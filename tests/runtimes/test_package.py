"""The packages, on clean Debian releases without a network: install, run, upgrade, remove, purge."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from linkspan import __version__
from support.runtimes.debian_root import BootedRoot, DebianRoot

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


DISTRIBUTION = """
cat >/tmp/spec <<SPEC
Name: distribution
Version: $glibc
Release: 1
Summary: What a distribution has
License: none
BuildArch: noarch
Provides: glibc = $glibc, /bin/sh
%description
%files
SPEC
rpmbuild --quiet --define '_topdir /tmp' --define '_rpmdir /tmp/rpms' -bb /tmp/spec
"""
NEWER = "0.99.0"
PINGS = """
ip netns exec blue ping -D -i 0.01 10.244.0.3 >/tmp/pings 2>&1 &
ping=$!
"""
COUNT = "kill -INT $ping; wait $ping || true; tail -3 /tmp/pings"


@pytest.fixture(scope="session")
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
from linkspan.kernel.io.private_files import writers
print("writers:", [*writers([Path("/opt/linkspan"), Path("/usr/bin/linkspan")])])
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
def test_the_rpm(built: Path, tmp_path: Path) -> None:
    """Rpm finds what it depends on, installs it and upgrades it in place; its removal is refused, or leaves nothing.

    rpm knows no package of Debian: one of ours, which has no file, says what RHEL 9 and RHEL 10 have.
    """
    root = DebianRoot("trixie", tmp_path / "root")
    (file,) = built.glob("*.rpm")
    root.put(file)
    said = root.run(f"""
        rpm --initdb
        for glibc in 2.34 2.39; do {DISTRIBUTION} done
        rpm -i /tmp/rpms/noarch/distribution-2.34-1.noarch.rpm
        ! rpm -i /tmp/{file.name}
        rpm -U /tmp/rpms/noarch/distribution-2.39-1.noarch.rpm
        {LIST} >/tmp/before
        rpm -i /tmp/{file.name}
        linkspan --version
        {START}
        {NETWORK}
        {PINGS}
        rpm -U --replacepkgs /tmp/{file.name}
        ip netns exec blue ping -c 3 -i 0.2 10.244.0.3
        grep ExecStart /etc/systemd/system/linkspan.service
        ! rpm -e linkspan
        rpm -q linkspan
        {COUNT}
        linkspan detach blue; linkspan detach green
        rpm -e linkspan
        {LIST} >/tmp/after
        diff /tmp/before /tmp/after && echo nothing left
    """)
    assert "glibc >= 2.36 is needed by linkspan" in said
    assert "3 packets transmitted, 3 received" in said
    assert "ExecStart=/opt/linkspan/bin/linkspan agent" in said
    assert "2 endpoints live on this host" in said
    assert f"linkspan-{__version__}-1.x86_64" in said
    assert " 0% packet loss" in said
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


@pytest.fixture(scope="session")
def newer(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a .deb with the same files and a later version."""
    folder = tmp_path_factory.mktemp("newer")
    subprocess.run(["dpkg-deb", "-R", deb(built), folder / "tree"], check=True)
    for file in ("DEBIAN/control", "opt/linkspan/lib/python3.11/site-packages/linkspan/__init__.py"):
        path = folder / "tree" / file
        path.write_text(path.read_text().replace(__version__, NEWER))
    made = folder / f"linkspan_{NEWER}_amd64.deb"
    subprocess.run(["dpkg-deb", "-Zgzip", "-z1", "-b", folder / "tree", made], check=True, capture_output=True)
    return made


@pytest.mark.timeout(600)
def test_an_upgrade_that_is_interrupted_between_program_and_agent(built: Path, newer: Path, tmp_path: Path) -> None:
    """The old agent goes on beside the new program, status says so, and the same command does the rest."""
    root = DebianRoot("trixie", tmp_path / "root")
    root.put(deb(built))
    root.put(newer)
    said = root.run(f"""
        dpkg -i /tmp/{deb(built).name} >/dev/null
        {START}
        agent=$!
        {NETWORK}
        {PINGS}
        linkspan upgrade --to /tmp/{newer.name} >/tmp/upgrade 2>&1 &
        upgrade=$!
        for _ in $(seq 600); do grep -q 'waiting' /tmp/upgrade && break; sleep 0.2; done
        kill -KILL $upgrade; wait $upgrade || true
        linkspan --version
        linkspan status >/tmp/status || true; grep -i version /tmp/status
        linkspan network list
        linkspan upgrade >/tmp/upgrade 2>&1 &
        upgrade=$!
        for _ in $(seq 600); do grep -q 'waiting' /tmp/upgrade && break; sleep 0.2; done
        kill $agent; wait $agent || true
        {START}
        wait $upgrade; cat /tmp/upgrade
        {COUNT}
        linkspan diff
    """)
    assert f"linkspan {NEWER} (schema" in said
    assert f"version {__version__}, pid" in said
    assert f"this program is version {NEWER}" in said
    assert f"agent {__version__} to {NEWER}" in said
    assert " 0% packet loss" in said


@pytest.mark.timeout(900)
def test_a_debian_with_systemd(built: Path, newer: Path, tmp_path: Path) -> None:
    """The services start, survive and are upgraded; a cluster's etcd is one, and is restored; nothing is left."""
    root = BootedRoot(tmp_path / "root")
    root.put(deb(built))
    root.put(newer)
    with root.booted():
        said = root.run(f"""
            {LIST} >/tmp/before
            ip link add up0 type veth peer name up1; ip link set up0 up; ip link set up1 up
            ip address add 192.0.2.1/24 dev up0; ip route add default via 192.0.2.254
            dpkg -i /tmp/{deb(built).name} >/dev/null
            echo agent: $(systemctl is-active linkspan) $(systemctl is-enabled linkspan)
            {NETWORK}
            {PINGS}
            old=$(systemctl show -P MainPID linkspan)
            kill -KILL $old
            for _ in $(seq 300); do linkspan status 2>/dev/null | grep -q "pid $old" || linkspan network list && break
            sleep 0.2; done
            echo killed: $old $(systemctl show -P MainPID linkspan) $(systemctl is-active linkspan)
            linkspan cluster init
            echo etcd: $(systemctl is-active linkspan-etcd) $(systemctl is-enabled linkspan-etcd)
            echo user: $(ps -o user:20= -p $(systemctl show -P MainPID linkspan-etcd))
            linkspan cluster members
            linkspan network create gone --pool 10.246.0.0/16
            linkspan cluster snapshot /tmp/monday.db
            linkspan network delete gone
            linkspan cluster restore /tmp/monday.db
            echo restored: $(systemctl is-active linkspan-etcd) $(linkspan network list | grep -c ^gone)
            systemctl restart linkspan-etcd
            for _ in $(seq 100); do linkspan network create two --pool 10.245.0.0/16 && break; sleep 0.2; done
            systemctl restart linkspan
            linkspan upgrade --to /tmp/{newer.name}
            linkspan --version
            echo upgraded: $(systemctl is-active linkspan linkspan-etcd)
            linkspan diff
            {COUNT}
            linkspan detach blue; linkspan detach green
            ip netns delete blue; ip netns delete green
            dpkg -P linkspan
            ! systemctl list-unit-files --no-legend | grep linkspan
            {LIST} >/tmp/after
            diff /tmp/before /tmp/after && echo nothing left
        """)
    assert "agent: active enabled" in said
    assert "etcd: active enabled" in said
    assert "user: linkspan-etcd" in said
    assert "restored: active 1" in said
    killed = next(line.split() for line in said.splitlines() if line.startswith("killed: "))
    assert killed[1] != killed[2]
    assert killed[3] == "active"
    assert f"agent {__version__} to {NEWER}" in said
    assert "upgraded: active active" in said
    assert " 0% packet loss" in said
    assert said.rstrip().endswith("nothing left")


@pytest.mark.timeout(600)
def test_the_wheel(built: Path, tmp_path: Path) -> None:
    """`pip install` of the wheel brings the program and the compiled plugin; the sdist has what builds it."""
    (wheel,) = built.glob("*.whl")
    (sdist,) = built.glob("*.tar.gz")
    listed = subprocess.run(["tar", "-tzf", sdist], capture_output=True, text=True, check=True).stdout
    assert "/hatch_build.py\n" in listed
    assert "/src/linkspan/shim/linkspan_cni.c\n" in listed
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(tmp_path / "env/bin/python"), "install", "-q", "--no-compile"]
    done = subprocess.run(
        [*pip, "-c", str(ROOT / "requirements-test.txt"), str(wheel)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no network: {done.stderr[-300:]}")
    said = subprocess.run([tmp_path / "env/bin/linkspan", "version"], capture_output=True, text=True, check=True).stdout
    assert said.startswith("linkspan ")
    (shim,) = (tmp_path / "env").glob("lib/python*/site-packages/linkspan/shim/linkspan-cni")
    assert shim.read_bytes().startswith(b"\x7fELF")
