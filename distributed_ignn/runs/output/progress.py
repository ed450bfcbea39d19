"""What rank 0 shows a person: a live bar on a terminal, a few plain lines elsewhere, a table."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Column, Table

from distributed_ignn.config.dataset import IN_MEMORY
from distributed_ignn.runs.memory.budget_check import BudgetReport
from distributed_ignn.training.epoch_record import EpochRecord

_PLAIN_LINES = 20  # about how many epoch lines a log file gets
_TIGHT = 0.7  # share of the memory there is from which every part of the budget is shown
_LEGEND = (
    "val: validation metric; evals: evaluations of the map, forward with validation + backward; "
    "residual: where the forward solve ended"
)


class Progress:
    """Progress of one run; a rank that is not the main one shows nothing.

    Args:
        epochs: of the whole run.
        enabled: whether this rank shows anything.
        quiet: whether the table at the end is all that is shown.
        console: where to; standard output by default.
    """

    def __init__(
        self, epochs: int, *, enabled: bool, quiet: bool = False, console: Console | None = None
    ) -> None:
        self._epochs = epochs
        self._enabled = enabled
        self._on_the_way = enabled and not quiet
        self._explained = False
        self._console = console or Console(highlight=False)
        self._bar: RichProgress | None = None

    def status(self, what: str) -> None:
        """One line about a step that may take a while."""
        if self._on_the_way:
            self._console.print(f"[dim]{what} ...[/dim]")

    def budget(self, report: BudgetReport) -> None:
        """What the run will hold in memory: a line, or where that is tight, every part of it."""
        if not self._on_the_way:
            return
        tight = report.available is not None and report.needed > _TIGHT * report.available
        self._console.print(report.table() if tight else report.line(), soft_wrap=not tight)

    def resumed(self, epoch: int) -> None:
        """Say where the run goes on."""
        if self._on_the_way:
            self._console.print(f"resumed after epoch {epoch} of {self._epochs}")

    def epoch(self, record: EpochRecord) -> None:
        """Show one finished epoch."""
        if not self._on_the_way:
            return
        if record.solves and not self._explained:
            self._explained = True
            self._console.print(f"[dim]{_LEGEND}[/dim]")
        text = _describe(record)
        if self._console.is_terminal:
            bar = self._started_bar()
            bar.update(bar.task_ids[0], completed=record.epoch, text=text)
        elif record.epoch % max(1, self._epochs // _PLAIN_LINES) == 0 or record.epoch == 1:
            self._console.print(f"epoch {record.epoch}/{self._epochs}  {text}", soft_wrap=True)

    def _started_bar(self) -> RichProgress:
        if self._bar is None:
            self._bar = RichProgress(
                MofNCompleteColumn(table_column=Column(min_width=2 * len(str(self._epochs)) + 1)),
                BarColumn(bar_width=8),
                TimeRemainingColumn(compact=True, table_column=Column(min_width=5)),
                TextColumn("{task.fields[text]}"),
                console=self._console,
            )
            self._bar.add_task("", total=self._epochs, text="")
            self._bar.start()
        return self._bar

    def close(self) -> None:
        """Leave the terminal as it should be."""
        if self._bar is not None:
            self._bar.stop()

    def table(self, summary: dict[str, Any], output: Path) -> None:
        """The end of a run, for people."""
        if not self._enabled:
            return
        table = Table(title=f"{summary['dataset']}: finished", show_header=False)
        for label, text in summary_rows(summary):
            table.add_row(label, text)
        self._console.print(table)
        folder = shlex.quote(str(_shown(output)))
        lines = [f"results: {folder}", f"curves:  tensorboard --logdir {folder}"]
        if summary["dataset"] != IN_MEMORY:
            lines.insert(1, f"next:    ignn predict {folder} --out {folder}/predictions.parquet")
        self._console.print("\n".join(lines), soft_wrap=True)


def _shown(path: Path) -> Path:
    """As short as it can be typed here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _describe(record: EpochRecord) -> str:
    parts = ["skipped" if record.skipped else f"loss {record.loss:.4f}"]
    if record.val_metric is not None:
        parts.append(f"val {record.val_metric:.4f}")
    if record.solves:
        evaluations = record.evaluations_forward + record.evaluations_validation
        evaluations += record.evaluations_confirmation
        parts.append(f"evals {evaluations}+{record.evaluations_adjoint}")
        parts.append(f"residual {record.residual:.0e}")
    parts.append(f"{record.seconds:.2f} s")
    return " ".join(parts)


