"""What the processes of a Ray run tell each other besides their work.

The workers and Ray's controller send lines to the driver, which is the process that a person
started; the driver sends a request to stop to the workers. Only plain pairs of texts travel, and
the two small classes that run in other processes are defined inside functions, so that they are
sent as they are: neither Ray's queue nor its controller has to import this package, and torch with
it.
"""

from __future__ import annotations

import io
import time
from threading import Thread
from typing import Any

OUTPUT = "output"  # what rank 0 prints
MISTAKE = "mistake"  # of the user
STARTED = "started"  # the workers are there
TRAINING = "training"  # the first epoch of an attempt is over
CHECKPOINT = "checkpoint"  # one has been written
STOPPED = "stopped"  # signal number, blank, one line
TRACE = "trace"  # stack trace of a worker that failed by itself
LOST = "lost"  # why a worker gives up on the others
FAILED = "failed"  # the line of an attempt that has ended in a failure
_END = "end"


class Course:
    """How a run is going, from what its processes have said.

    ``mistake``, ``stopped``: the first of its kind, or None.
    ``running``, ``training``: whether workers are there, and whether they have done an epoch.
    ``failures``: attempts that have failed; ``failure``: the line of the last one.
    ``trace``: its stack trace, where the program itself failed.
    ``repeated``: whether it is that of the attempt before, without a checkpoint in between.
    ``changed``: when ``running`` did, by the clock of ``time.monotonic``.
    """

    def __init__(self) -> None:
        self.mistake: str | None = None
        self.stopped: tuple[int, str] | None = None
        self.running, self.training, self.repeated = False, False, False
        self.failures, self.failure = 0, ""
        self.trace: str | None = None
        self._lost: str | None = None
        self.changed = time.monotonic()
        self._trace_before: str | None = None

    def take(self, kind: str, text: str) -> None:
        """One message."""
        if kind == OUTPUT:
            print(text, end="", flush=True)
        elif kind == MISTAKE:
            self.mistake = self.mistake or text
        elif kind == STOPPED:
            number, _, line = text.partition(" ")
            self.stopped = self.stopped or (int(number), line)
        elif kind == TRACE:
            self.trace = self.trace or text
        elif kind == LOST:
            self._lost = self._lost or _in_short(text)
        elif kind == CHECKPOINT:
            self._trace_before = None
        elif kind == TRAINING:
            self.training = True
        elif kind == STARTED:
            self.running, self.changed = True, time.monotonic()
            self.trace, self._lost = None, None
        elif kind == FAILED and self.running:  # Ray reports a failure as long as it lasts
            self._fail(text)

    def _fail(self, text: str) -> None:
        self.running, self.training, self.changed = False, False, time.monotonic()
        self.failures, self.failure = self.failures + 1, self._lost or text
        self.repeated = self.trace is not None and self.trace == self._trace_before
        self._trace_before = self.trace


def _in_short(text: str) -> str:
    """Who is lost, of a JobError's line; the rest is in the crash report."""
    first = text.partition("; ")[0]
    return first.partition(" (")[0] if " lost the others in " in first else first


class Screen(Course):
    """On the driver: a queue, and a thread that takes what comes through it.

    Args:
        shows: whether what rank 0 prints is shown.
    """

    def __init__(self, *, shows: bool = True) -> None:
        super().__init__()
        self._shows = shows
        from ray.util.queue import Queue

        self.lines = Queue(actor_options=beside_driver())
        self._thread = Thread(target=self._show, daemon=True)
        self._thread.start()

    def _show(self) -> None:
        import ray

        while True:
            try:
                kind, text = self.lines.get()
            except ray.exceptions.RayError:
                return
            if kind == _END:
                return
            if self._shows or kind != OUTPUT:
                self.take(kind, text)

    def close(self) -> None:
        """Return when everything sent before has been shown; a second call does nothing."""
        import ray

        if not self._thread.is_alive():
            return
        try:
            self.lines.put((_END, ""))
        except ray.exceptions.RayError:
            return
        self._thread.join()


class Lines(io.TextIOBase):
    """A text file whose lines appear on the driver's screen.

    Args:
        lines: the queue of a Screen.
        encoding: of the driver's screen; decides whether tables may have drawn borders.
    """

    def __init__(self, lines: Any, encoding: str) -> None:
        self._lines = lines
        self._encoding = encoding
        self._pending = ""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        whole, newline, self._pending = (self._pending + text).rpartition("\n")
        if newline:
            self._lines.put((OUTPUT, whole + newline))
        return len(text)


def beside_driver() -> dict[str, Any]:
    """Options of an actor that must outlive any machine that the run can lose."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return {"num_cpus": 0, "scheduling_strategy": here}


def make_bell() -> Any:
    """An actor through which the driver asks the workers to stop.

    ``ring(signum)`` by the driver; ``wait(seconds)`` gives the number, or None after that time.
    """
    import asyncio

    import ray

    class Bell:
        def __init__(self) -> None:
            self._rung = asyncio.Event()
            self._signum: int | None = None

        async def ring(self, signum: int) -> None:
            self._signum = signum
            self._rung.set()

        async def wait(self, seconds: float) -> int | None:
            try:
                await asyncio.wait_for(self._rung.wait(), seconds)
            except TimeoutError:
                return None
            return self._signum

    return ray.remote(Bell).options(**beside_driver()).remote()


def make_failure_reporter(lines: Any) -> Any:
    """A callback of Ray's controller that sends a line when an attempt has failed.

    Args:
        lines: the queue of a Screen.
    """
    from ray.train import UserCallback

    class Reporter(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Any]) -> None:
            """One line: a rank that died says more than those that missed it."""
            import ray

            died = [
                rank
                for rank, error in worker_exceptions.items()
                if not isinstance(error, ray.exceptions.RayActorError)
                and isinstance(
                    getattr(error, "health_check_failure", None), ray.exceptions.RayError
                )
            ]
            leaving = [e for e in worker_exceptions.values() if getattr(e, "preempted", False)]
            rank, error = min(worker_exceptions.items())
            if leaving:
                text = str(leaving[0])
            elif died:
                text = f"rank {' and '.join(map(str, sorted(died)))} was lost"
            else:
                text = f"rank {rank} failed ({str(error).strip().splitlines()[0]})"
            lines.put((FAILED, text))

    return Reporter()
