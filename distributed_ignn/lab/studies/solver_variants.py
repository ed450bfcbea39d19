"""Figures 5 and 7: solvers trained in different ways on one frozen model.

The model is trained once for each seed. Every variant's solver is then trained from scratch on that
frozen model, its network for as many steps as the run's schedule holds, so that all curves belong
to the same map.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.errors import UserError
from distributed_ignn.lab.benchmarks.problem import Problem
from distributed_ignn.lab.benchmarks.tracing import Method
from distributed_ignn.lab.benchmarks.variants import (
    Variant,
    all_variants,
    ensure_thinned,
    train_solver,
    train_variant,
)
from distributed_ignn.lab.studies import convergence
from distributed_ignn.lab.studies.outcome import Outcome, Request
from distributed_ignn.training.learned_solver import LearnedSolver

_OURS = {"kind": "estimator", "alpha": "global"}
CLOSED_FORM = Variant("closed form", {**_OURS, "estimator": "graph", "network": "none"})
"""What is shipped: nothing needs gradient steps."""
NETWORK = Variant("graph network", {**_OURS, "estimator": "none", "network": "graph"})
"""A network with a graph layer corrects Anderson's weights."""
PAPER = Variant("paper", {"kind": "paper", "sparsifier": "pri", "lambda1_steps": "rising"})
"""The paper's own solver: its network takes the place of Anderson's weights."""

_TERMS = {
    "lambda1": "no distances",
    "lambda2": "untrained initialiser",
    "lambda3": "no mixed residuals",
}
_LOSS_PAPER = (
    "Section 5.4 on Citeseer: removing the initialiser or the alpha loss hurts, 'with the former "
    "having a more detrimental impact'; every ablation stays 'significantly superior to methods "
    "without a solver'. The curves are in the picture of Figure 5 only."
)
_LOSS_DIFFERS = (
    "Each term is switched off by its weight, for the solver that is fitted in closed form, for a "
    "network that corrects Anderson's weights, and for the paper's own solver, which is trained by "
    "the other schemes of lambda1 besides (constant over k, last step only). The closed form has "
    "no mixed residuals (lambda3), and without distances (lambda1) its estimator stays untrained, "
    "which is Anderson."
)
_NETWORK_PAPER = (
    "Appendix D.2 on Citeseer: the graph layer (GN) 'improves the convergence path of all other "
    "solvers' (NN, TCN, GRU), and TCN and GRU 'actually perform worse than NN'. The curves are in "
    "the picture of Figure 7 only."
)
_NETWORK_DIFFERS = (
    "All start from the run's initialiser; the networks correct Anderson's weights, for the whole "
    "graph (global) or for each node. The estimators that need no network stand beside them, and "
    "the paper's own solver, with the safeguard and without."
)


def run_losses(request: Request, comm: Communicator) -> Outcome:
    """Figure 5: each term of the solver's loss switched off, without a network and with one."""
    rows = []
    for seed in request.seeds:
        problem = convergence.freeze(request, seed, comm)
        methods = [*convergence.classical(problem), *_ablations(problem)]
        rows += convergence.follow(problem, seed, methods)
    title = f"terms of the solver's loss, {request.config.dataset}"
    return _outcome(request, rows, title, (_LOSS_PAPER, _LOSS_DIFFERS))


def run_networks(request: Request, comm: Communicator) -> Outcome:
    """Figure 7: every kind of solver that ``all_variants`` has."""
    rows = []
    for seed in request.seeds:
        problem = convergence.freeze(request, seed, comm)
        steps, methods = network_steps(problem), convergence.classical(problem)
        for variant in all_variants():
            learned = train_from_initialiser(problem, variant, steps)
            methods.append(convergence.as_method(problem, variant.name, learned))
        rows += convergence.follow(problem, seed, methods)
    title = f"networks of the learned solver, {request.config.dataset}"
    return _outcome(request, rows, title, (_NETWORK_PAPER, _NETWORK_DIFFERS))


def loss_variants() -> list[Variant]:
    """Every kind of solver with all terms, and without each of those that it has.

    The paper's with its two other schemes of lambda1 besides.
    """
    found = []
    for kind, terms in ((CLOSED_FORM, 2), (NETWORK, 3), (PAPER, 3)):
        found.append(Variant(f"{kind.name}, all terms", kind.changes))
        for term, meaning in list(_TERMS.items())[:terms]:
            name = f"{kind.name}, {term} = 0 ({meaning})"
            found.append(Variant(name, {**kind.changes, term: 0.0}))
    for scheme in ("constant", "last"):
        name = f"{PAPER.name}, lambda1 {scheme}"
        found.append(Variant(name, {**PAPER.changes, "lambda1_steps": scheme}))
    return found


def _ablations(problem: Problem) -> Iterator[Method]:
    ensure_thinned(problem)
    steps = network_steps(problem)
    for variant in loss_variants():
        section = problem.trainer.config.solver.model_copy(update=dict(variant.changes))
        learned = train_solver(problem, section, steps)
        yield convergence.as_method(problem, variant.name, learned)


def train_from_initialiser(problem: Problem, variant: Variant, steps: int) -> LearnedSolver:
    """A variant from the run's own initialiser, which stays as it is; every rank calls it."""
    ensure_thinned(problem)
    return train_variant(problem, variant, convergence.own_solver(problem).initialiser, steps)


def network_steps(problem: Problem) -> int:
    """Gradient steps of a network: as many as the run's schedule holds.

    Raises:
        UserError: it holds none.
    """
    trainer = problem.trainer
    steps, schedule = trainer.schedule.total_solver_steps, trainer.config.schedule
    if steps == 0:
        raise UserError(
            "the schedule holds no steps to train a network with; raise "
            f"schedule.warmup_solver_steps = {schedule.warmup_solver_steps}, or lower "
            f"schedule.warmup_epochs = {schedule.warmup_epochs} "
            f"(train.epochs = {trainer.config.train.epochs})"
        )
    return steps


def _outcome(
    request: Request, rows: list[dict[str, Any]], title: str, texts: tuple[str, str]
) -> Outcome:
    horizons = {
        f"K = {convergence.trained_steps(request.config, kind)}, {kind.name}": (
            convergence.trained_steps(request.config, kind)
        )
        for kind in (CLOSED_FORM, NETWORK, PAPER)
    }
    figure = convergence.draw(rows, title, horizons)
    return Outcome(rows, convergence.summarise(rows), convergence.CAPTION, *texts, figure)
