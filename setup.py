"""Puts configs/, which lies at the top of the repository, into the wheel as data of the package.

The rest is in pyproject.toml. An editable installation reads the checkout's own folder.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

_CONFIGS = Path(__file__).with_name("configs")


class BuildWithConfigs(build_py):
    """Copies configs/ beside the modules of the package."""

    def run(self) -> None:
        """Build as usual, then copy."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "distributed_ignn" / "configs"
            shutil.copytree(_CONFIGS, target, dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithConfigs})
