"""METIS in a process of its own: ``python -P metis_process.py FOLDER PARENT``.

METIS draws from the C library's one random generator. Other threads of a training process, such as
Ray's, draw from it too and would change the partition from run to run. A process without them gives
the same one every time, and a crash of METIS does not take the training along. The library that the
request names, pymetis or pyg-lib, is imported here alone.

FOLDER holds rowptr.npy, col.npy, weights.npy, request.json and, where cutting an edge has a price
of its own, links.npy; part.npy is written there. Arrays are mapped, not read; those that METIS
needs in another width are rewritten in FOLDER first. PARENT is the process that waits: if that is
killed, so is this one, which would else hold the memory that a second attempt needs.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_STEP = 1 << 22


_PR_SET_PDEATHSIG = 1  # Linux: a signal for this process when its parent ends


def follow(parent: int) -> None:
    """End together with the process that waits for this one."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was faster
        raise SystemExit("nobody waits for METIS any more")


def main(folder: Path) -> None:
    """Divide the graph in ``folder`` as its request says."""
    request = json.loads((folder / "request.json").read_text())
    part = _LIBRARIES[request["provider"]](folder, request)
    # pyg-lib ignores METIS's error codes and would hand back uninitialised memory
    if part.size and not 0 <= int(part.min()) <= int(part.max()) < request["parts"]:
        raise SystemExit("it names parts that there are not")
    np.save(folder / "part.npy", part.astype(np.int64))


def _with_pymetis(folder: Path, request: dict[str, Any]) -> np.ndarray:
    """Part of every node, with everything that METIS offers."""
    import pymetis

    wanted = np.dtype(pymetis.zero_copy_dtype())
    volume = request["objective"] == "volume"
    result = pymetis.part_graph(
        request["parts"],
        pymetis.CSRAdjacency(_mapped(folder, "rowptr", wanted), _mapped(folder, "col", wanted)),
        vweights=_mapped(folder, "weights", wanted),
        eweights=_mapped(folder, "links", wanted) if _has_links(folder) else None,
        options=pymetis.Options(
            objtype=pymetis.ObjType.VOL if volume else pymetis.ObjType.CUT,
            ufactor=request["ufactor"],
            seed=request["seed"],
        ),
        recursive=False,  # recursive bisection knows the cut objective only
    )
    return np.asarray(result.vertex_part)


def _with_pyg_lib(folder: Path, request: dict[str, Any]) -> np.ndarray:
    """Part of every node by METIS's own seed and imbalance; the objective is the cut."""
    import torch
    from pyg_lib.partition import metis

    def tensor(name: str) -> torch.Tensor:
        """The array as pyg-lib takes it: int64 and in one piece."""
        return torch.from_numpy(_mapped(folder, name, np.dtype(np.int64)))

    part = metis(
        tensor("rowptr"),
        tensor("col"),
        request["parts"],
        node_weight=tensor("weights"),
        edge_weight=tensor("links") if _has_links(folder) else None,
        recursive=False,
    )
    found: np.ndarray = part.numpy()
    return found


_LIBRARIES: dict[str, Callable[[Path, dict[str, Any]], np.ndarray]] = {
    "pymetis": _with_pymetis,
    "pyg-lib": _with_pyg_lib,
}


def _has_links(folder: Path) -> bool:
    return (folder / "links.npy").exists()


def _mapped(folder: Path, name: str, wanted: np.dtype) -> np.ndarray:
    """The array in the width that is wanted; writing into it would not change the file."""
    path = folder / f"{name}.npy"
    given = np.load(path, mmap_mode="c", allow_pickle=False)
    if given.dtype != wanted and given.size:
        if int(given.max()) > np.iinfo(wanted).max:
            raise SystemExit(f"{name} holds {int(given.max())}, METIS here counts in {wanted}")
        path = folder / f"{name}-{wanted}.npy"
        wide = np.lib.format.open_memmap(path, "w+", wanted, given.shape)
        for start in range(0, given.size, _STEP):
            wide[start : start + _STEP] = given[start : start + _STEP]
        wide.flush()
        del wide
        given = np.load(path, mmap_mode="c", allow_pickle=False)
    return np.asarray(given, wanted)


if __name__ == "__main__":
    follow(int(sys.argv[2]))
    main(Path(sys.argv[1]))
