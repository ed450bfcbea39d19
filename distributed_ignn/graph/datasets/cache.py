"""Arrays that cost long to read, kept as ``.npz`` beside the data or in the user's cache."""

from __future__ import annotations

import logging
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from distributed_ignn.graph.datasets.download import atomic_path

logger = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]


def cached_arrays(
    path: Path, mark: str, build: Callable[[], Arrays], *, compress: bool = False
) -> Arrays:
    """What ``build`` returns, from ``path`` if that was written for the same ``mark``.

    A damaged or foreign file is replaced with a warning; one that cannot be written is only
    reported.

    Args:
        path: the ``.npz`` file.
        mark: identifies the source and the form of the arrays.
        build: makes the arrays; none may be called "mark".
        compress: worth it for small or repetitive arrays only.
    """
    if path.exists():
        try:
            return _read(path, mark)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            logger.warning("rebuilding the damaged cache %s (%s)", path, error)
    arrays = build()
    save = np.savez_compressed if compress else np.savez
    try:
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            save(stream, mark=np.array(mark), **arrays)  # type: ignore[arg-type]
    except OSError as error:
        logger.warning("could not keep %s for the next run (%s)", path, error)
    return arrays


def _read(path: Path, mark: str) -> Arrays:
    # Opened here: numpy leaves the file open when it is no zip.
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        if str(file["mark"]) != mark:
            raise ValueError("it was made from another file")
        return {key: file[key] for key in file.files if key != "mark"}
