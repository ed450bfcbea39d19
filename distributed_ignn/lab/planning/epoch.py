"""The seconds and bytes of one training epoch, as a sum over what the code does.

    evaluation   pack + together(product, exchange) + boundary + dense + passes + history
                 + reduction
    epoch        encoder twice (training, validation) + its backward + all evaluations + readouts

The counts of passes below follow ``models/maps.py``, ``solvers/anderson.py``, ``solvers/neural.py``
and ``training/trainer.py``; a pass over [O, D] moves O D s bytes. Letters as in ``workload.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from distributed_ignn.comm.codecs import encodes
from distributed_ignn.lab.planning import host_work
from distributed_ignn.lab.planning.equations import Machine
from distributed_ignn.lab.planning.hardware import Asked
from distributed_ignn.lab.planning.host_work import HostWork
from distributed_ignn.lab.planning.workload import Part, Workload, row_bytes
from distributed_ignn.propagation.sparse import BLOCK_ROWS
from distributed_ignn.solvers.base import SolveSizes

_OPERATIONS = 50.0  # started per evaluation: the map, Anderson's Gram matrix, its small system
_BLOCK_OPERATIONS = 12.0  # more for every block of rows, of which a device has one
_LEARNED_OPERATIONS = 30.0  # more with the error estimator
_BLOCK_BYTES = 2e6  # of a block of rows, which stays in the cache
_EPOCH_OPERATIONS = 250.0  # encoder, readout, loss, backward, optimiser
_EPOCH_REDUCTIONS = 5  # loss, gradients, metrics, counters


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of one rank by kind, and what it sends.

    Args:
        product, boundary: sparse products of owned and of halo rows.
        dense, elementwise, history, masks: see ``equations.py``.
        packing: rows picked out, encoded, decoded and added in.
        exposed: of the exchanges, what no product hides.
        reduction: all-reduces.
        starting: of operations.
        exchange: all seconds of the exchanges, hidden ones too; not part of the total.
        sent: bytes.
        exchanges: halo exchanges.
        launches, syncs: of a GPU's host, see ``host_work.py``; their seconds are in ``starting``.
    """

    product: float = 0.0
    boundary: float = 0.0
    dense: float = 0.0
    elementwise: float = 0.0
    history: float = 0.0
    masks: float = 0.0
    packing: float = 0.0
    exposed: float = 0.0
    reduction: float = 0.0
    starting: float = 0.0
    exchange: float = 0.0
    sent: float = 0.0
    exchanges: float = 0.0
    launches: float = 0.0
    syncs: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def times(self, count: float) -> Cost:
        """So many of it."""
        return Cost(*(getattr(self, f.name) * count for f in fields(self)))

    @property
    def seconds(self) -> float:
        """The total."""
        counted = fields(self)[:10]
        return float(sum(getattr(self, f.name) for f in counted))


