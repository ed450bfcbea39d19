"""What is trained: the sizes of one part of the graph, and the settings of an epoch.

Letters: n nodes, P parts, O owned rows, I interior rows, B = O - I boundary rows, H halo rows,
S rows sent, E_o entries between owned rows (self-loops included), E_b entries from boundary rows to
halo rows, D columns, F features, C classes, M memory, p columns of a hop.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from distributed_ignn.comm.codecs import quantiser
from distributed_ignn.models.encoder import KEPT_WIDTHS
from distributed_ignn.solvers.base import AnySizedSolver
from distributed_ignn.solvers.methods import METHODS, SolverSettings


@dataclass(frozen=True, slots=True)
class Part:
    """The rank that the others wait for; counts may be estimates and are then not whole.

    Args:
        nodes: n.
        parts: P.
        owned: O.
        interior: I.
        halo: H.
        sent: S.
        owned_entries: E_o, all channels.
        boundary_entries: E_b, all channels.
        neighbours: parts that it exchanges rows with.
        channels: propagation graphs.
        weighted: whether edges have weights.
        symmetric: whether every channel is; else its transpose has entries of its own.
        graph_channels: channels that are the dataset's own graph.
    """

    nodes: int
    parts: int
    owned: float
    interior: float
    halo: float
    sent: float
    owned_entries: float
    boundary_entries: float
    neighbours: int
    channels: int = 1
    weighted: bool = False
    symmetric: bool = True
    graph_channels: int = 1

    @property
    def boundary(self) -> float:
        """B."""
        return self.owned - self.interior

    def like(self, other: Part) -> Part:
        """This part of one channel, with the channels of ``other``, a part of the same graph."""
        return replace(
            self,
            # every channel has self-loops
            owned_entries=self.owned_entries + (other.channels - 1) * self.owned,
            channels=other.channels,
            weighted=other.weighted,
            symmetric=other.symmetric,
            graph_channels=other.graph_channels,
        )


@dataclass(frozen=True, slots=True)
class Workload:
    """An epoch of training.

    Args:
        width: D.
        features: F.
        classes: C.
        forward, adjoint, validation: evaluations of the map in each of an epoch's solves.
        memory: M.
        method: of the equilibrium; a learned one adds a hop to every evaluation of a solve but the
            last.
        compress: p.
        cold_start: whether a learned initialiser starts the forward solve, not the last state.
        warm_adjoint: whether the backward solve starts from the last one's solution.
        codec: of the halo rows.
        stale: whether rows of the last evaluation are used, so that an exchange may take as long
            as a whole evaluation.
        propagated: whether b(X) has a term A_hat X.
        dropout: whether a mask is drawn for the state.
        locality: 1 where the sparse product reads as in an ordered graph of communities, 0 where
            its columns are anywhere.
        train_share: share of nodes with a training label.
        bytes: of a number of the state.
        history: number format of the differences between Anderson's iterates.
        offload: whether what is not in use waits in host memory.
    """

    width: int = 128
    features: int = 128
    classes: int = 47
    forward: int = 4
    adjoint: int = 4
    validation: int = 4
    memory: int = 5
    method: str = "neural"
    compress: int = 16
    cold_start: bool = False
    warm_adjoint: bool = False
    codec: str = "fp32"
    stale: bool = False
    propagated: bool = True
    dropout: bool = True
    locality: float = 0.0
    train_share: float = 0.08
    bytes: int = 4
    history: Literal["float32", "bfloat16"] = "float32"
    offload: bool = False

    @property
    def evaluations(self) -> int:
        """Of all solves of an epoch."""
        return self.forward + self.adjoint + self.validation

    @property
    def learned(self) -> bool:
        """Whether the method is trained."""
        return METHODS[self.method].learned

    @property
    def adjoint_method(self) -> str:
        """Of the backward solves: that of the equilibrium if it is learned, else ``anderson``."""
        return self.method if self.learned else "anderson"

    def solver(self, adjoint: bool = False) -> AnySizedSolver:
        """The method of either solve."""
        storage = torch.bfloat16 if self.history == "bfloat16" else None
        settings = SolverSettings(memory=self.memory, storage=storage)
        return METHODS[self.adjoint_method if adjoint else self.method].solver(settings)

    def keeps_terms(self, channels: int) -> bool:
        """Whether A_hat X is computed once and kept, so that b(X) needs no exchange."""
        return self.propagated and self.features * channels <= KEPT_WIDTHS * self.width


def row_bytes(codec: str, width: int, entry: int = 4) -> int:
    """Bytes of one halo row on the wire: ``width`` entries, and what the codec adds to them.

    Args:
        codec: of the row.
        width: entries.
        entry: bytes of one as it is.
    """
    coder = quantiser(codec)
    return width * entry if coder is None else coder.row_bytes(width)
