"""Time to accuracy: validation over seconds, epochs, evaluations of the map and bytes sent.

The implicit model with and without local steps, explicit networks on the full graph, the plainest
among them SGC, and on samples of it, are trained on the same ranks, one after the other: trainings
of minutes cannot take turns, so a machine that does other work meanwhile spoils the ratios.

One rule for all: seconds are those of training, without loading and dividing the graph, without
building a model, a loader or clusters, and without validation. The implicit model's own validation
counts all the same, since its next training step may begin from the equilibrium found there. The
test nodes are read once, at the end, for the epoch that validation chose.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from distributed_ignn.config import RunConfig, resolve_run
from distributed_ignn.lab.benchmarks import explicit_peers as peers
from distributed_ignn.lab.benchmarks.accuracy_plot import draw
from distributed_ignn.lab.benchmarks.benchmark_graph import Workload
from distributed_ignn.lab.benchmarks.courses import Contender, Course, Effort, Limits, follow, timed
from distributed_ignn.lab.benchmarks.interleaving import Figure, Report, compare
from distributed_ignn.lab.benchmarks.study import Study
from distributed_ignn.training.local_plan import local_plan
from distributed_ignn.training.trainer import Trainer

LOCAL, EXACT = "local steps", "local_steps 0"
GCN, SAGE = "GCN, full graph", "GraphSAGE, full graph"
SAMPLED, CLUSTERED = "GraphSAGE, sampled", "GraphSAGE, clusters"
LINEAR = "SGC, full graph"
BASELINES = (EXACT, SAMPLED)

CONTENDERS: Mapping[str, str] = {
    "local": LOCAL,
    "exact": EXACT,
    "gcn": GCN,
    "sage": SAGE,
    "sgc": LINEAR,
    "sampled": SAMPLED,
    "clusters": CLUSTERED,
}
"""What --only takes, and what tables say."""

ON_WHOLE_GRAPH = frozenset({"sampled", "clusters"})
"""Those for which every rank holds the whole graph."""


@dataclass(frozen=True, slots=True)
class AccuracyOptions:
    """What to train, how far and for how long.

    Args:
        target: metric on the validation nodes, in (0, 1].
        limits: of every training; the one with local steps has the epochs of its settings.
        only: keys of ``CONTENDERS``; all by default.
    """

    target: float
    limits: Limits
    only: tuple[str, ...] = ()


class _Run:
    """A model of this package as a run trains it.

    Args:
        workload: of the benchmark.
        config: of the run.
        passes: over the graph in an epoch, of a model that solves nothing.
    """

    def __init__(self, workload: Workload, config: RunConfig, passes: int = 0) -> None:
        self._trainer = Trainer(config, workload.shard, workload.comm)
        self._passes = passes
        self._val = math.nan

    def epoch(self) -> Effort:
        """See ``Contender``; the step, the local steps and the validation."""
        return timed(self._trainer.comm, self._train)

    def _train(self) -> float:
        record = self._trainer.train_epoch()
        solves = record.evaluations_forward, record.evaluations_adjoint
        evaluations = sum(solves) + record.evaluations_validation + self._passes
        self._val = math.nan if record.val_metric is None else record.val_metric
        return evaluations / self._trainer.comm.world_size  # every rank makes each of them

    def validate(self) -> float:
        """See ``Contender``: what the epoch has found."""
        return self._val

    def test(self) -> float:
        """See ``Contender``."""
        trainer = self._trainer
        trainer.best.use()
        trainer.planner.forget()
        return trainer.evaluation.at_equilibrium(("test",))["test"]


def run(workload: Workload, options: AccuracyOptions) -> Study:
    """Train all contenders on all ranks of the job; every rank calls it."""
    courses, notes = [], []
    wanted = options.only or tuple(CONTENDERS)
    for key, build in _builders(workload, options).items():
        if key not in wanted:
            continue
        found = build()
        if isinstance(found, str):
            notes.append(found)
            workload.tell(found)
            continue
        contender, limits = found
        course = follow(CONTENDERS[key], contender, limits, workload.comm, workload.tell)
        courses.append(course)
        del contender, found
        gc.collect()  # a network and its hooks refer to each other
    return _study(workload, options, courses, notes)


_Built = tuple[Contender, Limits] | str


def _builders(
    workload: Workload, options: AccuracyOptions
) -> dict[str, Callable[[], tuple[Contender, Limits] | str]]:
    """By key: what builds a contender, or says in one line why it is left out."""
    limits = options.limits

    def full(recipe: peers.Recipe) -> _Built:
        return peers.FullBatch(recipe, workload), limits

    def sampled(make: Callable[..., peers.Batches]) -> _Built:
        whole = peers.whole_graph(workload)
        recipe = peers.Recipe("GraphSAGE", 0.003)
        return peers.Sampled(recipe, workload, whole, make(workload, whole)), limits

    return {
        "local": lambda: _local(workload, limits),
        "exact": lambda: (_Run(workload, _exact_settings(workload.config, limits)), limits),
        "gcn": lambda: full(peers.Recipe("GCN", 0.01)),
        "sage": lambda: full(peers.Recipe("GraphSAGE", 0.01)),
        "sgc": lambda: _linear(workload, limits),
        "sampled": lambda: peers.missing_sampler() or sampled(peers.sampled_batches),
        "clusters": lambda: sampled(peers.cluster_batches),
    }


def _local(workload: Workload, limits: Limits) -> _Built:
    """With the local steps of the settings, or those of ``auto`` where they have none."""
    config, shard = workload.config, workload.shard
    asked = {} if config.train.local_steps else {"local_steps": "auto", "local_lr": "auto"}
    train = config.train.model_copy(update={**asked, "eval_every": 1})
    plan = local_plan(train, shard.num_nodes, shard.split_sizes[0])
    if plan.steps == 0:
        return (
            f"{LOCAL} is left out: auto takes none on {shard.num_nodes:,} nodes with "
            f"{shard.split_sizes[0]:,} training nodes; set --train.local-steps N"
        )
    epochs = Limits(limits.minutes, train.epochs, limits.patience)
    return _Run(workload, config.model_copy(update={"train": train})), epochs


def _linear(workload: Workload, limits: Limits) -> _Built:
    """SGC with the settings that come with it; its graph is the workload's."""
    flags = {"dataset": workload.config.dataset, "model": {"kind": "sgc"}}
    config = resolve_run(flags, None)
    train = config.train.model_copy(update={"eval_every": 1, "epochs": limits.epochs})
    config = config.model_copy(update={"train": train, "seed": workload.config.seed})
    # its hops in a step, in the gradient and in validation
    return _Run(workload, config, 3 * config.explicit.layers), limits


