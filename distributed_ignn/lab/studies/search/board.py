"""What a search shows: a live table on a terminal, a line for each step elsewhere, a last table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from distributed_ignn.lab.studies.outcome import spread
from distributed_ignn.lab.studies.search.halving import Halving, Job, Trial
from distributed_ignn.lab.studies.search.ledger import brief, doubt, validation

_SHOWN, _LISTED = 10, 30


class Board:
    """Shows a search to people; one that is not enabled shows nothing.

    Args:
        halving: the search.
        console: where to; standard error by default.
        enabled: whether this process shows anything.
    """

    def __init__(
        self, halving: Halving, console: Console | None = None, *, enabled: bool = True
    ) -> None:
        self._halving = halving
        self._console = console or Console(stderr=True, highlight=False)
        self._enabled = enabled
        self._live = enabled and self._console.is_terminal

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Keep the live table on a terminal up to date inside."""
        if not self._live:
            yield
            return
        with Live(get_renderable=self._table, console=self._console, refresh_per_second=2):
            yield

    def started(self, job: Job) -> None:
        """A trial begins, or goes on."""
        trial = self._halving.trial(job.trial)
        if trial.last(job.seed) is None:
            seed = f", seed {job.seed}" if len(self._halving.plan.seeds) > 1 else ""
            settings = brief(trial.settings) or "the settings as given"
            self._say(f"trial {trial.number}{self._of}{seed} ({trial.origin}): {settings}")

    def ended(self, job: Job, trial: Trial) -> None:
        """A trial has come to its next rung, or failed."""
        last = trial.last(job.seed)
        if trial.failure is not None or last is None:
            self._say(f"trial {trial.number} failed: {trial.failure}")
            return
        best = next(iter(self._halving.ranked()), trial)
        self._say(
            f"trial {trial.number}: epoch {last.epochs}/{self._halving.plan.rungs[-1]}, validation "
            f"{last.validation:.4f}{doubt(last.confirmed)}, {last.seconds:.1f} s; best: trial "
            f"{best.number}, {self._halving.score(best):.4f}"
        )

    @property
    def _of(self) -> str:
        most = self._halving.plan.most
        return "" if most is None else f" of {most}"

    def _say(self, text: str) -> None:
        if self._enabled and not self._live:
            self._console.print(text, soft_wrap=True, markup=False)

    def _table(self) -> Group:
        """The best trials, and those that are trained at the moment."""
        halving = self._halving
        busy = {job.trial: job for job in tuple(halving.running)}
        best = halving.ranked()[:_SHOWN]
        rest = [t for t in tuple(halving.trials) if t.number in busy and t not in best]
        table = Table("trial", "validation", "epoch", "seconds", "settings", expand=True)
        for trial in (*best, *rest):
            table.add_row(*_row(trial, busy.get(trial.number), halving))
        return Group(Text(self._headline()), table)

    def _headline(self) -> str:
        halving = self._halving
        budget, failed = halving.budget, sum(t.failure is not None for t in halving.trials)
        limit = "" if budget.seconds == float("inf") else f" of {budget.seconds:.0f}"
        ended = sum(trial.is_over(halving.plan.seeds[0]) for trial in halving.trials)
        return (
            f"{len(halving.begun)} trials{self._of}, {ended} trained to the end, {failed} failed; "
            f"{budget.spent:.0f}{limit} s"
        )

    def table(self, metric: str) -> Table:
        """The trials of a search that is over, the best first."""
        halving = self._halving
        chosen, ranked = halving.chosen(), halving.ranked()
        failed = [trial for trial in halving.trials if trial.failure is not None]
        seed, score = halving.plan.seeds[0], halving.score
        ranked.sort(
            key=lambda t: (
                *(t is not chosen, not t.confirmed, not t.is_over(seed)),
                *(-score(t), t.number),
            )
        )
        order = ranked + failed
        caption = f"{len(order) - _LISTED} more in search.json" if len(order) > _LISTED else None
        table = Table(
            "trial",
            f"validation {metric}",
            "epochs",
            "seconds",
            "settings other than those given",
            title=f"{self._headline()}; best first",
            caption=caption,
        )
        for trial in order[:_LISTED]:
            table.add_row(*_row(trial, None, halving))
        return table


def _row(trial: Trial, job: Job | None, halving: Halving) -> tuple[str, ...]:
    seeds = halving.plan.seeds
    found, last = validation(trial, seeds), trial.last(seeds[0])
    seconds = sum(end.seconds for seed in seeds if (end := trial.last(seed)))
    mean, deviation = spread(found) if found else (0.0, 0.0)
    figures = f"{mean:.4f}" + (f" +- {deviation:.4f}" if len(found) > 1 else "") if found else "-"
    figures += doubt(trial.confirmed)
    epochs = str(last.epochs if last else 0) + (f" -> {job.until}" if job else "")
    settings = brief(trial.settings) or trial.origin
    return (
        str(trial.number),
        "failed" if trial.failure is not None else figures,
        epochs,
        f"{seconds:.1f}",
        f"{settings}; {trial.failure}" if trial.failure else settings,
    )
