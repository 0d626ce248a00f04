"""A container image made on the spot from the machine's own busybox: registries are not needed."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import re
import subprocess
import tarfile
from pathlib import Path

APPLETS = ("cat", "httpd", "ip", "nc", "nslookup", "ping", "ping6", "sh", "sleep", "true", "udhcpc", "wget")
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}


def layer() -> bytes:
    """Return a root file system as a tar archive: busybox, its names, and libraries where it is not a static one."""
    busybox = Path("/bin/busybox").resolve()
    linked = subprocess.run(["ldd", busybox], capture_output=True, text=True, check=False)  # 1: it is static
    libraries = re.findall(r"(/\S+) \(0x", linked.stdout) if linked.returncode == 0 else []
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for folder in ("bin", "etc", "proc", "sys", "dev", "tmp", "var", "run"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for source, name in [(busybox, "bin/busybox"), *((Path(p).resolve(), p.lstrip("/")) for p in libraries)]:
            entry = tarfile.TarInfo(name)
            content = source.read_bytes()
            entry.size, entry.mode = len(content), 0o755
            tar.addfile(entry, io.BytesIO(content))
        for applet in APPLETS:
            entry = tarfile.TarInfo(f"bin/{applet}")
            entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, "busybox", 0o777
            tar.addfile(entry)
    return stream.getvalue()


def write_oci_archive(path: Path, reference: str) -> None:
    """Write an OCI image layout (image-spec v1.0, image-layout.md) with one layer as a tar archive."""
    blobs: dict[str, bytes] = {}

    def blob(content: bytes, kind: str) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = content
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(content)}

    rootfs = blob(layer(), "application/vnd.oci.image.layer.v1.tar")
    config = {
        "architecture": ARCHITECTURE[platform.machine()],
        "os": "linux",
        "config": {"Cmd": ["/bin/sleep", "1000000"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [rootfs["digest"]]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob(json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json"),
        "layers": [rootfs],
    }
    described = blob(json.dumps(manifest).encode(), str(manifest["mediaType"]))
    described["annotations"] = {"io.containerd.image.name": reference}
    blobs["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [described]}).encode()
    blobs["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
    with tarfile.open(path, "w") as tar:
        for name, content in blobs.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
