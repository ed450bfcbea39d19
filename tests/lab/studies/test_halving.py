"""The scheduler of a search, with trials that are curves and a clock that they move."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Mapping, Sequence

import pytest
from rich.console import Console

from distributed_ignn.lab.studies.search.board import Board
from distributed_ignn.lab.studies.search.halving import (
    Budget,
    Halving,
    Job,
    Plan,
    Reached,
    Trial,
    rungs_of,
)

pytestmark = pytest.mark.cheap

RUNGS = (10, 20, 40)


class World:
    """What trials come to: each has a figure of its own, to which it rises with its epochs.

    Args:
        budget: seconds; an epoch takes one.
        failing: trials that fail.
        plan: of the search.
        trials: of an earlier call, as JSON.
        before: seconds that it took.
        unconfirmed: trials whose metrics are not those of equilibria.
    """

    def __init__(
        self,
        plan: Plan,
        budget: float = float("inf"),
        failing: Sequence[int] = (),
        trials: Sequence[str] = (),
        before: float = 0.0,
        unconfirmed: Sequence[int] = (),
    ) -> None:
        self.now = 0.0
        self.unconfirmed = unconfirmed
        self.failing = failing
        self.trained: list[Job] = []
        known = [Trial.model_validate_json(text) for text in trials]
        if not known:
            known = [Trial(number=1, settings={}, origin="default")]
        clock = Budget(budget, before, lambda: self.now)
        self.halving = Halving(plan, known, clock, self._draw)

    def _draw(self, number: int, best: Sequence[Mapping[str, str]]) -> Mapping[str, str]:
        return {"number": str(number)}

    def figure(self, job: Job) -> float:
        """Validation at the end of a job."""
        own = random.Random(job.trial).random()
        return own * (1.0 - 1.0 / (1.0 + job.until)) + 1e-3 * job.seed

    def outcome(self, job: Job) -> Reached | str:
        if job.trial in self.failing:
            return "diverged"
        return Reached(
            epochs=job.until,
            validation=self.figure(job),
            best_epoch=job.until,
            confirmed=job.trial not in self.unconfirmed,
            seconds=float(job.until),
            over=job.until == self.halving.plan.rungs[-1],
        )

    def epochs(self, job: Job) -> int:
        last = self.halving.trial(job.trial).last(job.seed)
        return job.until - (last.epochs if last else 0)

    def run(self, jobs: float = float("inf")) -> World:
        """One trial after the other, until the search is over or has had so many jobs."""
        while len(self.trained) < jobs and (job := self.halving.next()) is not None:
            self.now += self.epochs(job)
            self.trained.append(job)
            self.halving.told(job, self.outcome(job))
        return self


def test_rungs_are_shares_of_a_run() -> None:
    assert rungs_of(100) == (25, 50, 100)
    assert rungs_of(2) == (1, 2)
    assert rungs_of(1) == (1,)


def test_a_third_goes_on_and_no_epoch_is_trained_twice() -> None:
    world = World(Plan(RUNGS, most=27)).run()
    trials = world.halving.trials
    assert len(trials) == 27
    ends = {t.number: t.last(0).epochs for t in trials if t.last(0)}  # type: ignore[union-attr]
    assert world.now == sum(ends.values())  # seconds are epochs: each was trained once
    # the first always, and a third of a third; a few more because none waits for the others
    ended = [number for number, epochs in ends.items() if epochs == 40]
    assert 1 in ended
    assert 3 <= len(ended) <= 6
    assert 9 <= sum(epochs >= 20 for epochs in ends.values()) <= 13
    # whoever validates best is trained to the end
    best = world.halving.ranked()[0]
    assert best.number in ended
    assert world.halving.chosen() is best
    true_best = max(range(1, 28), key=lambda n: random.Random(n).random())
    assert best.number == true_best


def test_promotions_do_not_wait_for_a_rung_to_fill() -> None:
    world = World(Plan(RUNGS, most=100)).run(jobs=9)
    # the first to its end; then as soon as three have been compared, the best goes on
    assert [job.until for job in world.trained[:3]] == [10, 20, 40]
    first_promotion = next(job for job in world.trained[3:] if job.until == 20)
    assert world.trained.index(first_promotion) <= 6


@pytest.mark.parametrize("budget", [45.0, 90.0, 143.0, 200.0, 1000.0])
def test_the_budget_is_kept_and_the_best_is_finished(budget: float) -> None:
    world = World(Plan(RUNGS), budget).run()
    assert world.now <= budget
    best = world.halving.ranked()[0]
    assert best.is_over(0)
    # and not by leaving most of it unused
    assert world.now > budget - 40


def _no_reserve(apart_from: Trial | None) -> float:
    return 0.0


def test_without_the_reserve_for_the_best_the_budget_would_not_be_kept() -> None:
    """So that the test above can fail."""

    def spent(budget: float, reserve: bool) -> float:
        world = World(Plan(RUNGS), budget)
        if not reserve:
            world.halving._reserve = _no_reserve  # type: ignore[method-assign]
        return world.run().now

    budgets = range(100, 300, 7)
    assert all(spent(budget, True) <= budget for budget in budgets)
    assert not all(spent(budget, False) <= budget for budget in budgets)


def test_a_budget_that_is_too_short_still_gives_a_trained_default() -> None:
    world = World(Plan(RUNGS), 15.0).run()
    assert [job.trial for job in world.trained] == [1, 1, 1]
    assert world.halving.chosen() is world.halving.trials[0]


def test_other_seeds_decide_among_the_best_and_are_paid_from_the_budget() -> None:
    plan = Plan(RUNGS, seeds=(0, 7), most=12, finalists=2)
    world = World(plan).run()
    others = [job.trial for job in world.trained if job.seed == 7]
    assert others == [t.number for t in world.halving.ranked() if t.is_over(0)][:2]
    assert {job.until for job in world.trained if job.seed == 7} == {40}
    assert world.halving.chosen() in [world.halving.trial(number) for number in others]
    limited = World(Plan(RUNGS, seeds=(0, 7)), 300.0).run()
    assert limited.now <= 300.0
    assert sum(job.seed == 7 for job in limited.trained) >= 2


def test_known_trials_are_trained_to_the_end_where_time_allows() -> None:
    known = [
        Trial(
            number=n, settings={"n": str(n)}, origin="default" if n == 1 else "acm"
        ).model_dump_json()
        for n in range(1, 6)
    ]
    free = World(Plan(RUNGS, most=30), trials=known).run()
    assert all(free.halving.trial(number).is_over(0) for number in range(1, 6))
    # 40 s are more than a sixteenth of 160 s
    short = World(Plan(RUNGS), 160.0, trials=known).run()
    ended = [number for number in range(1, 6) if short.halving.trial(number).is_over(0)]
    assert 1 in ended
    assert len(ended) < 5


@pytest.mark.parametrize("budget", [40.0, 45.0, 75.0])
def test_no_search_with_time_for_it_ends_below_the_settings_as_given(budget: float) -> None:
    """They are trained to the end before anything else, be it all that the time is enough for."""
    world = World(Plan(RUNGS), budget).run()
    assert [job.trial for job in world.trained[:3]] == [1, 1, 1]
    assert world.halving.trial(1).is_over(0)
    chosen = world.halving.chosen()
    assert chosen is not None
    assert world.halving.score(chosen) >= world.halving.score(world.halving.trial(1))


def test_what_is_not_confirmed_comes_after_all_that_is() -> None:
    plain = World(Plan(RUNGS, most=9)).run()
    best = plain.halving.chosen()
    assert best is not None
    assert best.number != 1
    world = World(Plan(RUNGS, most=9), unconfirmed=(best.number,)).run()
    assert world.halving.ranked()[-1].number == best.number
    doubtful = world.halving.trial(best.number)
    assert not doubtful.confirmed
    assert not doubtful.is_over(0)  # nor is it worth going on with
    chosen = world.halving.chosen()
    assert chosen is not None
    assert chosen.confirmed
    # where nothing is confirmed the best of all is chosen
    everything = World(Plan(RUNGS, most=9), unconfirmed=range(1, 10)).run().halving.chosen()
    assert everything is not None
    assert everything.number == best.number


def test_the_tables_mark_what_is_not_confirmed() -> None:
    console = Console(file=io.StringIO(), width=200)
    world = World(Plan(RUNGS, most=3), unconfirmed=(2,)).run()
    console.print(Board(world.halving).table("accuracy"))
    lines = {number: line for line in _printed(console) if (number := line.split("│")[1].strip())}
    board = Board(world.halving, console)
    board.ended(world.trained[-1], world.halving.trial(2))
    assert [name for name, line in lines.items() if "(not confirmed)" in line] == ["2"]
    assert list(lines)[-1] == "2"
    assert "(not confirmed), 10.0 s; best: trial " in _printed(console, all_lines=True)[-1]


def _printed(console: Console, *, all_lines: bool = False) -> list[str]:
    """Lines so far, by default those of a table's rows."""
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    return lines if all_lines else [line for line in lines if line.startswith("│")]


