"""What the build of a wheel does beside setuptools' own work: it compiles the kernels (``build.py``).

Setuptools loads this file alone, by pyproject.toml. If the kernels cannot be compiled, the wheel has none, and serves
every platform: they are then compiled when they are first used. FASTAE_BUILD_KERNELS=0 asks for such a wheel.
"""

import os
import platform
import subprocess
import sys
from pathlib import Path

from setuptools.command.bdist_wheel import bdist_wheel as _bdist_wheel
from setuptools.command.build_py import build_py as _build_py

PLACE = Path("fastae", "kernels", "objects")


def _remove_files(directory: Path) -> None:
    for file in directory.glob("*"):
        file.unlink()


class build_py(_build_py):
    """Copies the packages, then compiles the kernels of the copy, whose hash the object files carry."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        home = Path(self.build_lib).resolve()
        _remove_files(home / PLACE)  # of an earlier build in this folder
        if os.environ.get("FASTAE_BUILD_KERNELS") == "0":
            return
        # What is there already is how pip shows an isolated build what it installed for it.
        path = os.pathsep.join(filter(None, [str(home), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-m", "fastae.kernels.build"]
        done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            _remove_files(home / PLACE)
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            print(f"fastae: kernels were not compiled, and will be at first use: {reason}", file=sys.stderr)


class bdist_wheel(_bdist_wheel):
    """Names the platform in the wheel's tag if the wheel holds object files. They suit every Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        if not any(Path(self.bdist_dir, PLACE).glob("*")):
            return super().get_tag()
        self.root_is_pure = False
        _, _, system = super().get_tag()
        return "py3", "none", system.replace("universal2", platform.machine().lower())
