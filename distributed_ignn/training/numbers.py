"""When numbers go bad: found on all ranks together, said in one line, and handled by policy.

A solve, a loss or a gradient is judged by numbers that were reduced over ranks anyway, so every
rank finds the same fault at the same point and raises the same ``NumbersError``. Only then do the
ranks look for its origin, each in its own tensors in the order in which one is made from another,
and tell each other what they found.

The policy (``train.on_bad_numbers``): ``stop`` ends the run, ``skip`` leaves the step out, and
``rollback`` is carried out by whoever holds the checkpoints (``recovery.py``).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig
from distributed_ignn.config.explicit import IMPLICIT
from distributed_ignn.errors import UserError
from distributed_ignn.solvers.base import Solution
from distributed_ignn.training.state import Count, Number, State, Values

logger = logging.getLogger(__name__)
_NAMED_RANKS = 4
_HUGE = 1e15  # sums of squares of such numbers come close to the end of float32

Suspects = Callable[[], Sequence[tuple[str, Tensor]]]
"""Named tensors of this rank, causes before effects; as many, of the same names, on every rank."""


class NumbersError(Exception):
    """Says in one line which numbers the run cannot go on with; raised on every rank alike.

    Args:
        message: what, where, and the way out.
        taken: whether the step has been taken, so that leaving it out comes too late.
    """

    def __init__(self, message: str, *, taken: bool = False) -> None:
        super().__init__(message)
        self.taken = taken


class Tally(Values):
    """Counts what has gone wrong so far, and what a resumed run must know of it.

    Args:
        lowest_loss: of all steps taken; None before the first.
        skips: faulty epochs in a row.
        skipped: of the whole run.
        rollbacks: of the whole run.
        lr_scale: what the learning rate is multiplied by.
        lr: ``train.lr``, which the scale belongs to.
    """

    lowest_loss: Number | None = None
    skips: Count = 0
    skipped: Count = 0
    rollbacks: Count = 0
    lr_scale: Annotated[Number, Field(gt=0, le=1)] = 1.0
    lr: Annotated[Number, Field(gt=0)] | None = None


class NumberGuard:
    """Judges the numbers of an epoch; every rank calls it alike.

    Args:
        config: ``train`` and, for the way out, ``model`` are read.
        comm: for the search after a fault; nothing is sent without one.
    """

    def __init__(self, config: RunConfig, comm: Communicator) -> None:
        self._config = config
        self._comm = comm
        self.tally = Tally(lr=config.train.lr)

    @property
    def policy(self) -> str:
        """What ``train.on_bad_numbers`` asks for: ``stop``, ``skip`` or ``rollback``."""
        return self._config.train.on_bad_numbers

    def check_solve(
        self, name: str, epoch: int, diverged: Solution | None, suspects: Suspects
    ) -> None:
        """Raise NumbersError where a solve has ``diverged``; its record, or None."""
        if diverged is None:
            return
        what = f"the {name} solve diverges in {_count(diverged.steps, 'evaluation')}"
        if math.isfinite(diverged.residual):
            what += f" from a relative residual of {diverged.residual:.1e}"
        self._fail(epoch, what, suspects)

    def check_loss(self, loss: float, epoch: int, suspects: Suspects) -> None:
        """Raise NumbersError where the reduced loss is not finite or explodes."""
        if not math.isfinite(loss):
            self._fail(epoch, f"the training loss is {loss}", suspects)
        lowest, factor = self.tally.lowest_loss, self._config.train.explode_factor
        # a loss of 1 is about that of a model that knows nothing: what is below cannot explode
        if factor and lowest is not None and loss > factor * max(lowest, 1.0):
            what = (
                f"the training loss is {loss:.3g}, more than {factor:g} times the lowest so far "
                f"({lowest:.3g})"
            )
            largest = _largest(suspects(), self._comm)
            raise NumbersError(
                f"epoch {epoch}: {what}; largest: {largest}; {self._way_out(largest)}"
            )
        self.tally.lowest_loss = loss if lowest is None else min(loss, lowest)

    def check_gradients(self, usable: bool, epoch: int, suspects: Suspects) -> None:
        """Raise NumbersError where the ranks' gradients are not ``usable``."""
        if not usable:
            self._fail(epoch, "the gradient is not finite, or its square is not", suspects, True)

    def check_weights(self, epoch: int, replicated: Sequence[tuple[str, Tensor]]) -> None:
        """Raise NumbersError where the step has left weights that are not finite.

        Args:
            epoch: counted from 1.
            replicated: parameters that are the same on every rank, and so is the answer. Rows that
                a rank has for itself show in the next solve.
        """
        if all(_count_bad(value) == 0 for _, value in replicated):
            return
        where = locate(replicated, self._comm) or ""
        raise NumbersError(
            f"epoch {epoch}: the step has made weights that are not finite: {where}; "
            f"{self._way_out(where)}",
            taken=True,
        )

    def passed(self) -> None:
        """Note that an epoch without fault is over."""
        self.tally.skips = 0

    def skip(self, fault: NumbersError) -> None:
        """Count a fault and return where the policy leaves such an epoch out.

        Raises:
            UserError: the policy is ``stop``, or there were too many, or it is too late to skip.
            NumbersError: the policy is ``rollback``.
        """
        if self.policy == "rollback":
            raise fault
        if self.policy == "stop":
            raise UserError(str(fault)) from fault
        if fault.taken:
            raise UserError(
                f"{fault} (train.on_bad_numbers = skip cannot undo a step; use rollback)"
            ) from fault
        self.tally.skips += 1
        self.tally.skipped += 1
        limit = self._config.train.max_bad_steps
        if self.tally.skips > limit:
            raise UserError(
                f"{fault} (after {_count(limit, 'epoch')} skipped in a row, train.max_bad_steps)"
            ) from fault
        logger.warning("%s (epoch skipped)", _without_way_out(fault))

    def roll_back(self, fault: NumbersError) -> float:
        """Count a rollback, and return the factor on the bound kappa that the retry is to have.

        Raises:
            UserError: there were too many.
        """
        train = self._config.train
        if self.tally.rollbacks >= train.max_bad_steps:
            raise UserError(
                f"{fault} (after {_count(train.max_bad_steps, 'rollback')}, train.max_bad_steps; "
                f"the learning rate was {train.lr * self.tally.lr_scale:.2g} at last)"
            ) from fault
        self.tally.rollbacks += 1
        self.tally.lr_scale *= train.rollback_lr_factor
        return train.rollback_kappa_factor

    def announce_rollback(self, fault: NumbersError, epoch: int) -> None:
        """Say where the run goes on, and how."""
        train = self._config.train
        how = f"train.lr = {train.lr * self.tally.lr_scale:.3g}"
        if train.rollback_kappa_factor < 1.0:
            how += f" and kappa times {train.rollback_kappa_factor:g}"
        logger.warning("%s (back to epoch %d, with %s)", _without_way_out(fault), epoch, how)

    def state(self) -> State:
        """See ``Stateful``."""
        return State(self.tally.model_dump())

    def load_state(self, state: State) -> None:
        """See ``Stateful``; with another ``train.lr`` rollbacks begin anew, at that."""
        tally, lr = Tally.read(state), self._config.train.lr
        if tally.lr != lr:
            tally.rollbacks, tally.lr_scale, tally.lr = 0, 1.0, lr
        self.tally = tally

    def go_back(self, state: State) -> None:
        """Forget losses and skipped epochs since ``state``; what is known of rollbacks stays."""
        before = Tally.read(state)
        self.tally.lowest_loss, self.tally.skipped = before.lowest_loss, before.skipped
        self.tally.skips = 0

    def _fail(self, epoch: int, what: str, suspects: Suspects, squares: bool = False) -> None:
        tensors = suspects()
        where = locate(tensors, self._comm, squares)
        place = where or _largest(tensors, self._comm)
        found = f": NaN or Inf in {place}" if where else f"; largest: {place}"
        raise NumbersError(f"epoch {epoch}: {what}{found}; {self._way_out(place)}")

    def _way_out(self, where: str) -> str:
        """Say what a person may change; ``where`` begins with the name of the faulty tensor."""
        if where.startswith("features"):
            return f"correct the dataset ({self._config.dataset})"
        train, model = self._config.train, self._config.model
        ways = [f"lower train.lr = {train.lr:g}"]
        if model.kind == IMPLICIT:
            bounded = model.constraint != "none"
            kappa = f"lower model.kappa = {model.kappa:g}"
            ways.append(kappa if bounded else "set model.constraint projection")
        if train.on_bad_numbers != "rollback":
            ways.append("add --train.on-bad-numbers rollback")
        return ", or ".join(ways)