class EpochModel:
    """What one rank of P spends.

    Args:
        part: its sizes.
        work: the settings.
        machine: the hardware with P ranks on it.
    """

    def __init__(self, part: Part, work: Workload, machine: Machine) -> None:
        self.part, self.work, self.machine = part, work, machine
        self._state = part.owned * work.width * work.bytes

    def epoch(self) -> Cost:
        """Everything between two validations, the second included."""
        work = self.work
        total = self._encoder().times(2) + self._encoder_backward()
        total += self._evaluation(False).times(work.forward + work.validation)
        total += self._evaluation(True).times(work.adjoint)
        total += self._starts() + self._readouts()
        model = self.machine
        total += Cost(reduction=model.reduction() * _EPOCH_REDUCTIONS)
        if self._on_device:
            return total + self._asked(host_work.EPOCH)
        return total + Cost(starting=model.operations(_EPOCH_OPERATIONS))

    def evaluation(self) -> Cost:
        """One evaluation of the map in a forward solve."""
        return self._evaluation(False)

    def _evaluation(self, adjoint: bool) -> Cost:
        """The map and the method's step."""
        part, work, model, state = self.part, self.work, self.machine, self._state
        moved = self._propagation(work.width, adjoint)
        # what a block of rows reads and writes beside the products, which stay in the cache;
        # forward: b, the product that the backward pass needs, the image; backward: g, the mask of
        # one byte an entry, the image, and v W', which is an array of its own
        passes, new = (3.25, 2.0) if adjoint else (3.0, 1.0)
        dense = 2.0 * part.channels * part.owned * work.width**2
        map_cost = moved + Cost(
            dense=model.dense(dense),
            elementwise=model.stream(passes * state, state) + model.fresh(new, state),
            starting=self._starting(_BLOCK_OPERATIONS * self._blocks()),
        )
        total = self._stale(map_cost, moved) + self._method(adjoint)
        if self._on_device:
            total += self._asked(self.host(adjoint).evaluation().asked)
        return total

    @property
    def _on_device(self) -> bool:
        """Whether launches and syncs are counted, in the place of operations."""
        return not self.machine.profile.on_cpu

    def host(self, adjoint: bool = False) -> HostWork:
        """What the host does for the evaluations of either solve."""
        method = self.work.adjoint_method if adjoint else self.work.method
        coded = encodes(self.work.codec)
        return HostWork(self.machine.profile, method, self.machine.ranks, coded)

    def _asked(self, asked: Asked) -> Cost:
        seconds = self.host().seconds(asked)
        return Cost(starting=seconds, launches=asked.launches, syncs=asked.syncs)

    def _starting(self, operations: float) -> float:
        """Seconds of starting operations on a CPU; a device's are counted as launches."""
        return 0.0 if self._on_device else self.machine.operations(operations)

    def _blocks(self) -> float:
        """Blocks of rows of a product."""
        on_cpu = self.machine.profile.on_cpu
        return max(1.0, self.part.owned / BLOCK_ROWS) if on_cpu else 1.0

    def _stale(self, cost: Cost, moved: Cost) -> Cost:
        """With rows of the last evaluation the exchange has all of this one's time."""
        if not self.work.stale:
            return cost
        waited = max(0.0, moved.exchange - (cost.seconds - cost.exposed))
        return cost + Cost(exposed=waited - cost.exposed)

    def _method(self, adjoint: bool) -> Cost:
        """The method's step, averaged over a solve; with an estimate where that is learned.

        A learned solver judges an evaluation first, and the last one is only judged.
        """
        work, model, state = self.work, self.machine, self._state
        steps = max(work.adjoint if adjoint else work.forward, 1)
        # of a state of one byte, since a part's sizes may be estimates and not whole
        sizes = SolveSizes(1, work.bytes, steps, fused=not model.profile.on_cpu)
        moved = work.solver(adjoint).moved_bytes(sizes)
        history = model.history(moved * state, state)
        cost = Cost(history=history, reduction=model.reduction())
        if not work.learned:
            passes = model.stream(state, state)  # the square of the image
            return cost + Cost(elementwise=passes, starting=self._starting(_OPERATIONS))
        return cost + self._estimate().times((steps - 1) / steps)

    def _estimate(self) -> Cost:
        """H from G: one hop of p columns, and the way back to D."""
        part, work, model, state = self.part, self.work, self.machine, self._state
        p = min(work.compress, work.width)
        blocks = 1 + part.channels
        dense = 2.0 * part.owned * work.width * p * (1 + blocks)
        # G = image - z is made block by block: for its columns, its square and its estimate; the
        # image's square; columns side by side
        passes = 2.0 + 2.0 + 2.0 + 1.0 + 2.0 * blocks * p / work.width
        return self._propagation(p, False) + Cost(
            dense=model.dense(dense),
            elementwise=model.stream(passes * state, state),
            starting=self._starting(_OPERATIONS + _LEARNED_OPERATIONS),
        )

    def _propagation(self, columns: int, adjoint: bool) -> Cost:
        """A_hat or its transpose times [O, columns], with its exchange."""
        part, work, model = self.part, self.work, self.machine
        row = columns * work.bytes
        inner = model.product(
            part.owned_entries, part.owned * part.channels, part.owned, row, work.locality
        )
        halo_in, halo_out = (part.boundary, part.halo) if adjoint else (part.halo, part.boundary)
        outer = model.product(part.boundary_entries, halo_out, halo_in, row, work.locality)
        if not adjoint:  # the result is added to the boundary rows
            outer += model.stream(3.0 * part.boundary * row, min(part.boundary * row, _BLOCK_BYTES))
        if model.ranks == 1:
            return Cost(product=inner)
        sent = part.halo if adjoint else part.sent
        wire = sent * row_bytes(work.codec, columns, work.bytes)
        exchange = model.exchange(wire, part.neighbours)
        together = model.overlap(inner, exchange)
        return Cost(
            product=inner,
            boundary=outer,
            packing=self._packing(row, adjoint),
            exposed=together - inner,
            exchange=exchange,
            sent=wire,
            exchanges=1.0,
        )

    def _packing(self, row: float, adjoint: bool) -> float:
        """Rows picked and put side by side, or added in; both ends of a codec."""
        part, work, model = self.part, self.work, self.machine
        moved = part.sent * row
        seconds = model.scatter(3.0 * moved) if adjoint else model.pack(2.0 * moved)
        seconds += model.fresh(1.0, moved) + model.fresh(1.0, part.halo * row)
        if encodes(work.codec):
            seconds += model.codec((part.sent + part.halo) / 2 * row)
        return seconds

    def _starts(self) -> Cost:
        """First points that are not simply kept: a hop of p columns each."""
        work, state = self.work, self._state
        starts = (work.cold_start + (not work.warm_adjoint)) if work.learned else 0
        passes = self.machine.stream(6.0 * state, state) + self.machine.fresh(3.0, state)
        return (self._estimate() + Cost(elementwise=passes)).times(starts)

    def _encoder(self) -> Cost:
        """b(X) of one solve; A_hat X is kept where it is not too wide."""
        part, work, model, state = self.part, self.work, self.machine, self._state
        terms = 1 + part.channels * work.propagated
        dense = model.plain_dense(2.0 * part.owned * work.features * work.width * terms)
        if work.keeps_terms(part.channels) or not work.propagated:
            return Cost(dense=dense, elementwise=model.fresh(1.0, state))
        passes = model.stream((5.0 * terms - 3.0) * state, state)
        cost = Cost(dense=dense, elementwise=passes + model.fresh(2.0 * terms + 1.0, state))
        return cost + self._propagation(work.width, False)

    def _encoder_backward(self) -> Cost:
        """Gradients of Omega: X' and (A_hat X)' times v, or X' times v and A_hat' v."""
        part, work, model, state = self.part, self.work, self.machine, self._state
        terms = 1 + part.channels * work.propagated
        dense = model.plain_dense(2.0 * part.owned * work.features * work.width * terms)
        if work.keeps_terms(part.channels) or not work.propagated:
            return Cost(dense=dense, elementwise=model.stream(state, state))
        passes = model.stream(4.0 * terms * state, state) + model.fresh(2.0 * terms, state)
        return Cost(dense=dense, elementwise=passes) + self._propagation(work.width, True)

    def _readouts(self) -> Cost:
        """Dropout, logits and loss of labelled nodes there and back; the gradient of W."""
        part, work, model, state = self.part, self.work, self.machine, self._state
        rows = part.owned * work.train_share
        chosen, logits = rows * work.width * work.bytes, rows * work.classes * work.bytes
        head = 2.0 * rows * work.width * work.classes
        weights = 2.0 * part.channels * part.owned * work.width**2
        # mask of the image, gradient of all rows set to zero; with dropout two products each way
        passes = model.stream(2.25 * state, state) + model.fresh(1.25, state)
        passes += model.stream((4.0 + 8.5 * work.dropout) * chosen, chosen)
        passes += model.stream(14.0 * logits, logits)
        return Cost(
            dense=model.plain_dense(5.0 * head + weights),
            elementwise=passes + model.pack(4.0 * chosen) + model.scatter(3.0 * chosen),
            masks=model.masks(rows * work.width * work.dropout),
        )
