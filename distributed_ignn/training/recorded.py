"""Which solves of a run are recorded on a GPU (``capture``), and what stands in the way."""

from __future__ import annotations

from collections.abc import Iterator

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig
from distributed_ignn.errors import UserError
from distributed_ignn.propagation.propagate import choose_codec
from distributed_ignn.solvers.captured import Captures


def captures(config: RunConfig, comm: Communicator) -> dict[str, Captures]:
    """By section, what records its solves; empty where nothing can be recorded.

    A run that was trained on a GPU may be used on a CPU; whoever trains calls ``refuse_captures``.
    """
    if any(_obstacles(config, comm)):
        return {}
    sizes = {"forward": config.forward.capture, "adjoint": config.adjoint.capture}
    found = {name: Captures(size, comm.traffic) for name, size in sizes.items() if size}
    for each in found.values():
        comm.before_close(each.forget)
    return found


def refuse_captures(config: RunConfig, comm: Communicator) -> None:
    """Refuse a ``capture`` without effect; what settings alone rule out, they have refused.

    Raises:
        UserError: naming the setting and the obstacle.
    """
    for section, limits in (("forward", config.forward), ("adjoint", config.adjoint)):
        for obstacle in _obstacles(config, comm) if limits.capture else ():
            raise UserError(f"{section}.capture = {limits.capture}, but {obstacle}")


def _obstacles(config: RunConfig, comm: Communicator) -> Iterator[str]:
    """What stands in the way, and the way out."""
    if comm.device.type != "cuda":
        yield "this rank computes on a CPU, which has no launches to record; drop it"
    if comm.backend == "gloo":
        yield "these ranks exchange rows by gloo, which waits on the host; drop it"
    codec = choose_codec(config.comm.halo, comm)
    if codec != "fp32":
        yield f"halo rows between machines are written in {codec}; add --comm.halo fp32"
