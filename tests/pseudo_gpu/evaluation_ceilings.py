"""What one steady evaluation of each solver may ask of a GPU. Lower these, never raise them.

Counted on two emulated ranks over NCCL, per evaluation of the map, in the middle of a long solve;
an evaluation of a captured graph has its share of the one launch. Passes are reads and writes of
arrays as large as the state of a rank; those of the sparse product's gathered rows count once.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ceiling:
    """Numbers of one evaluation.

    Args:
        launches: of kernels, NCCL's own left out.
        syncs: of the host with the device.
        uploads: copies from the host to the device.
        nccl: calls of NCCL.
        passes: over the state.
    """

    launches: float
    syncs: float
    uploads: float
    nccl: float
    passes: float


CEILINGS = {
    "picard": Ceiling(26, 1, 0, 2, 22),
    "anderson": Ceiling(54, 1, 0, 2, 65),
    "anderson, adjoint": Ceiling(56, 1, 0, 2, 68),
    "anderson, large graph": Ceiling(66, 2, 0, 3, 67),
    "anderson, int4 halos": Ceiling(98, 1, 0, 2, 87),
    "anderson, recorded by 8": Ceiling(0.3, 0.2, 0, 2, 59),
    "picard, recorded by 8": Ceiling(0.3, 0.2, 0, 2, 26),
    "broyden": Ceiling(35, 1, 0, 2, 38),
    "learned": Ceiling(88, 2, 0, 4, 84),
}
