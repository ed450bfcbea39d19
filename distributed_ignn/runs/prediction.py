"""What a model says about the nodes of a graph, as values; ``predict.py`` writes them down."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distributed_ignn.errors import UserError
from distributed_ignn.models.certificate import NORMS, Certificate, certify, settled_nodes
from distributed_ignn.runs.node_rows import NodeRows
from distributed_ignn.solvers.base import Outcome, Solution
from distributed_ignn.training.trainer import Trainer

logger = logging.getLogger(__name__)

_CERTIFIED = (
    "certified_distance",
    "certified_relative",
    "norm",
    "contraction",
    "settled_nodes",
)


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What a model says about every node of a graph, and how far its solve has come.

    Letters: n nodes, C classes, D hidden width. Row i is node i of the graph as it was given; in
    what ``solved_here`` returns, the i-th node of the rank.

    Args:
        logits: [n, C], of the run's number format, on the CPU once they are of all ranks.
        multilabel: whether a node may have several labels.
        embeddings: [n, D], the equilibrium Z* that the logits are read from, or the last hidden
            layer of an explicit model (``NodeModel.embeddings``); None if not asked for.
        epoch: whose weights these are; validation chose it, if it had chosen one.
        evaluations: of the map; 0, as the next two, for an explicit model, which has none.
        residual: ||f(Z) - Z|| / ||f(Z)|| of the last evaluation, over all nodes.
        tolerance: what it was to reach.
        certified_distance: a bound on the distance of ``embeddings`` to the exact equilibrium, in
            ``norm``; None where the map of these weights is no contraction.
        certified_relative: the same in parts of the size of the embeddings.
        norm: in words.
        contraction: of the map, in that norm.
        settled_nodes: nodes whose labels are certainly those of the exact equilibrium.
        metric: what ``scores`` are, as ``train.metric`` has it.
        solves: whether the model solves for its states (``model.kind``).
        scores: of the predictions on the train, val and test nodes of the run's own graph; those of
            another graph have no labels.
        class_names: of the C classes, where the labels that were trained on were words.
    """

    logits: Tensor
    multilabel: bool
    embeddings: Tensor | None
    epoch: int
    evaluations: int
    residual: float
    tolerance: float
    certified_distance: float | None
    certified_relative: float | None
    norm: str | None
    contraction: float | None
    settled_nodes: int | None
    metric: str
    scores: dict[str, float]
    solves: bool = True
    class_names: tuple[str, ...] = ()

    @property
    def converged(self) -> bool:
        """Whether the solve has reached its tolerance; True where there is nothing to solve."""
        return self.residual <= self.tolerance

    @property
    def probabilities(self) -> Tensor:
        """[n, C]; rows sum to 1, unless a node may have several labels."""
        return torch.sigmoid(self.logits) if self.multilabel else torch.softmax(self.logits, dim=1)

    @property
    def labels(self) -> Tensor:
        """The likeliest class, int64 [n]; or which classes are likelier than not, bool [n, C]."""
        return self.logits > 0 if self.multilabel else self.logits.argmax(dim=1)

    def quality(self) -> dict[str, Any]:
        """How close the solve has come, and how good the predictions are, as JSON values."""
        solve = ("evaluations", "residual", "tolerance", "converged", *_CERTIFIED)
        named = ("class_names",) if self.class_names else ()
        names = ("epoch", *(solve if self.solves else ()), "metric", "scores", *named)
        return {name: getattr(self, name) for name in names}

    def __repr__(self) -> str:
        nodes, classes = self.logits.shape
        about = f"{nodes:,} nodes, {classes} classes, epoch {self.epoch}"
        if not self.solves:
            return f"Prediction({about})"
        reached = "converged" if self.converged else "NOT CONVERGED"
        return (
            f"Prediction({about}, relative residual {self.residual:.1e} after {self.evaluations} "
            f"evaluations, {reached} to {self.tolerance:g})"
        )


@dataclass(frozen=True, slots=True)
class SolveRequest:
    """How far a solve for predictions is to go.

    Args:
        tolerance: relative residual to solve to; None takes that which the run's own figures were
            confirmed with.
        steps: exactly so many evaluations instead, whatever the residual.
        require_converged: whether a solve that misses its tolerance is an error.

    Raises:
        UserError: they contradict each other or are out of range.
    """

    tolerance: float | None = None
    steps: int | None = None
    require_converged: bool = False

    def __post_init__(self) -> None:
        if self.tolerance is not None and self.steps is not None:
            raise UserError("tolerance and steps both say when to stop; give one of them")
        tolerance, steps = self.tolerance, self.steps
        if tolerance is not None and not (_is_a(Real, tolerance) and 0 < tolerance < 1):
            raise UserError(f"tolerance = {tolerance} must lie between 0 and 1, as in 1e-6")
        if steps is not None and not (_is_a(Integral, steps) and steps >= 1):
            raise UserError(f"steps = {steps} must be a whole number, at least 1")


def _is_a(kind: type, value: object) -> bool:
    """Asked although the types say so: programs give what they like."""
    return isinstance(value, kind)


