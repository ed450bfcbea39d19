"""The terms of the solver's loss where every node has mixing weights of its own.

Each term is summed over ranks differentiably and is the same number on every rank, so that it must
be divided by the number of ranks before ``backward`` (see ``all_reduce_sum``). The history is held
constant, as for one vector of weights.

Letters: O owned rows, D columns, m iterates held.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from distributed_ignn.comm.collectives import all_reduce_sum
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.solvers.blocks import square_sum
from distributed_ignn.solvers.history import History


def node_distance(
    history: History, alpha: Tensor, beta: Tensor, error: Tensor, comm: Communicator
) -> tuple[Tensor, float]:
    """log ||y - Z*|| for y = sum_i alpha_i (z_i + beta g_i), row by row.

    Args:
        history: where z_i and g_i are.
        alpha: [O, m] newest first.
        beta: scalar.
        error: y - Z*, [O, D].
        comm: this rank's communicator.

    Returns:
        Something with the term's gradient in ``alpha`` and ``beta``, and the term's value.
    """
    points, residuals = history.row_dots(error)
    local = torch.stack(
        [
            (alpha * (points + beta.detach() * residuals)).sum(),
            (alpha.detach() * residuals).sum(),
            square_sum(error.detach()),
        ]
    )
    through_alpha, along, total = all_reduce_sum(local, comm).unbind()
    square = max(float(total.detach()), 1e-300)
    return (through_alpha + beta * along) / square, 0.5 * math.log(square)


def node_mixed_residual(
    history: History, alpha: Tensor, comm: Communicator
) -> tuple[Tensor, float]:
    """log(||sum_i alpha_i g_i|| / ||g_k||): something with its gradient, and its value."""
    weights = alpha.detach()
    mixed = history.mix(weights, 1.0) - history.mix(weights, 0.0)
    _, residuals = history.row_dots(mixed)
    local = torch.stack([(alpha * residuals).sum(), square_sum(mixed)])
    slope, total = all_reduce_sum(local, comm).unbind()
    square = max(float(total.detach()), 1e-300)
    newest = max(float(history.ordered_gram()[0, 0]), 1e-300)
    return slope / square, 0.5 * (math.log(square) - math.log(newest))
