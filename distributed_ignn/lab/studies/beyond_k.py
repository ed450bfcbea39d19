"""Figure 4 (section 5.3): convergence past the K steps that the solver was trained for."""

from __future__ import annotations

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.lab.benchmarks.tracing import Method
from distributed_ignn.lab.studies import convergence
from distributed_ignn.lab.studies.outcome import Outcome, Request
from distributed_ignn.lab.studies.solver_variants import (
    NETWORK,
    PAPER,
    PAPER_ALONE,
    network_steps,
    train_from_initialiser,
    train_paper_alone,
)

_PAPER = (
    "Section 5.3: on ogbn-arxiv a solver trained with K = 6 'can generalize beyond K' and improves "
    "the convergence of the canonical (Picard) iteration throughout; the curves are in the "
    "picture of Figure 4 only."
)
_DIFFERS = (
    "Measured in float64 on the weights that validation chose, down to a relative distance of 1e-6 "
    "from the fixed point. Beside the run's own solver stand one whose network corrects Anderson's "
    "weights, and the paper's with the starting point that it is trained with, each with its own "
    "K; Anderson (one vector of weights for the graph) stands beside Picard."
)


def run(request: Request, comm: Communicator) -> Outcome:
    """Train with the learned solver for each seed and follow every method on the frozen map."""
    rows, network_training = [], network_steps(request.config)
    horizons = {
        "learned": convergence.trained_steps(request.config),
        NETWORK.name: convergence.trained_steps(request.config, NETWORK),
        PAPER_ALONE: convergence.trained_steps(request.config, PAPER),
    }
    for seed in request.seeds:
        problem = convergence.freeze(request, seed, comm)
        solvers = {
            "learned": convergence.own_solver(problem),
            NETWORK.name: train_from_initialiser(problem, NETWORK, network_training),
            PAPER_ALONE: train_paper_alone(problem, network_training),
        }
        methods: list[tuple[Method, int | None]] = [
            *((method, None) for method in convergence.classical(problem)),
            *(
                (convergence.as_method(problem, name, solver), horizons[name])
                for name, solver in solvers.items()
            ),
        ]
        for method, steps in methods:
            for row in convergence.follow(problem, seed, [method]):
                beyond = None if steps is None else row["evaluations"] > steps
                rows.append(row | {"beyond_k": beyond})
    title = f"convergence past the training horizon, {request.config.dataset}"
    figure = convergence.draw(rows, title, horizons)
    return Outcome(rows, convergence.summarise(rows), convergence.CAPTION, _PAPER, _DIFFERS, figure)
