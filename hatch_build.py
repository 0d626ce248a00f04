"""Build hook: compile the CNI plugin into the wheel, as linkspan/shim/linkspan-cni, if there is a compiler.

Without one the wheel is a pure one, and `linkspan install cni` compiles on the spot or uses the Python twin.
An editable install leaves the source tree unchanged, for the same reason.
"""

from __future__ import annotations

import importlib.util
import os
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ShimHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the compiled plugin to the wheel, and with it the platform to the wheel's tag."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile; ``version`` is "standard" or "editable"."""
        if self.target_name != "wheel" or version == "editable":
            return
        path = Path(self.root, "src/linkspan/shim/build.py")
        spec = importlib.util.spec_from_file_location("linkspan_shim_build", path)
        if spec is None or spec.loader is None:
            raise FileNotFoundError(path)
        shim = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(shim)
        self._folder = tempfile.TemporaryDirectory()
        plugin = Path(self._folder.name, "linkspan-cni")
        if not shim.build(plugin):
            self.app.display_warning("no C compiler: the wheel has the Python twin of the CNI plugin only")
            return
        build_data["force_include"][str(plugin)] = "linkspan/shim/linkspan-cni"
        build_data["pure_python"] = False
        # LINKSPAN_PLATFORM is the platform for which the compiler that CC names compiles (scripts/package --arch).
        platform = os.environ.get("LINKSPAN_PLATFORM") or sysconfig.get_platform()
        platform = platform.replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"  # it uses nothing of Python, of any version

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Remove the compiled file."""
        if folder := getattr(self, "_folder", None):
            folder.cleanup()
