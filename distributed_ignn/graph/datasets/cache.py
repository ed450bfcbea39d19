"""Arrays that cost long to read or do not fit the memory, kept beside the data or in the cache."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from distributed_ignn.graph.datasets.download import atomic_path
from distributed_ignn.long_steps import long_step
from distributed_ignn.reading.archives import check_room, copy_told, open_zip
from distributed_ignn.reading.arrays import map_npy, read_npz

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
        except (OSError, ValueError, KeyError) as error:
            logger.warning("rebuilding the damaged cache %s (%s)", path, error)
    arrays = build()
    save = np.savez_compressed if compress else np.savez
    try:
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            save(stream, mark=np.array(mark), **arrays)  # type: ignore[arg-type]
    except OSError as error:
        logger.warning("could not keep %s for the next run (%s)", path, error)
    return arrays


def mapped_members(archive: Path, names: Sequence[str], folder: Path) -> Arrays:
    """Arrays of an ``.npz`` file as memory-mapped ``.npy`` files, without ever loading them.

    Writing into a mapped array changes neither file.

    Args:
        archive: the ``.npz`` file, which may be larger than the memory.
        names: of the arrays; those that the file lacks are left out.
        folder: keeps the ``.npy`` files, as large as the arrays; they serve the next run.

    Raises:
        OSError, ValueError: a damaged archive, or no room on the disk.
    """
    state = archive.stat()
    source = f"{archive.resolve()} {state.st_size} {state.st_mtime_ns}"
    mark = hashlib.sha256(source.encode()).hexdigest()[:16]
    arrays: Arrays = {}
    with open_zip(archive) as opened:
        present = set(opened.namelist())
        for name in names:
            if f"{name}.npy" not in present:
                continue
            target = folder / f"{mark}-{name}.npy"
            if not target.exists():
                logger.info("unpacking %s of %s", name, archive)
                size = opened.getinfo(f"{name}.npy").file_size
                check_room(folder, size)
                with (
                    long_step(f"unpacking {name} of {archive.name}", size) as told,
                    opened.open(f"{name}.npy") as member,
                    atomic_path(target) as temporary,
                    temporary.open("wb") as stream,
                ):
                    copy_told(member, stream, told)
            arrays[name] = map_npy(target)
    return arrays


def _read(path: Path, mark: str) -> Arrays:
    if str(read_npz(path, ["mark"], kinds="U")["mark"]) != mark:
        raise ValueError("it was made from another file")
    arrays = read_npz(path, kinds="biufU")
    return {key: array for key, array in arrays.items() if key != "mark"}
