"""Confirmation: whether a validation metric is that of the equilibrium, before it chooses an epoch.

A relative residual of r leaves the state up to r / (1 - c) away from Z*, c the contraction of the
map: with kappa = .95 a tolerance of 1e-4 may mean 2e-3 of the state. Where the logits of many
nodes lie within that of each other, as on chains, whose nodes of one depth are all alike, a metric
read out there is not that of the weights, however the solve began; a warm start is only as good as
the tolerance it stops at. So before an epoch becomes the best one, the map is solved anew, from no
state that was kept, with exact halo rows, to a tenth and a hundredth of the tolerance, and further
where labels still move: a metric is confirmed once two tolerances in a row give all validation
nodes but a share of ``SLACK`` / 2 the same labels. ``choosing.py`` says which epochs are looked
into.

Everything that training goes on from is as it was afterwards, warm starts and links included.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.models.certificate import Certificate, certify, settled_nodes
from distributed_ignn.models.node_model import NodeModel
from distributed_ignn.models.shard_model import ShardModel
from distributed_ignn.solvers.base import Outcome, Solution
from distributed_ignn.training.losses.objective import Objective
from distributed_ignn.training.plans import SolvePlanner

SLACK = 0.002
"""By how much a confirmed metric may differ from that of the equilibrium: .2 points."""

_FLOOR = 16.0  # times eps: no smaller relative residual is sure to be reached
_NEAR = 3.0  # times a tolerance that rounding keeps a solve from reaching
_LEVELS = 3
_PATIENCE = 2  # times forward.max_steps: evaluations that a confirmation may take


@dataclass(frozen=True, slots=True)
class Finding:
    """What is known of the metrics of a model.

    Args:
        metrics: by split.
        holds: whether they are those of the equilibrium.
        tolerance: relative residual that a solve from nothing kept needs to find them.
    """

    metrics: dict[str, float]
    holds: bool
    tolerance: float


class Confirmation:
    """Judges validation metrics; every rank calls it alike and gets the same answer.

    Args:
        config: the tolerance and the steps of the forward solve are read.
        model, shard, comm: this rank's part.
        objective: measures.
        planner: plans the solves and counts their evaluations.

    Attributes:
        planner: see above.
    """

    def __init__(
        self,
        config: RunConfig,
        model: NodeModel,
        shard: GraphShard,
        comm: Communicator,
        objective: Objective,
        planner: SolvePlanner,
    ) -> None:
        self._limits = config.forward
        self._model = model
        self._shard = shard
        self._comm = comm
        self._objective = objective
        self.planner = planner
        self._rows = shard.val_index.to(comm.device)
        self._total = max(shard.split_sizes[1], 1)

    @property
    def max_steps(self) -> int:
        """Evaluations that a solve to a tight tolerance may take."""
        return _PATIENCE * self._limits.max_steps

    def unconfirmed(self, metrics: dict[str, float]) -> Finding:
        """Say that the metrics of a validation are not known to hold, if they come from a solve."""
        return Finding(metrics, not self._model.solves, self._limits.tolerance)

    @torch.no_grad()
    def judge(self, metrics: dict[str, float]) -> Finding:
        """Confirm the metrics of the model's present weights, or find others.

        Args:
            metrics: by split, ``val`` among them, as a validation solve found them; they are all
                that there is where the map cannot be solved.
        """
        self._model.eval()
        doing = self._comm.activity.phase("confirming the validation")
        with doing, self._model.exact_rows():
            return self._find_anew(self.unconfirmed(metrics))

    def _find_anew(self, loose: Finding) -> Finding:
        """Solve ever more tightly from nothing kept until the validation labels stay.

        Args:
            loose: what is taken for true if that fails.
        """
        left, found = self.max_steps, loose
        start: list[Tensor] = []
        before: Tensor | None = None
        for tolerance in self._levels():
            solution = self._solve(start, tolerance, left)
            if solution.outcome is Outcome.DIVERGED:
                return loose
            now = self._labels(solution.image)
            reached = solution.residual <= _NEAR * tolerance
            holds = reached and before is not None and self._differ(now, before) <= SLACK / 2
            left -= solution.steps
            found = Finding({}, holds, max(tolerance, solution.residual))
            going_on = not holds and solution.converged and left > 0
            start, before = [solution.image], now
            del solution  # the next solve needs the memory
            if not going_on:
                break
        return replace(found, metrics=self.measure(start.pop(), tuple(loose.metrics)))

    def measure(self, state: Tensor, splits: tuple[str, ...]) -> dict[str, float]:
        """Measure the metric per split at a state [O, D]; no other nodes are read out."""
        return self._objective.metrics_of(
            lambda rows: self._model.read_out(state, rows=rows), splits
        )

    def solve(self, tolerance: float, max_steps: int) -> Solution:
        """Solve from nothing kept, with exact halo rows; nothing of it is kept."""
        with self._model.exact_rows():
            return self._solve([], tolerance, max_steps)

    def _solve(self, start: list[Tensor], tolerance: float, max_steps: int) -> Solution:
        return self._model.solve(self.planner.confirm(start, tolerance, max_steps))

    def certificate(self, state: Tensor) -> Certificate | None:
        """Return the certificate of a state [O, D], if there is one."""
        if not isinstance(self._model, ShardModel):
            return None
        return certify(self._model, self._shard, self._comm, state)

    def unsettled(self, certificate: Certificate | None, state: Tensor) -> float:
        """Return the share of validation nodes whose labels may be others at the equilibrium."""
        if certificate is None or not isinstance(self._model, ShardModel):
            return 1.0
        multilabel = self._objective.multilabel
        settled = settled_nodes(self._model, certificate, state, multilabel, self._rows)
        return self._share(~settled)

    def _labels(self, state: Tensor) -> Tensor:
        """Return the labels that this rank's validation nodes get at a state [O, D]."""
        return self._objective.predictions(self._model.read_out(state, rows=self._rows))

    def _differ(self, labels: Tensor, others: Tensor) -> float:
        """Return the share of validation nodes with other labels."""
        other = labels != others
        return self._share(other.any(dim=1) if other.dim() > 1 else other)

    def _share(self, marked: Tensor) -> float:
        """Return the share of all validation nodes that are ``marked`` on their ranks."""
        return float(self._comm.sum(marked.sum().cpu().reshape(1))) / self._total

    def _levels(self) -> list[float]:
        """Return ever tighter tolerances, at least two, none that rounding keeps out of reach."""
        floor = _FLOOR * torch.finfo(self._model.dtype).eps
        return list(_tighter(self._limits.tolerance, floor))


def _tighter(own: float, floor: float) -> Iterator[float]:
    """Yield tolerances below ``own`` by decades, down to ``floor``.

    Where rounding leaves less than two decades they are divided in equal parts, and where it leaves
    none ``own`` is the last.
    """
    if own <= floor:
        yield from (10.0 * own, own)
        return
    decades = min(math.log10(own / floor), float(_LEVELS))
    count = max(2, math.floor(decades))
    step = 1.0 if decades >= count else decades / count
    for number in range(1, count + 1):
        yield own * 10.0 ** (-step * number)
