"""A fault campaign: kill ranks at random moments, and compare what comes out with a quiet run.

Three kinds of runs, each with its own reference, which nobody disturbs:

    torchrun  ranks are killed one by one; torchrun starts all of them again
    ray       the same with workers of Ray Train
    resize    the whole job is killed, and goes on with another number of ranks, under either

In the first two, metrics, summary and every tensor of the last checkpoint have to be bitwise those
of the reference. With other numbers of ranks sums are taken in another order: there the losses have
to agree to 1e-5, and in float64 they agree to far more.
"""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.faults.victim import WITHOUT_NETWORK, ray, torchrun
from tests.jobs import Job, differences, records, remains, result, send

LOSS_TOLERANCE = 1e-5
_JOB_SECONDS = 900.0
_POLL_SECONDS = 0.1  # the delays after it are random, so it hides no moment
# some kills hit a job that starts, most of them one on its way
_SHARE_WHILE_STARTING = 0.25
_LONGEST_START, _MOST_EPOCHS, _LONGEST_EPOCH = 9.0, 4, 0.5
_NEVER = 10_000  # restarts: as many as there are kills

# a local Ray cluster has as many places as the machine has cores
_WAYS = ((torchrun, 1), (torchrun, 4), (ray, 1), (torchrun, 2), (ray, 2))


@dataclass(slots=True)
class Outcome:
    """What became of the runs of one kind."""

    kind: str
    runs: int = 0
    kills: int = 0
    recoveries: int = 0
    identical: int = 0
    seconds: float = 0.0
    loss_difference: float = 0.0
    phases: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class Campaign:
    """Disturbs runs until enough kills have happened.

    Args:
        folder: for outputs and logs.
        seed: of the moments and victims.
        say: told what happens.
        epochs: of every run.
    """

    def __init__(
        self,
        folder: Path,
        seed: int,
        say: Callable[[str], None] = lambda _: None,
        epochs: int = 24,
    ) -> None:
        self._folder = folder
        self._random = random.Random(seed)
        self._say = say
        self._epochs = epochs
        self._references: dict[tuple[str, ...], dict[str, Any]] = {}

    def torchrun(self, kills: int, per_run: int = 10) -> Outcome:
        """Kill ranks under torchrun."""
        return self._restarted(
            Outcome("torchrun"), kills, per_run, lambda *a: torchrun(2, *a, restarts=_NEVER)
        )

    def ray(self, kills: int, per_run: int = 10) -> Outcome:
        """Kill workers of Ray Train."""
        return self._restarted(
            Outcome("ray"), kills, per_run, lambda *a: ray(2, *a, restarts=_NEVER)
        )

    def resize(self, kills: int, per_run: int = 5, *, with_ray: bool = True) -> Outcome:
        """Kill whole jobs and go on with other numbers of ranks, and under the other launcher."""
        outcome = Outcome("resize")
        ways = [way for way in _WAYS if with_ray or way[0] is torchrun]
        extra: tuple[str, ...] = ("--train.dtype", "float64", *WITHOUT_NETWORK)
        extra += ("--forward.tolerance", "1e-10", "--adjoint.tolerance", "1e-10")
        reference = self._reference(extra)
        losses = [record["loss"] for record in reference["metrics"]]
        while outcome.kills < kills:
            output = self._output(outcome)
            started, wanted = time.monotonic(), min(per_run, kills - outcome.kills)
            for number in range(wanted):
                start, ranks = ways[number % len(ways)]
                job = Job(start(ranks, *self._arguments(output, extra)), self._folder)
                # not later than so many epochs, so that something is left to do
                limit = self._epochs * (number + 1) // (wanted + 1)
                self._wait_for_a_moment(job, output, limit)
                if not job.running:
                    outcome.problems.append(f"{output.name}: ended early\n{job.text[-1500:]}")
                    return outcome
                self._note(outcome, output, f"with {ranks} of {start.__name__}")
                job.kill_all()
            job = Job(torchrun(2, *self._arguments(output, extra)), self._folder)
            if self._finished(outcome, job, output):
                outcome.recoveries += wanted
                found = [record["loss"] for record in records(output)]
                worst = max(abs(a - b) / abs(b) for a, b in zip(found, losses, strict=True))
                outcome.loss_difference = max(outcome.loss_difference, worst)
                outcome.identical += int(len(found) == self._epochs and worst < LOSS_TOLERANCE)
            outcome.seconds += time.monotonic() - started
            self._report(outcome)
        return outcome

    def _restarted(
        self,
        outcome: Outcome,
        kills: int,
        per_run: int,
        command: Callable[..., list[str]],
    ) -> Outcome:
        reference = self._reference(())
        while outcome.kills < kills:
            output = self._output(outcome)
            started = time.monotonic()
            job = Job(command(*self._arguments(output, ())[:-2]), self._folder)
            done = self._disturb(outcome, job, output, min(per_run, kills - outcome.kills))
            if self._finished(outcome, job, output):
                outcome.recoveries += done
                wrong = differences(reference, result(output))
                outcome.identical += not wrong
                outcome.problems += [f"{output.name}: {what} differs" for what in wrong]
            outcome.seconds += time.monotonic() - started
            self._report(outcome)
            if done == 0:
                outcome.problems.append(f"{output.name}: ended before the first kill")
                break
        return outcome

    def _disturb(self, outcome: Outcome, job: Job, output: Path, kills: int) -> int:
        """Kill ranks of a job so often, if it runs so long; how often it was."""
        done = 0
        while done < kills:
            ranks = self._wait_for_a_moment(job, output)
            if not job.running:
                break
            victim = self._random.choice(ranks) if ranks else None
            if victim is None:
                continue
            phase = _phase(output, victim)
            if send(victim, signal.SIGKILL):
                done += 1
                self._note(outcome, output, phase)
                self._wait_for_another(job, set(ranks))
        return done

    def _wait_for_a_moment(self, job: Job, output: Path, epochs: int | None = None) -> list[int]:
        """A random while after the ranks were started; their process ids.

        With ``epochs`` so many are recorded then.
        """
        deadline = time.monotonic() + _JOB_SECONDS
        delay = self._random.uniform(0.0, _LONGEST_START)
        if epochs is None and self._random.random() > _SHARE_WHILE_STARTING:
            epochs = len(records(output)) + self._random.randint(1, _MOST_EPOCHS)
        if epochs is not None:
            delay = self._random.uniform(0.0, _LONGEST_EPOCH)
        reached: float | None = None
        while job.running and time.monotonic() < deadline:
            ranks = job.ranks()
            if reached is None and ranks and len(records(output)) >= (epochs or 0):
                reached = time.monotonic()
            if reached is not None and time.monotonic() - reached > delay:
                return ranks
            time.sleep(_POLL_SECONDS)
        return []

    @staticmethod
    def _wait_for_another(job: Job, before: set[int]) -> None:
        """Until the job has noticed and every rank has been started again."""
        deadline = time.monotonic() + 120
        while job.running and time.monotonic() < deadline:
            now = set(job.ranks())
            if len(now) == len(before) and not now & before:
                return
            time.sleep(_POLL_SECONDS)

    def _note(self, outcome: Outcome, output: Path, phase: str) -> None:
        """Count a kill; a record that is not whole at that moment raises here."""
        outcome.kills += 1
        outcome.phases[phase] = outcome.phases.get(phase, 0) + 1
        self._say(f"{outcome.kind} kill {outcome.kills}: {phase}, {len(records(output))} epochs")

    def _finished(self, outcome: Outcome, job: Job, output: Path) -> bool:
        try:
            code = job.wait(_JOB_SECONDS)
        except AssertionError as error:
            outcome.problems.append(f"{output.name}: {error}")
            return False
        left = remains(output) if code == 0 else []
        outcome.problems += [f"{output.name}: left {what}" for what in left]
        if code != 0:
            outcome.problems.append(f"{output.name}: exit code {code}\n{job.text[-1500:]}")
        return code == 0

    def _reference(self, extra: tuple[str, ...]) -> dict[str, Any]:
        """The result of a run that nobody disturbs."""
        if extra not in self._references:
            output = self._folder / f"reference-{len(self._references)}"
            job = Job(torchrun(2, *self._arguments(output, extra)), self._folder)
            assert job.wait(_JOB_SECONDS) == 0, job.text[-3000:]
            self._references[extra] = result(output)
        return self._references[extra]

    def _arguments(self, output: Path, extra: Iterable[str]) -> list[str]:
        epochs = ["--train.epochs", str(self._epochs)]
        return [*extra, *epochs, "--output", str(output), "--resume", "auto"]

    def _output(self, outcome: Outcome) -> Path:
        outcome.runs += 1
        return self._folder / f"{outcome.kind}-{outcome.runs}"

    def _report(self, outcome: Outcome) -> None:
        self._say(
            f"{outcome.kind}: {outcome.recoveries} of {outcome.kills} kills recovered, "
            f"{outcome.identical} of {outcome.runs} runs identical"
        )


