"""METIS in a process of its own: ``python -P metis_process.py FOLDER``.

METIS draws from the C library's one random generator. Other threads of a training process, such as
Ray's, draw from it too and would change the partition from run to run. A process without them gives
the same one every time, and a crash of METIS does not take the training along.

FOLDER holds rowptr.npy, col.npy, weights.npy and request.json; part.npy is written there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pymetis


def main(folder: Path) -> None:
    """Divide the graph in ``folder`` as its request says."""
    request = json.loads((folder / "request.json").read_text())
    index = pymetis.zero_copy_dtype()

    def array(name: str) -> np.ndarray:
        return np.load(folder / f"{name}.npy", allow_pickle=False).astype(index, copy=False)

    volume = request["objective"] == "volume"
    result = pymetis.part_graph(
        request["parts"],
        pymetis.CSRAdjacency(array("rowptr"), array("col")),
        vweights=array("weights"),
        options=pymetis.Options(
            objtype=pymetis.ObjType.VOL if volume else pymetis.ObjType.CUT,
            ufactor=request["ufactor"],
            seed=request["seed"],
        ),
        recursive=False,  # recursive bisection knows the cut objective only
    )
    np.save(folder / "part.npy", np.asarray(result.vertex_part).astype(np.int64))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