def summary_rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Label and text of every line of the table at the end of a run."""
    metric = summary["metric"]
    solves = "residual_last" in summary
    kind = [] if solves else [("model", summary["kind"])]
    return [
        *kind,
        ("graph", f"{_count(summary['nodes'])} nodes, {_count(summary['edges'])} edges"),
        ("ranks", f"{summary['world_size']} on {summary['device']}"),
        ("best epoch (by validation)", f"{summary['best_epoch']} of {summary['epochs']}"),
        (f"validation {metric}", f"{summary['best_val']:.4f}"),
        (f"test {metric} at best validation", _figure(summary["test_at_best_val"])),
        *(_solves(summary) if solves else ()),
        *_local_steps(summary),
        *_faults(summary),
        ("parameters", _parameters(summary["parameters"], solves)),
        *([("halo of an exchange", _bytes(summary))] if solves else ()),
        (
            "peak memory (largest rank)",
            f"{_memory(summary['peak_memory_bytes'])}, budget "
            f"{_memory(summary['memory_budget_bytes'])}",
        ),
        ("seconds", _seconds(summary)),
    ]


def _solves(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """What there is to say of a model that solves for its states."""
    metric, at_start = summary["metric"], summary["test_at_initialiser"]
    start = [] if at_start is None else [(f"test {metric} at the initialiser", f"{at_start:.4f}")]
    return [
        (f"test {metric} without equilibrium, f(0)", _figure(summary["test_at_f0"])),
        *start,
        ("spectral radius of W", f"{summary['spectral_radius']:.3f}"),
        (
            "evaluations per epoch",
            f"{summary['evaluations_forward_mean']:.1f} forward, "
            f"{summary['evaluations_validation_mean']:.1f} validation, "
            f"{summary['evaluations_confirmation_mean']:.1f} confirmation, "
            f"{summary['evaluations_adjoint_mean']:.1f} adjoint",
        ),
        ("relative residual at the end", _residual(summary)),
        ("these metrics are the equilibrium's", _confirmed(summary)),
    ]


def _parameters(counts: dict[str, int], solves: bool) -> str:
    text = f"model {_count(counts['model'])}"
    if not solves:
        return text
    solver, initialiser = _count(counts["solver"]), _count(counts["initialiser"])
    return f"{text}, solver {solver}, initialiser {initialiser}"


def _count(number: int) -> str:
    """All digits up to a million, then three of them and a unit."""
    for unit, name in ((1e9, "G"), (1e6, "M")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number:,}"


def _memory(size: int) -> str:
    """Bytes in the largest unit of which there are ten."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= 10 * unit:
            return f"{size / unit:,.0f} {name}" if unit < 2**30 else f"{size / unit:.1f} {name}"
    return f"{size:,} B"


def _bytes(summary: dict[str, Any]) -> str:
    return _memory(summary["halo_bytes_per_exchange"])


def _seconds(summary: dict[str, Any]) -> str:
    total, solver = summary["seconds_total"], summary.get("seconds_solver_training")
    return f"{total:.1f}" + (
        "" if solver is None else f", solver training {solver / max(total, 1e-9):.1%}"
    )


def _figure(value: float | None) -> str:
    """A metric; there is none where all nodes are of one class and it compares classes."""
    return "not defined" if value is None else f"{value:.4f}"


def _residual(summary: dict[str, Any]) -> str:
    text = f"{summary['residual_last']:.1e}"
    return text if summary["converged"] else f"{text}: NOT CONVERGED to {summary['tolerance']:g}"


def _confirmed(summary: dict[str, Any]) -> str:
    """Say whether the metrics hold, and how far from the equilibrium their state may be at most."""
    text = "confirmed" if summary["confirmed"] else "NOT CONFIRMED"
    bound = summary["certified_relative"]
    return text if bound is None else f"{text}, certified within {bound:.1e} of the state"


def _local_steps(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """What local steps came to, if there were any, and how exact the end of the run is."""
    if "local_steps_of_epoch" not in summary:
        return []
    if "local_steps" not in summary:
        return [("local steps", "none: auto finds the graph, or its training nodes, too few")]
    count, lr = summary["local_steps_of_epoch"], summary["local_lr"]
    chosen = " (auto)" if summary["local_steps_automatic"] else ""
    taken = (
        f"{summary['local_steps']:,}, from {count} an epoch{chosen} at lr {lr:g}, shortened "
        f"{summary['local_steps_shrunk']} times"
    )
    norm = summary["gradient_norm_last"]
    found = [("local steps", taken)]
    return found if norm is None else [*found, ("norm of the last exact gradient", f"{norm:.1e}")]


def _faults(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """What became of bad numbers, if there were any."""
    found = []
    if summary["epochs_skipped"]:
        found.append(("epochs skipped for bad numbers", str(summary["epochs_skipped"])))
    if summary["rollbacks"]:
        text = f"{summary['rollbacks']}, train.lr = {summary['lr_last']:.2g} at last"
        found.append(("rollbacks for bad numbers", text))
    return found
