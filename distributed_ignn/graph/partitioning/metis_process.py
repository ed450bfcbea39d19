"""METIS in a process of its own: ``python -P metis_process.py FOLDER PARENT``.

METIS draws from the C library's one random generator. Other threads of a training process, such as
Ray's, draw from it too and would change the partition from run to run. A process without them gives
the same one every time, and a crash of METIS does not take the training along.

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
from pathlib import Path

import numpy as np
import pymetis

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
    volume = request["objective"] == "volume"
    result = pymetis.part_graph(
        request["parts"],
        pymetis.CSRAdjacency(_mapped(folder, "rowptr"), _mapped(folder, "col")),
        vweights=_mapped(folder, "weights"),
        eweights=_mapped(folder, "links") if (folder / "links.npy").exists() else None,
        options=pymetis.Options(
            objtype=pymetis.ObjType.VOL if volume else pymetis.ObjType.CUT,
            ufactor=request["ufactor"],
            seed=request["seed"],
        ),
        recursive=False,  # recursive bisection knows the cut objective only
    )
    np.save(folder / "part.npy", np.asarray(result.vertex_part).astype(np.int64))


def _mapped(folder: Path, name: str) -> np.ndarray:
    """The array in METIS's width; writing into it would not change the file."""
    wanted = np.dtype(pymetis.zero_copy_dtype())
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