def _phase(output: Path, victim: int) -> str:
    """What a rank was doing, by its own log."""
    for path in (output / "logs").glob("rank-*.jsonl"):
        lines = path.read_bytes().splitlines()
        last = json.loads(lines[-1]) if lines else {}
        if last.get("pid") == victim:
            return str(last["phase"])
    return "starting"


def table(outcomes: list[Outcome]) -> Table:
    """For people."""
    found = Table(title="fault campaign")
    for name in ("launcher", "runs", "kills", "recovered", "identical runs", "seconds a kill"):
        found.add_column(name, justify="left" if name == "launcher" else "right")
    for one in outcomes:
        found.add_row(
            one.kind,
            str(one.runs),
            str(one.kills),
            str(one.recoveries),
            f"{one.identical} of {one.runs}",
            f"{one.seconds / max(one.kills, 1):.1f}",
        )
    return found


def show(outcomes: list[Outcome], console: Console) -> bool:
    """Print the table and whatever went wrong; whether nothing did."""
    console.print(table(outcomes))
    for one in outcomes:
        where = ", ".join(f"{name} {count}" for name, count in sorted(one.phases.items()))
        console.print(f"{one.kind}: killed {where}", soft_wrap=True)
        if one.loss_difference:
            console.print(f"{one.kind}: losses differ by at most {one.loss_difference:.1e}")
        for problem in one.problems:
            console.print(f"[red]{problem}[/red]", soft_wrap=True)
    return all(sound(one) for one in outcomes)


def sound(one: Outcome) -> bool:
    """Every kill recovered, every run as if nothing had happened, nothing left behind."""
    return not one.problems and one.recoveries == one.kills and one.identical == one.runs


def as_json(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    """For programs."""
    return [asdict(one) for one in outcomes]