def test_a_ledger_from_before_metrics_were_confirmed_is_read() -> None:
    world = World(Plan(RUNGS, most=2)).run()
    trial = world.halving.trials[0].model_dump(mode="json")
    for step in trial["runs"]["0"]:
        del step["confirmed"]
    assert Trial.model_validate(trial) == world.halving.trials[0]
    assert Trial.model_validate(trial).confirmed


def test_failed_trials_are_left_and_the_search_goes_on() -> None:
    world = World(Plan(RUNGS, most=9), failing=(1, 3, 4)).run()
    failed = [trial.number for trial in world.halving.trials if trial.failure == "diverged"]
    assert failed == [1, 3, 4]
    assert sum(job.trial in failed for job in world.trained) == 3
    chosen = world.halving.chosen()
    assert chosen is not None
    assert chosen.number not in failed
    nothing = World(Plan(RUNGS, most=2), failing=(1, 2)).run()
    assert nothing.halving.chosen() is None


@pytest.mark.parametrize("done", [1, 5, 12, 20])
def test_an_interrupted_search_goes_on_where_it_was(done: int) -> None:
    whole = World(Plan(RUNGS, most=12)).run()
    first = World(Plan(RUNGS, most=12)).run(jobs=done)
    lost = first.halving.next()  # interrupted while this one trained
    kept = [json.dumps(trial.model_dump(mode="json")) for trial in first.halving.trials]
    second = World(Plan(RUNGS, most=12), trials=kept).run()
    assert first.trained + second.trained == whole.trained
    assert lost == (second.trained[0] if second.trained else None)
    assert second.halving.trials == whole.halving.trials


