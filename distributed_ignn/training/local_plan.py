"""How many local steps an epoch takes, and how long they are, where the settings leave it open.

The rule reads counts of the whole graph, so every rank, every cut and every resumed run finds the
same numbers.

Letters: n nodes, T training nodes, R rows that a local step reads, D hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass

from distributed_ignn.config import TrainConfig

SAMPLED = 20_000
"""Nodes of the whole graph, beside the training nodes, that consistency is asked of."""

FEWEST, MOST = 4, 32
"""Local steps of an epoch, where there are any and the rule chooses their number."""

LARGEST_LR = 0.02
"""Of local steps, where the rule chooses: what was measured (docs/experiments.md)."""

LEAST_NODES = 20_000
"""Of a graph on which an evaluation of the map costs."""

LEAST_BATCH = 2_048
"""Training nodes that a local step reads at least, if there are as many."""

_LEAST_TRAINED = 2_000
_BATCH = 1 / 128  # of all nodes, so that 32 steps cost less than one evaluation of the map
_EVALUATIONS = 10  # of the map in an epoch: forward, adjoint and validation
_PASSES = 3  # a local step multiplies its rows by a D x D matrix forward, and twice backward


def batch_count(nodes: int, trained: int) -> int:
    """In how many batches training nodes are divided, of which a local step reads one.

    Args:
        nodes: n, of the whole graph.
        trained: T, likewise.
    """
    return max(1, trained // max(LEAST_BATCH, round(nodes * _BATCH)))


@dataclass(frozen=True, slots=True)
class LocalPlan:
    """What local steps an epoch begins with.

    Args:
        steps: before they fade out; 0 for none.
        lr: their learning rate.
        automatic: whether their number is that of the rule.
    """

    steps: int
    lr: float
    automatic: bool


def local_plan(train: TrainConfig, nodes: int, trained: int) -> LocalPlan:
    """The local steps that the settings ask for on a graph.

    Args:
        train: the train section.
        nodes: n, of the whole graph.
        trained: T, likewise.
    """
    rows = trained + (min(SAMPLED, nodes - trained) if float(train.consistency) > 0.0 else 0)
    asked = train.local_steps
    steps = automatic_steps(nodes, trained, rows) if asked == "auto" else asked
    lr = min(train.lr, LARGEST_LR) if train.local_lr == "auto" else train.local_lr
    return LocalPlan(steps, lr or train.lr, asked == "auto")


def automatic_steps(nodes: int, trained: int, rows: int) -> int:
    """As many local steps as take about as long as the evaluations of the map in an epoch.

    On small graphs there are none: an equilibrium is cheap there, and many steps on few labels
    overfit. Elsewhere an evaluation multiplies n rows by W, and an epoch makes about ten; a local
    step multiplies R rows three times. So R / n = 0.08, the share of ogbn-products, gives 32 (the
    most), and 0.66, that of Reddit, gives 5. Sparse products, which a local step has none of, are
    left out: they make the estimate of an epoch's work a low one.

    Args:
        nodes: n.
        trained: T.
        rows: R, at least T.
    """
    if nodes < LEAST_NODES or trained < _LEAST_TRAINED:
        return 0
    steps = round(_EVALUATIONS * nodes / (_PASSES * rows))
    return min(MOST, max(FEWEST, steps))
