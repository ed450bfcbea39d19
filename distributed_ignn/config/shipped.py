"""Where the files of ``configs/`` lie: at the top of a checkout, inside the package once installed.

A wheel carries them as data of the package (``setup.py``); an editable installation reads those of
its checkout.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from distributed_ignn.errors import UserError


def _folder() -> Path:
    package = Path(str(files("distributed_ignn")))
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


CONFIG_FOLDER = _folder()


def shipped_file(*names: str) -> Path:
    """The path of a file in ``configs/``.

    Raises:
        UserError: it is not there, because the installation is not whole.
    """
    path = CONFIG_FOLDER.joinpath(*names)
    if not path.is_file():
        raise UserError(
            f"{path}, which comes with distributed_ignn, is missing; install the package again"
        )
    return path