def solved(trainer: Trainer, run: Path, request: SolveRequest, *, embeddings: bool) -> Prediction:
    """As ``solved_here``, with the rows of all ranks on every one of them.

    Args:
        trainer, run, request: see there.
        embeddings: whether the equilibrium itself is asked for.

    Raises:
        UserError: see there.
    """
    found, state = solved_here(trainer, run, request)
    logits = rows_of(trainer, found.logits).whole()
    kept = rows_of(trainer, trainer.model.embeddings(state)).whole() if embeddings else None
    return replace(found, logits=logits, embeddings=kept)


def rows_of(trainer: Trainer, rows: Tensor) -> NodeRows:
    """The rows of all ranks, of which ``rows`` [O, C] are this one's."""
    shard = trainer.shard
    return NodeRows(rows, shard.owned_nodes, shard.num_nodes, trainer.comm)


@torch.no_grad()
def solved_here(trainer: Trainer, run: Path, request: SolveRequest) -> tuple[Prediction, Tensor]:
    """Solve from nothing kept and read out; every rank calls it.

    Args:
        trainer: of ``load_run`` or ``load_run_for``.
        run: its output folder, for messages.
        request: how far to go.

    Returns:
        What is predicted for the nodes of this rank, [O, C], and their equilibrium [O, D].

    Raises:
        UserError: the solve diverges, or does not reach a tolerance that is required.
    """
    trainer.model.eval()
    if not trainer.model.solves:
        _refuse_limits(run, request, trainer)
    solution = _solve(trainer, request)
    _check(run, request, trainer, solution)
    logits = trainer.model.read_out(solution.image)
    found = Prediction(
        logits=logits,
        multilabel=trainer.shard.task == "multilabel",
        embeddings=None,
        epoch=trainer.best.epoch,
        metric=trainer.objective.metric_name,
        scores=trainer.objective.scores(logits),
        class_names=trainer.shard.class_names,
        **_solve_figures(request, trainer, solution),
    )
    return found, solution.image


def _refuse_limits(run: Path, request: SolveRequest, trainer: Trainer) -> None:
    """Limits of a solve say nothing to a model that does not solve."""
    given = {"tolerance": request.tolerance, "steps": request.steps}
    for name, value in given.items():
        if value is not None:
            raise UserError(
                f"{name} = {value:g} has no effect on {run}, whose model.kind = "
                f"{trainer.config.model.kind} has no solve; drop it"
            )


def _solve_figures(request: SolveRequest, trainer: Trainer, solution: Solution) -> dict[str, Any]:
    """How close the state is to the equilibrium, as values."""
    if not trainer.model.solves:
        none = {"solves": False, "evaluations": 0, "residual": 0.0, "tolerance": 0.0}
        return none | dict.fromkeys(_CERTIFIED)
    state = solution.image
    certificate = certify(trainer.implicit, trainer.shard, trainer.comm, state)
    return {
        "evaluations": solution.steps,
        "residual": solution.residual,
        "tolerance": _tolerance(request, trainer),
        **_describe(certificate, trainer, state),
    }


def _solve(trainer: Trainer, request: SolveRequest) -> Solution:
    """Go as far as asked; by default as far as validation needed for the figures it chose by."""
    if request.tolerance is None and request.steps is None:
        return trainer.confirmation.solve(*trainer.evaluation.best_limits)
    tolerance = 0.0 if request.steps is not None else request.tolerance
    return trainer.model.solve(trainer.planner.evaluate(tolerance, request.steps))


def _tolerance(request: SolveRequest, trainer: Trainer) -> float:
    return trainer.evaluation.best_limits[0] if request.tolerance is None else request.tolerance


def _check(run: Path, request: SolveRequest, trainer: Trainer, solution: Solution) -> None:
    """Refuse a solve that has diverged, and tell of one that has not converged."""
    if solution.outcome is Outcome.DIVERGED:
        raise UserError(
            f"the solve of {run} diverges (map evaluations {solution.steps}), there is "
            "nothing to predict from; train with model.constraint projection"
        )
    tolerance = _tolerance(request, trainer)
    if solution.residual <= tolerance:
        return
    what = (
        f"relative residual {solution.residual:.1e} above {tolerance:g}, map evaluations "
        f"{solution.steps}"
    )
    if request.require_converged:
        raise UserError(
            f"the solve of {run} has not converged ({what}) and --require-converged "
            "is set; give it more with --steps N, or a looser --tolerance"
        )
    if trainer.comm.is_main:
        logger.warning(
            "the predictions come from a solve that did not reach its tolerance: %s; give it "
            "more with --steps N",
            what,
        )


def _describe(certificate: Certificate | None, trainer: Trainer, state: Tensor) -> dict[str, Any]:
    """The certificate as values, None where there is none."""
    if certificate is None:
        return dict.fromkeys(_CERTIFIED)
    multilabel = trainer.shard.task == "multilabel"
    settled = settled_nodes(trainer.implicit, certificate, state, multilabel).sum().cpu().reshape(1)
    return {
        "certified_distance": certificate.distance,
        "certified_relative": certificate.relative,
        "norm": NORMS[certificate.norm],
        "contraction": certificate.contraction,
        "settled_nodes": int(trainer.comm.sum(settled)),
    }
