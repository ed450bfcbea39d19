"""Figures 5 and 7: solvers trained in different ways on one frozen model.

The model is trained once for each seed. Every variant's solver is then trained from scratch on that
frozen model, so that all curves belong to the same map. The networks of Figure 5 take as many steps
as the run's schedule holds, those of Figure 7 as many as the paper's solver takes in all: "the sum
of all T2 values is referred to as epoch_max" (appendix B.2), and Table 2 has that for each graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import CONFIG_FOLDER, RunConfig, load_yaml
from distributed_ignn.config.shipped import shipped_file
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
from distributed_ignn.lab.studies.tables.paper_figures import paper_name
from distributed_ignn.long_steps import long_step
from distributed_ignn.plots import Picture
from distributed_ignn.training.learned_solver import LearnedSolver
from distributed_ignn.training.schedule import Schedule

_OURS = {"kind": "estimator", "alpha": "global"}
CLOSED_FORM = Variant("closed form", {**_OURS, "estimator": "graph", "network": "none"})
"""What is shipped: nothing needs gradient steps."""
NETWORK = Variant("graph network", {**_OURS, "estimator": "none", "network": "graph"})
"""A network with a graph layer corrects Anderson's weights."""
PAPER = Variant("paper", {"kind": "paper", "sparsifier": "pri", "lambda1_steps": "rising"})
"""The paper's own solver: its network takes the place of Anderson's weights."""
PAPER_ALONE = "paper with its own"
"""The same with the starting point that it is trained with."""

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
    "The curves are those of the final weights. All start from the run's initialiser, the paper's "
    "solver once more from its own; the networks correct Anderson's weights, for the whole graph "
    "(global) or for each node. The estimators that need no network stand beside them. Each is "
    "followed with the safeguard, which takes back steps that do not reduce the residual, and "
    "without; it has no part in training."
)


def run_losses(request: Request, comm: Communicator) -> Outcome:
    """Figure 5: each term of the solver's loss switched off, without a network and with one."""
    rows, steps = [], network_steps(request.config)
    for seed in request.seeds:
        problem = convergence.freeze(request, seed, comm)
        methods = [*convergence.classical(problem), *_ablations(problem, steps)]
        rows += convergence.follow(problem, seed, methods)
    title = f"terms of the solver's loss, {request.config.dataset}"
    return _outcome(request, rows, title, (_LOSS_PAPER, _LOSS_DIFFERS))


def run_networks(request: Request, comm: Communicator, steps: int | None = None) -> Outcome:
    """Figure 7: every kind of solver that ``all_variants`` has, with the safeguard and without.

    Args:
        request: of the study.
        comm: this rank's communicator.
        steps: gradient steps of every network; those of the paper by default.
    """
    steps = steps or paper_steps(request.config.dataset)
    rows = []
    for seed in request.seeds:
        problem = convergence.freeze(request, seed, comm)
        classical = convergence.follow(problem, seed, convergence.classical(problem))
        rows += [{"safeguard": None, **row} for row in classical]
        for name, learned in _trained(problem, steps):
            for safeguard in (True, False):
                learned.safeguard = safeguard
                method = convergence.as_method(problem, name, learned)
                found = convergence.follow(problem, seed, [method])
                rows += [{"safeguard": safeguard, **row} for row in found]
    return Outcome(
        rows,
        _by_safeguard(rows),
        f"{convergence.CAPTION}; networks of {steps} steps",
        _NETWORK_PAPER,
        _NETWORK_DIFFERS,
        _draw_safeguards(request, rows, steps),
    )


def paper_steps(dataset: str) -> int:
    """Gradient steps that the paper's solver takes in all; those of citeseer on other graphs."""
    name = paper_name(dataset)
    known = name if (CONFIG_FOLDER / "paper" / f"{name}.yaml").is_file() else "citeseer"
    return load_yaml(shipped_file("paper", f"{known}.yaml")).train.epochs


def _trained(problem: Problem, steps: int) -> Iterator[tuple[str, LearnedSolver]]:
    """Every variant from the run's initialiser, and last the paper's with its own."""
    for variant in all_variants():
        if variant.changes["safeguard"]:  # which has no part in training
            with _told(problem, variant.name):
                learned = train_from_initialiser(problem, variant, steps)
            yield variant.name, learned
    with _told(problem, PAPER_ALONE):
        learned = train_paper_alone(problem, steps)
    yield PAPER_ALONE, learned


def _told(problem: Problem, name: str) -> AbstractContextManager[object]:
    """Progress of what takes minutes, by the first rank."""
    return long_step(f"training {name}") if problem.comm.is_main else nullcontext()


def _by_safeguard(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """``summarise``, with the methods that the safeguard is left out of named so."""
    ending = ", no safeguard"
    return convergence.summarise(
        [{**row, "method": row["method"] + ending * (row["safeguard"] is False)} for row in rows]
    )


def _draw_safeguards(request: Request, rows: Sequence[Mapping[str, Any]], steps: int) -> Picture:
    panels = {
        f"safeguard {state}": [row for row in rows if row["safeguard"] in (None, guarded)]
        for state, guarded in (("off", False), ("on", True))
    }
    title = f"learned solvers, networks of {steps} steps: {request.config.dataset}"
    return convergence.draw_side_by_side(panels, "residual", title, _horizons(request))


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


def _ablations(problem: Problem, steps: int) -> Iterator[Method]:
    ensure_thinned(problem)
    for variant in loss_variants():
        section = problem.trainer.config.solver.model_copy(update=dict(variant.changes))
        learned = train_solver(problem, section, steps)
        yield convergence.as_method(problem, variant.name, learned)


def train_from_initialiser(problem: Problem, variant: Variant, steps: int) -> LearnedSolver:
    """A variant from the run's own initialiser, which stays as it is; every rank calls it."""
    ensure_thinned(problem)
    return train_variant(problem, variant, convergence.own_solver(problem).initialiser, steps)


def train_paper_alone(problem: Problem, steps: int) -> LearnedSolver:
    """The paper's own solver with the initialiser that it is trained with; every rank calls it."""
    ensure_thinned(problem)
    section = problem.trainer.config.solver.model_copy(update=dict(PAPER.changes))
    return train_solver(problem, section, steps)


def network_steps(config: RunConfig) -> int:
    """Gradient steps of a network: as many as a run's schedule holds.

    Raises:
        UserError: it holds none.
    """
    schedule = config.schedule
    steps = Schedule(schedule, config.train.epochs, active=True).total_solver_steps
    if steps == 0:
        raise UserError(
            "the schedule holds no steps to train a network with; raise "
            f"schedule.warmup_solver_steps = {schedule.warmup_solver_steps}, or lower "
            f"schedule.warmup_epochs = {schedule.warmup_epochs} "
            f"(train.epochs = {config.train.epochs})"
        )
    return steps


def _outcome(
    request: Request, rows: list[dict[str, Any]], title: str, texts: tuple[str, str]
) -> Outcome:
    figure = convergence.draw(rows, title, _horizons(request))
    return Outcome(rows, convergence.summarise(rows), convergence.CAPTION, *texts, figure)


def _horizons(request: Request) -> dict[str, int]:
    kinds = (CLOSED_FORM, NETWORK, PAPER)
    return {kind.name: convergence.trained_steps(request.config, kind) for kind in kinds}
