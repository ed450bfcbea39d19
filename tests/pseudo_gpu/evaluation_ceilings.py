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
    "picard": Ceiling(30, 2, 1, 2, 23),
    "anderson": Ceiling(56, 2, 1, 2, 67),
    "anderson, adjoint": Ceiling(58, 2, 1, 2, 70),
    "anderson, large graph": Ceiling(71, 4, 2, 3, 68),
    "anderson, int4 halos": Ceiling(100, 3, 1, 2, 90),
    "broyden": Ceiling(37, 2, 1, 2, 41),
    "learned": Ceiling(94, 5, 2, 4, 86),
}