def _exact_settings(config: RunConfig, limits: Limits) -> RunConfig:
    """Without local steps, for as many epochs as there may be."""
    changes = {"local_steps": 0, "local_lr": 0.0, "eval_every": 1, "epochs": limits.epochs}
    return config.model_copy(update={"train": config.train.model_copy(update=changes)})


def _study(
    workload: Workload, options: AccuracyOptions, courses: Sequence[Course], notes: Sequence[str]
) -> Study:
    rows = tuple(_rows(courses))
    settings = {
        **_settings(workload, options),
        "ended": {course.name: course.ended for course in courses},
    }
    figures = tuple(_figures(courses, options.target))
    title = f"{workload.config.dataset}, {workload.stats.nodes:,} nodes"
    return Study(
        Report("accuracy", settings, figures, rows),
        rows,
        tabulate(courses, options.target, title),
        (*notes, _RULE),
        lambda: draw(courses, options.target, title),
    )


_RULE = (
    "Trained one after the other. Seconds are those of training, without loading, building and "
    "validation, except that the implicit model's validation counts, as its next step may begin "
    "from it. Evaluations are passes over as many entries as the graph has. '> x' is a lower "
    "bound: the baseline never got there."
)


def _settings(workload: Workload, options: AccuracyOptions) -> dict[str, Any]:
    found = workload.settings()
    del found["rounds"]
    limits = options.limits
    return found | {
        "target": options.target,
        "seed": workload.config.seed,
        "minutes": limits.minutes,
        "most_epochs": limits.epochs,
        "patience": limits.patience,
        "labelled": workload.shard.split_sizes[0],
    }


