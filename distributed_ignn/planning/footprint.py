"""Bytes that a rank holds at its worst moment, by what they are for.

Peak of an epoch: the backward solve, when the training step's arrays and Anderson's history are
alive together. Letters as in ``workload.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

from distributed_ignn.planning.workload import Part, Workload

_STEP_ARRAYS = 8.25
"""[O, D] arrays alive in a backward solve besides the history: Z*, A_hat Z*, a mask of bytes, g, v
times W', v, its image, the best pair, the mixed point."""

_KEPT_ARRAYS = 2.0  # warm starts of the forward and of the backward solve
_INDEX = 4  # bytes of a column index


@dataclass(frozen=True, slots=True)
class MemoryItem:
    """One use of memory.

    Args:
        name: what for.
        bytes: of one rank.
    """

    name: str
    bytes: float


def memory_items(
    part: Part, work: Workload, base: float = 0.0, mapped: bool = False
) -> list[MemoryItem]:
    """All uses, largest first.

    Args:
        part: sizes of the rank.
        work: the settings.
        base: what the process takes before it has any data (libraries, device context).
        mapped: whether the shard's file counts too, whose pages a CPU rank has resident.
    """
    state = part.owned * work.width * work.bytes
    rows = _INDEX * (part.owned + 2 * part.boundary + part.halo)
    kept = part.channels if work.keeps_terms(part.channels) else 0
    rows_labelled = part.owned * work.train_share
    found = [
        MemoryItem("process", base),
        MemoryItem("features", part.owned * work.features * 4.0),
        MemoryItem("graph", (part.owned_entries + 2.0 * part.boundary_entries) * _INDEX + rows),
        MemoryItem("history", 2.0 * (work.memory + 1) * state),
        MemoryItem("training step", _STEP_ARRAYS * state),
        MemoryItem("warm starts", _KEPT_ARRAYS * state),
        MemoryItem("propagated features", kept * part.owned * work.features * 4.0),
        MemoryItem("logits", rows_labelled * (4.0 * work.classes + 3.0 * work.width) * work.bytes),
        MemoryItem("halo buffers", (2.0 * part.sent + part.halo) * work.width * 4.0),
        MemoryItem("indices", 8.0 * (part.owned + part.sent)),
    ]
    if work.codec != "fp32":
        # what both ends have decoded so far, for the forward and for the backward solve
        held = 2.0 * (part.sent + part.halo) * work.width * 4.0
        found.append(MemoryItem("codec references", held))
    if mapped:
        entries = part.owned_entries + part.boundary_entries
        found.append(MemoryItem("shard file", 8.0 * (entries + 5.0 * part.owned + 2.0 * part.halo)))
    return sorted(found, key=lambda item: -item.bytes)


def memory_bytes(part: Part, work: Workload, base: float = 0.0, mapped: bool = False) -> float:
    """Their sum."""
    return sum(item.bytes for item in memory_items(part, work, base, mapped))
