"""A machine and a graph with round figures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from distributed_ignn.lab.planning.hardware import Profile
from distributed_ignn.lab.planning.workload import Part, Workload

WORK = Workload(width=64, features=32, classes=8, memory=3)


def curve(rate: float) -> dict[str, Any]:
    return {"points": [{"bytes": 1.0, "rate": {"rank": rate}}]}


def machine(**changes: Any) -> Profile:
    """Four ranks in a box with a slow network between boxes."""
    link = {"rate": {"rank": 1e9}, "message_seconds": 1e-5, "reduction_seconds": 1e-5}
    slow = link | {"rate": {"rank": 2e7, "box": 4e7}}
    values = {
        "name": "round",
        "origin": "specification",
        "source": "made up",
        "ranks_per_box": 4,
        "memory_bytes": 1e9,
        "process_bytes": 1e8,
        "stream": curve(1e10),
        "history": curve(1e10),
        "gather": {
            "rows": [{"row_bytes": 256.0, "scattered": curve(4e9), "clustered": curve(8e9)}]
        },
        "dense": {"rank": 1e11},
        "plain_dense": {"rank": 5e10},
        "masks": {"rank": 1e9},
        "pack": {"rank": 5e9},
        "scatter": {"rank": 5e9},
        "codec": {"rank": 2e9},
        "operation_seconds": 1e-6,
        "hidden": 1.0,
        "inside": link,
        "networks": {"slow": slow, "fast": link},
        "network": "slow",
    }
    return Profile.model_validate(values | changes)


def part(parts: int, share: float = 0.3) -> Part:
    """A part of a graph of 80,000 nodes with degree 20 whose halo is ``share`` of its rows."""
    owned = 80_000 / parts
    halo = 0.0 if parts == 1 else share * owned
    return Part(
        nodes=80_000,
        parts=parts,
        owned=owned,
        interior=owned - halo,
        halo=halo,
        sent=halo,
        owned_entries=21 * owned - 3 * halo,
        boundary_entries=3 * halo,
        neighbours=parts - 1,
    )


def with_codec(codec: Any) -> Workload:
    return replace(WORK, codec=codec)
