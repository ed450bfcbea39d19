"""Asynchronous successive halving: which trial trains next, and how far.

As in Li et al., A System for Massively Parallel Hyperparameter Tuning (2020), algorithm 2: a trial
that is among the best third of those which have come to a rung goes on to the next one, and where
there is none a new trial begins. Nobody waits for a rung to fill. A trial goes on from where it was
paused, so that no epoch is trained twice. What is more here: the first trial, which has the default
settings, is trained to the end wherever the time is enough for that, so that no search ends below
it; so are those with known settings, some of which are slow starters, if each takes a sixteenth at
most; so is the best, whatever it takes; and with a budget of time nothing begins that is not
expected to end within it and to leave enough for that. A trial whose validation metric is not
confirmed to be that of the equilibrium comes after all those whose is.

Nothing here trains, waits or writes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field

SHARES = (0.25, 0.5, 1.0)
"""Rungs, in epochs of a whole run."""

KEPT = 3
"""One trial in so many goes on to the next rung."""

FINALISTS = 3
"""So many of the best trials are trained with the other seeds, where several are asked for."""

_BEST_SHARE = 4  # new trials take after one of the best quarter
_FIRST_SHARE, _KNOWN_SHARE = 1.0, 1 / 16  # of the budget, that such a trial is worth
DRAWN = "drawn"


class _Kept(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Reached(_Kept):
    """How far the run of a trial with one seed has come.

    Args:
        epochs: trained.
        validation: the best validation metric of them.
        best_epoch: its epoch; 0 if there was no validation yet.
        confirmed: whether that is the metric of the equilibrium; searches of before this was
            written down are taken at their word.
        seconds: that this took in all.
        over: whether the run is: all epochs are trained, or its patience is at an end.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(ge=0)
    validation: float
    best_epoch: int = Field(ge=0)
    confirmed: bool = True
    seconds: float = Field(ge=0)
    over: bool


class Trial(_Kept):
    """One set of settings.

    Args:
        number: from 1 on.
        settings: those that are not as the search was given them.
        origin: where they come from: default, what they have served, grid, or drawn.
        runs: by seed, where each rung has left it.
        failure: why a run failed, in one line.
    """

    number: int = Field(ge=1)
    settings: dict[str, str]
    origin: str
    runs: dict[int, list[Reached]] = Field(default_factory=dict)
    failure: str | None = None

    def last(self, seed: int) -> Reached | None:
        """Where the run with a seed stands; None before its first rung."""
        steps = self.runs.get(seed)
        return steps[-1] if steps else None

    def at(self, seed: int, epochs: int) -> Reached | None:
        """How it stood after so many epochs; None if it has not come so far."""
        for step in self.runs.get(seed, ()):
            if step.epochs >= epochs or step.over:
                return step
        return None

    @property
    def confirmed(self) -> bool:
        """Whether the validation metrics of all seeds are those of equilibria."""
        return all(steps[-1].confirmed for steps in self.runs.values() if steps)

    def is_over(self, seed: int) -> bool:
        """Whether the run with a seed is trained to its end."""
        last = self.last(seed)
        return last is not None and last.over


@dataclass(frozen=True, slots=True)
class Job:
    """A trial to be trained on.

    Args:
        trial: its number.
        seed: of the run.
        until: the epoch at which it pauses.
        limit: seconds after which it is not worth going on; infinity for no limit.
    """

    trial: int
    seed: int
    until: int
    limit: float = float("inf")


def rungs_of(epochs: int) -> tuple[int, ...]:
    """Epochs at which trials are compared; the last is the whole run."""
    return tuple(sorted({max(1, round(epochs * share)) for share in SHARES}))


@dataclass(slots=True)
class Budget:
    """Time that a search may take.

    Args:
        seconds: in all; infinity for no limit.
        before: seconds that earlier calls have taken.
        clock: tells the time.
    """

    seconds: float = float("inf")
    before: float = 0.0
    clock: Callable[[], float] = time.monotonic
    _started: float = field(init=False)

    def __post_init__(self) -> None:
        self._started = self.clock()

    @property
    def spent(self) -> float:
        """Seconds of the search so far."""
        return self.before + self.clock() - self._started

    @property
    def left(self) -> float:
        """Seconds that it may still take; below 0 where it takes longer."""
        return self.seconds - self.spent


