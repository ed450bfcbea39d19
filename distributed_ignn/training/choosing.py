"""Chooser: which epoch is the best one, by metrics that are confirmed before they count.

A confirmation costs a tight solve, so it waits for as long as validation improves: an epoch that
would be chosen becomes the candidate, in the place of the one before, and is confirmed once the
next validation is not better, or the training ends. Two sets of weights are kept: the best epoch's
and the candidate's.

A candidate that gives way to a better one is never looked into. That loses nothing while validation
is right about which of them is better. So once a confirmation finds another metric than validation
did, by more than ``SLACK``, or none that holds, every candidate is confirmed at once, until one is
found to be right. Then none waits, and so none that is never confirmed keeps patience from running
out.

Metrics of a model that does not solve need no confirmation: there is no candidate.

Where solves are loose (``loose_tolerance.py``) nothing is confirmed yet: the candidate waits for
the first tight validation.
"""

from __future__ import annotations

from dataclasses import replace

from distributed_ignn.training.confirmation import SLACK, Confirmation, Finding
from distributed_ignn.training.model_weights import Best, Candidate, Weights
from distributed_ignn.training.state import TensorDict


class Chooser:
    """Chooses an epoch; every rank calls it alike.

    Args:
        weights: of the model that is validated.
        confirmation: judges metrics.

    Attributes:
        best: the epoch chosen so far.
        candidate: the one that may be next.
    """

    def __init__(self, weights: Weights, confirmation: Confirmation) -> None:
        self._weights = weights
        self._confirmation = confirmation
        self.best = Best(weights)
        self.candidate = Candidate(weights)

    @property
    def stale(self) -> int:
        """Validations since the best one, which may be the candidate."""
        return self.best.stale if self.candidate.weights is None else 0

    def consider(
        self,
        epoch: int,
        metrics: dict[str, float],
        *,
        converged: bool,
        last: bool,
        rough: bool = False,
    ) -> Finding:
        """Take note of a validation of the model's present weights.

        Args:
            epoch: counted from 1.
            metrics: that validation found, by split.
            converged: whether its solve reached the tolerance.
            last: whether no other epoch follows.
            rough: whether the solve was loosened, and nothing is to be confirmed yet.

        Returns:
            The metrics; that of the validation nodes is the confirmed one where it holds.
        """
        val = metrics["val"]
        self.best.stale += 1
        better = converged and val > self.candidate.val_metric
        if not (better or rough):
            self.settle(stale=1)
        found = self._confirmation.unconfirmed(metrics)
        if not self.best.beaten_by(val, converged) or (rough and not better):
            return found
        if found.holds or not converged:
            self._take(epoch, found, self._weights.copy())
            return found
        self.candidate.take(epoch, val)
        if rough or (self.candidate.trusted and not last):
            return found
        judged = self.settle() or found
        return replace(judged, metrics=metrics | judged.metrics)

    def settle(self, stale: int = 0) -> Finding | None:
        """Confirm the candidate's metric, and choose it if it still is better.

        Args:
            stale: validations since.

        Returns:
            What was found; None where nothing waits.
        """
        candidate = self.candidate
        if candidate.weights is None:
            return None
        with self._weights.in_use(candidate.weights):
            found = self._confirmation.judge({"val": candidate.val_metric})
        self._take(candidate.epoch, found, candidate.weights, stale)
        near = abs(found.metrics["val"] - candidate.val_metric) <= SLACK
        candidate.trusted = found.holds and near
        candidate.drop()
        return found

    def believe(self) -> None:
        """Choose the candidate by the metric that validation found, if it would be better.

        For another graph, where there is nothing to confirm it by.
        """
        candidate, val = self.candidate, self.candidate.val_metric
        if candidate.weights is not None and self.best.beaten_by(val, confirmed=True):
            self.best.take(candidate.epoch, val, candidate.weights, confirmed=False, tolerance=None)
        candidate.drop()

    def _take(self, epoch: int, found: Finding, weights: TensorDict, stale: int = 0) -> None:
        """Choose the epoch with these metrics and weights, if it is better."""
        val = found.metrics["val"]
        if self.best.beaten_by(val, found.holds):
            self.best.take(
                epoch, val, weights, confirmed=found.holds, tolerance=found.tolerance, stale=stale
            )
