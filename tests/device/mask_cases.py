"""Dropout masks by the kernel on any device, and by torch on the CPU."""

from __future__ import annotations

import torch

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.models.dropout import NodeDropout
from tests.device.triton_runs import counted, without_kernels

SHAPES = ((37, 5), (1, 1), (9, 300), (0, 8), (200, 128))


def differing_masks(comm: Communicator) -> list[str]:
    """Shapes and seeds whose masks are not the same bits."""
    found = []
    for shape in SHAPES:
        for seed, step, probability in ((0, 0, 0.5), (7, 123, 0.1), (2**40, 3, 0.999), (-1, 1, 0)):
            nodes = torch.randint(0, 2**40, shape[:1])
            drop = NodeDropout(probability, 1)
            mask = drop.mask(seed, step, nodes.to(comm.device), shape[1])
            with without_kernels():
                expected = drop.mask(seed, step, nodes, shape[1])
            if mask.dtype is not torch.bool or not torch.equal(mask.cpu(), expected):
                found.append(f"{shape}, {seed}, {step}, {probability}")
    return found


def launches_of_a_mask(comm: Communicator) -> int:
    """Of an interpreted kernel."""
    with counted() as traffic:
        NodeDropout(0.5, 1).mask(0, 0, torch.arange(300), 40)
    return traffic.launches