@dataclass(slots=True, eq=False)
class Plan:
    """What a search consists of.

    Args:
        rungs: epochs at which trials are compared, the last that of a whole run.
        seeds: the first is that of the comparison.
        most: trials at most; None for any number.
        finalists: trials that are trained with all seeds, the best ones; None for all.
        slots: trials that are trained at a time.
    """

    rungs: tuple[int, ...]
    seeds: tuple[int, ...] = (0,)
    most: int | None = None
    finalists: int | None = FINALISTS
    slots: int = 1


class Halving:
    """Decides what is trained next.

    Args:
        plan: of the search.
        trials: those there are; further ones are added to this list.
        budget: of time.
        draw: makes the settings of trial number N, given those of the best so far and best first;
            None if there are no more.
    """

    def __init__(
        self,
        plan: Plan,
        trials: list[Trial],
        budget: Budget,
        draw: Callable[[int, Sequence[Mapping[str, str]]], Mapping[str, str] | None],
    ) -> None:
        self.plan, self.trials, self.budget = plan, trials, budget
        self.running: list[Job] = []
        self._draw = draw
        self._drawn_out = False
        self._seed = plan.seeds[0]

    def next(self) -> Job | None:
        """What to train now; None if there is nothing, at least until something ends."""
        for choose in (self._comparison, self._completion, self._final):
            job = choose()
            if job is not None:
                self.running.append(job)
                return job
        return None

    def told(self, job: Job, outcome: Reached | str) -> Trial:
        """Take what became of a job: where the run stands, or why it failed.

        Returns:
            The trial.
        """
        self.running.remove(job)
        trial = self.trial(job.trial)
        if isinstance(outcome, str):
            trial.failure = outcome
        else:
            trial.runs.setdefault(job.seed, []).append(outcome)
        return trial

    def trial(self, number: int) -> Trial:
        """The trial of that number."""
        return next(trial for trial in self.trials if trial.number == number)

    @property
    def begun(self) -> list[Trial]:
        """Trials that have been trained, failed ones too."""
        return [trial for trial in self.trials if trial.runs or trial.failure is not None]

    def ranked(self) -> list[Trial]:
        """Trials that have been validated and did not fail, the best first."""
        found = [(t, last) for t in self.trials if not t.failure and (last := t.last(self._seed))]
        found.sort(key=lambda pair: (*_falling(pair[1]), not pair[1].over, pair[0].number))
        return [trial for trial, _ in found]

    def chosen(self) -> Trial | None:
        """The trial that validates best: in the mean over all seeds where trials have them all.

        One whose metrics are not all confirmed is chosen only where there is no other.
        """
        ended = [trial for trial in self.ranked() if trial.is_over(self._seed)]
        whole = [trial for trial in ended if all(map(trial.is_over, self.plan.seeds))]
        return max(whole or ended, key=lambda t: (t.confirmed, self.score(t)), default=None)

    def score(self, trial: Trial) -> float:
        """Mean validation metric over the seeds that are trained."""
        found = [last.validation for seed in self.plan.seeds if (last := trial.last(seed))]
        return statistics.fmean(found) if found else float("-inf")

    def _comparison(self) -> Job | None:
        """The next step of the halving, if time is left for it."""
        for trial in (*self._promoted(), *self._waiting()):
            job = self._step(trial)
            if self._is_affordable(job):
                return job
        if self._drawn_out or not self._is_affordable(None):
            return None
        return self._first_step_of_a_new_one()

    def _first_step_of_a_new_one(self) -> Job | None:
        if self.plan.most is not None and len(self.trials) >= self.plan.most:
            return None
        number = max((trial.number for trial in self.trials), default=0) + 1
        best = self.ranked()
        best = best[: -(-len(best) // _BEST_SHARE)]
        settings = self._draw(number, [trial.settings for trial in best])
        if settings is None:
            self._drawn_out = True
            return None
        trial = Trial(number=number, settings=dict(settings), origin=DRAWN)
        self.trials.append(trial)
        return self._step(trial)

    def _promoted(self) -> Iterator[Trial]:
        """Trials that go on to the next rung, the highest rung first."""
        for epochs in reversed(self.plan.rungs[:-1]):
            there = self._ranked_at(epochs)
            kept = there[: len(there) // KEPT]
            for trial in kept + [t for t in there if self._is_spared(t)]:
                stands = trial.last(self._seed)
                if stands and stands.epochs <= epochs and self._may_go_on(trial, self._seed):
                    yield trial

    def _ranked_at(self, epochs: int) -> list[Trial]:
        """Trials that have come so far and did not fail, the best by then first."""
        known = [(t, t.at(self._seed, epochs)) for t in self.trials if not t.failure]
        found = [(trial, step) for trial, step in known if step]
        found.sort(key=lambda pair: (*_falling(pair[1]), pair[0].number))
        return [trial for trial, _ in found]

    def _is_spared(self, trial: Trial) -> bool:
        """Whether a trial is trained to its end whatever it is worth: one not drawn, if cheap."""
        share = _FIRST_SHARE if trial.number == 1 else _KNOWN_SHARE
        whole = self._per_epoch(trial) * self.plan.rungs[-1]
        return trial.origin != DRAWN and whole <= self.budget.seconds * share

    def _waiting(self) -> Iterator[Trial]:
        """Trials before their first rung."""
        for trial in self.trials:
            if trial.last(self._seed) is None and self._may_go_on(trial, self._seed):
                yield trial

    def _may_go_on(self, trial: Trial, seed: int) -> bool:
        runs = any((job.trial, job.seed) == (trial.number, seed) for job in self.running)
        return not (runs or trial.failure or trial.is_over(seed))

    def _step(self, trial: Trial) -> Job:
        """To the next rung."""
        stands = trial.last(self._seed)
        done = stands.epochs if stands else 0
        until = next(epochs for epochs in self.plan.rungs if epochs > done)
        first = not any(other.last(self._seed) for other in self.trials)
        limit = float("inf") if first else max(self.budget.left - self._reserve(trial), 0.0)
        return Job(trial.number, self._seed, until, limit)

    def _completion(self) -> Job | None:
        """The best trial so far, to its end, whatever time is left."""
        best = next(iter(self.ranked()), None)
        if best is None or not self._may_go_on(best, self._seed):
            return None
        job = self._step(best)
        return Job(job.trial, job.seed, job.until)

    def _final(self) -> Job | None:
        """A run of one of the best trials with another seed, if time is left for it."""
        if any(job.seed == self._seed for job in self.running):
            return None  # it may change which are the best
        ended = [trial for trial in self.ranked() if trial.is_over(self._seed)]
        for trial in ended[: self.plan.finalists]:
            for seed in self.plan.seeds[1:]:
                cost = self._per_epoch(trial) * self.plan.rungs[-1]
                if self._may_go_on(trial, seed) and cost <= self.budget.left:
                    return Job(trial.number, seed, self.plan.rungs[-1])
        return None

    def _is_affordable(self, job: Job | None) -> bool:
        """Whether a job, or the first step of a new trial, is expected to end within the budget.

        It has to leave enough for the best trial to be trained to its end, and for its other seeds.
        """
        if self.budget.left == float("inf"):
            return True
        trial = self.trial(job.trial) if job else None
        stands = trial.last(self._seed) if trial else None
        until = job.until if job else self.plan.rungs[0]
        epochs = until - (stands.epochs if stands else 0)
        cost = self._per_epoch(trial) * epochs
        left = self.budget.left
        return left > 0.0 and cost + self._reserve(trial) <= left

    def _reserve(self, apart_from: Trial | None) -> float:
        """Seconds that the best trial so far still needs, apart from one that goes on anyway."""
        best = next(iter(self.ranked()), None)
        if best is None:
            return 0.0
        whole, each = self.plan.rungs[-1], self._per_epoch(best)
        stands = best.last(self._seed)
        rest = 0 if stands is None or stands.over or best is apart_from else whole - stands.epochs
        others = len(self.plan.seeds) - 1
        runs = -(-others * (self.plan.finalists or len(self.trials)) // self.plan.slots)
        return each * (rest + whole * runs)

    def _per_epoch(self, trial: Trial | None) -> float:
        """Seconds an epoch of a trial takes: its own, or else the mean of all; 0 if none is known.

        What it takes to start is part of them.
        """
        if trial is not None and (stands := trial.last(self._seed)):
            return stands.seconds / max(stands.epochs, 1)
        known = [last for each in self.trials if (last := each.last(self._seed))]
        return statistics.fmean(s.seconds / max(s.epochs, 1) for s in known) if known else 0.0


def _falling(step: Reached) -> tuple[bool, float]:
    """Sorts the best first; a metric that is not confirmed is worth less than any that is."""
    return not step.confirmed, -step.validation