def _rows(courses: Sequence[Course]) -> Iterator[dict[str, Any]]:
    """A line per epoch and contender; the test metric at the best epoch alone."""
    for course in courses:
        for point in course.points:
            chosen = course.best is point
            yield {
                "contender": course.name,
                "epoch": point.epoch,
                "seconds": point.spent.seconds,
                "evaluations": point.spent.evaluations,
                "bytes_sent": point.spent.bytes_sent,
                "val_metric": point.val,
                "test_metric": course.test if chosen else None,
            }


def _spent(course: Course, target: float) -> dict[str, float]:
    """By unit: what the target has taken; infinite where it was not reached."""
    point = course.reaching(target)
    if point is None:
        return dict.fromkeys(("seconds", "epochs", "evaluations", "bytes"), math.inf)
    return {
        "seconds": point.spent.seconds,
        "epochs": float(point.epoch),
        "evaluations": point.spent.evaluations,
        "bytes": float(point.spent.bytes_sent),
    }


def _figures(courses: Sequence[Course], target: float) -> Iterator[Figure]:
    """What the target has taken, and the errors at the best epochs, against each baseline."""
    reached = {course.name: _spent(course, target) for course in courses}
    errors = {
        "validation error": {c.name: 1.0 - c.best.val for c in courses if c.best is not None},
        "test error": {c.name: 1.0 - c.test for c in courses if c.best is not None},
    }
    for baseline in (name for name in BASELINES if name in reached):
        for unit in reached[baseline]:
            values = {name: spent[unit] for name, spent in reached.items()}
            yield from compare(values, unit, baseline, f"to {target:g}")
        for section, values in errors.items():
            if baseline in values:
                yield from compare(values, "error", baseline, section)


def tabulate(courses: Sequence[Course], target: float, title: str) -> tuple[Table, ...]:
    """What the target has taken, how many times sooner than the baselines, and the best epochs."""
    taken = _table(f"{title}: to validation {target:g}", _TAKEN)
    best = _table(f"{title}: the epoch that validation chose", _BEST)
    for course in courses:
        taken.add_row(course.name, *_reached(course, target))
        best.add_row(course.name, *_chosen(course))
    known = {course.name: course for course in courses}
    against = [known[name] for name in BASELINES if name in known]
    if not against:
        return taken, best
    ratios = _table(f"validation {target:g} so many times sooner than", [c.name for c in against])
    for course in courses:
        ratios.add_row(course.name, *(sooner(course, base, target) for base in against))
    return taken, ratios, best


_TAKEN = ("seconds", "epochs", "evaluations", "MB sent")
_BEST = ("validation", "test", "epoch", "of", "seconds in all")


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title)
    table.add_column("contender", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right")
    return table


def _reached(course: Course, target: float) -> tuple[str, ...]:
    point = course.reaching(target)
    if point is None:
        return "not reached", "", "", ""
    spent = point.spent
    sent = f"{spent.bytes_sent / 1e6:.1f}"
    return f"{spent.seconds:.1f}", str(point.epoch), f"{spent.evaluations:.0f}", sent


def _chosen(course: Course) -> tuple[str, ...]:
    best = course.best
    if best is None:
        return course.ended, "", "", "", ""
    counts = str(best.epoch), str(len(course.points))
    return f"{best.val:.4f}", f"{course.test:.4f}", *counts, f"{course.total:.1f}"


def sooner(course: Course, base: Course, target: float) -> str:
    """How many times sooner the target is reached; a bound where the baseline never gets there."""
    own, other = course.reaching(target), base.reaching(target)
    if own is None:
        return "-"
    if other is None:
        return f"> {base.total / own.spent.seconds:.2f}"
    return f"{other.spent.seconds / own.spent.seconds:.2f}"