def warn_unconverged(summary: dict[str, Any], config: RunConfig) -> None:
    """Say so where the final metrics, or some that chose the epoch, are not those of Z*."""
    if "confirmed" not in summary:
        return
    forward, epochs = config.forward, summary["epochs_unconverged"]
    what = []
    if not summary["converged"]:
        what.append(
            f"the final metrics (relative residual {summary['residual_last']:.1e} above "
            f"{summary['tolerance']:.1e})"
        )
    if epochs:
        what.append(f"the validation of {_count(epochs, 'epoch')}")
    if what:
        logger.warning(
            "%s came from solves that did not reach forward.tolerance = %g; raise "
            "forward.max_steps = %d, or the tolerance",
            " and ".join(what),
            forward.tolerance,
            forward.max_steps,
        )
    elif not summary["confirmed"]:
        logger.warning(
            "nobody has confirmed that the metrics are those of the equilibrium: a solve from "
            "nothing kept to a tolerance of %.1e gives validation %.4f; lower forward.tolerance = "
            "%g, or raise forward.max_steps = %d",
            summary["tolerance"],
            summary["best_val"],
            forward.tolerance,
            forward.max_steps,
        )


def locate(
    suspects: Sequence[tuple[str, Tensor]], comm: Communicator, squares: bool = False
) -> str | None:
    """Name the first tensor that is not finite on some rank, those ranks, and how many entries.

    Args:
        suspects: this rank's, see ``Suspects``.
        comm: every rank calls it together.
        squares: whether entries whose square is not finite count too.

    Returns:
        As in ``weights head.bias on rank 1 (1 of 3 entries)``; None where all is finite.
    """
    own = None
    for place, (_, tensor) in enumerate(suspects):
        bad = _count_bad(tensor.square() if squares else tensor)
        if bad:
            own = [place, bad, tensor.numel()]
            break
    found = comm.gather_json(own)
    hit = [(rank, *each) for rank, each in enumerate(found) if each is not None]
    if not hit:
        return None
    first = min(place for _, place, _, _ in hit)
    ranks = [
        f"rank {rank} ({bad:,} of {total:,} entries)"
        for rank, place, bad, total in hit
        if place == first
    ]
    more = f" and {len(ranks) - _NAMED_RANKS} more" if len(ranks) > _NAMED_RANKS else ""
    return f"{suspects[first][0]} on {', '.join(ranks[:_NAMED_RANKS])}{more}"


def _largest(suspects: Sequence[tuple[str, Tensor]], comm: Communicator) -> str:
    """Name the first tensor with an entry that is huge, or else the largest, and its rank."""
    sizes = [float(t.detach().abs().max()) if t.numel() else 0.0 for _, t in suspects]
    found = torch.tensor(comm.gather_json(sizes))
    tops, ranks = found.max(dim=0)
    huge = (tops > _HUGE).nonzero()
    if huge.numel():
        place = int(huge[0])
    else:
        # features may be as large as they like
        known = torch.tensor([name != "features" for name, _ in suspects])
        place = int((tops * known).argmax())
    return f"{suspects[place][0]} on rank {int(ranks[place])} ({float(tops[place]):.2g})"


def _count_bad(tensor: Tensor) -> int:
    return int((~torch.isfinite(tensor.detach())).sum())


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _without_way_out(fault: NumbersError) -> str:
    """Leave out what a person could change, because the run goes on by itself."""
    return str(fault).rpartition("; ")[0]
