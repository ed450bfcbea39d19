"""The tensors that bad numbers may come from, each made from those before it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from distributed_ignn.models.node_model import NodeModel
from distributed_ignn.training.plans import ADJOINT, EVALUATE, TRAIN, SolvePlanner

SOLVES = {TRAIN: "forward", EVALUATE: "validation", ADJOINT: "backward"}
"""What a person calls the solve for each purpose."""


@torch.no_grad()
def step_tensors(
    model: NodeModel,
    planner: SolvePlanner,
    step: int | None,
    made: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
) -> list[tuple[str, Tensor]]:
    """Name tensors of this rank, causes before effects; every rank calls it alike.

    Args:
        model: its weights, and what its states are computed from.
        planner: its kept states, and the first and best point of a solve that has diverged.
        step: seed of the dropout in b(X), or None for that of an evaluation.
        made: what the step has made so far.
        gradients: this rank's own.
    """
    found: list[tuple[str, Tensor]] = []
    found += [(f"weights {name}", p) for name, p in model.named_parameters()]
    found += model.inputs(step)
    found += [
        (f"the kept state of the {SOLVES.get(key, key)} solve", planner.states[key])
        for key in sorted(planner.states)
    ]
    for purpose, name in SOLVES.items():
        solution = planner.log.diverged.get(purpose)
        if solution is not None:
            start = "the first" if solution.steps == 1 else "the best"
            found.append((f"{start} point of the {name} solve", solution.point))
            found.append((f"its image in the {name} solve", solution.image))
    found += made.items()
    # a rank without training nodes may lack the gradient of some parameter
    nothing = torch.zeros(0)
    found += [
        (f"the gradient of {name}", gradients.get(name, nothing))
        for name, _ in model.named_parameters()
    ]
    return found