def test_time_of_an_earlier_call_counts() -> None:
    first = World(Plan(RUNGS), 200.0).run(jobs=8)
    kept = [trial.model_dump_json() for trial in first.halving.trials]
    second = World(Plan(RUNGS), 200.0, trials=kept, before=first.now).run()
    assert first.now + second.now <= 200.0
    longer = World(Plan(RUNGS), 400.0, trials=kept, before=first.now).run()
    assert longer.now > second.now + 100


def test_several_at_a_time_are_different_trials_and_all_end() -> None:
    world = World(Plan(RUNGS, most=20, slots=4))
    halving, order = world.halving, random.Random(0)
    while True:
        while len(halving.running) < 4 and halving.next() is not None:
            pass
        if not halving.running:
            break
        assert len({job.trial for job in halving.running}) == len(halving.running)
        job = order.choice(halving.running)
        halving.told(job, world.outcome(job))
    assert len(halving.trials) == 20
    assert halving.ranked()[0].is_over(0)
    assert all(trial.last(0) for trial in halving.trials)


def test_what_ends_early_by_patience_counts_at_later_rungs() -> None:
    world = World(Plan(RUNGS, most=6))
    early = world.outcome

    def outcome(job: Job) -> Reached | str:
        found = early(job)
        assert isinstance(found, Reached)
        return found.model_copy(update={"over": True, "epochs": 7}) if job.trial == 2 else found

    world.outcome = outcome  # type: ignore[method-assign]
    world.run()
    assert sum(job.trial == 2 for job in world.trained) == 1
    assert world.halving.trial(2).is_over(0)


def test_a_rung_is_given_a_limit_once_there_is_something_to_lose() -> None:
    world = World(Plan(RUNGS), 200.0).run(jobs=6)
    assert world.trained[0].limit == float("inf")
    job = world.trained[3]
    assert 0.0 < job.limit < 200.0
