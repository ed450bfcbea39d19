"""What a run will hold in memory, computed before it starts.

The largest moment of an epoch is the end of a solve, when its history is fullest: the sum of what
is always there and of that moment. ``budget`` returns it as named items in bytes, for the largest
rank; ``check_budget`` prints it and refuses a run that does not fit.

One state is O x D numbers. Near its end a solve holds the newest point and image, those of the step
before (one pair may be the best so far), the newest residual, the product B_c Z of every channel
(forward), and for each older iterate two differences in the format of ``history_dtype``.

Letters: O owned nodes, H halo nodes, S rows sent, D hidden width, F features, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from distributed_ignn.config import AdjointConfig, RunConfig, SolveConfig
from distributed_ignn.graph.data import CSRMatrix
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.models.encoder import keeps_constant_terms
from distributed_ignn.propagation.kernels import choose_kernel

PROCESS_BYTES = 300 * 2**20
"""Python with torch and this package, where it has not been measured."""

TYPICAL_EVALUATIONS = 5
"""Of the map in a longest solve, as far as it can be known before the run: 4 to 7 were measured on
graphs like ogbn-products. Each one more or less is two arrays of the history."""

_WORKSPACE_BYTES = 110 * 2**20  # of libraries once they are used: mappings, threads, buffers
_INDEX = 4  # bytes of a column number and of a row's start in a run
_ROOMS = 2  # of shared memory in each direction: what is sent and what is read


@dataclass(frozen=True, slots=True)
class PartSizes:
    """What of one part of a graph decides about memory; ``from_shard`` counts it.

    Args:
        owned, halo, sent, boundary: O, H, S, and owned rows that read the halo.
        owned_entries, boundary_entries: entries between owned nodes and from them to the halo, of
            all channels together, self-loops included.
        channels: C.
        symmetric: whether every channel is: then one matrix serves both directions.
        weighted: whether edges have weights: then every kernel stores values.
        features: F.
        feature_entries: stored entries of sparse features; None where they are dense.
        train: owned training nodes.
        file: bytes of the shard, which stay mapped while the run lasts.
    """

    owned: int
    halo: int
    sent: int
    boundary: int
    owned_entries: int
    boundary_entries: int
    channels: int = 1
    symmetric: bool = True
    weighted: bool = False
    features: int = 0
    feature_entries: int | None = None
    train: int = 0
    file: int = 0

    @classmethod
    def from_shard(cls, shard: GraphShard) -> PartSizes:
        """Sizes of a part that is at hand."""
        channels = shard.channels
        features = shard.features
        return cls(
            owned=shard.num_owned,
            halo=shard.num_halo,
            sent=shard.send_index.numel(),
            boundary=shard.num_owned - shard.num_interior,
            owned_entries=sum(channel.owned.num_entries for channel in channels),
            boundary_entries=sum(channel.boundary.num_entries for channel in channels),
            channels=len(channels),
            symmetric=all(channel.symmetric for channel in channels),
            weighted=any(channel.weighted for channel in channels),
            features=shard.num_features,
            feature_entries=features.num_entries if isinstance(features, CSRMatrix) else None,
            train=shard.train_index.numel(),
            file=_file_bytes(shard),
        )


def _file_bytes(shard: GraphShard) -> int:
    """Of the arrays that make up a shard."""
    found = [shard.owned_nodes, shard.halo_nodes, shard.send_index, shard.labels]
    features = shard.features
    matrices = [features] if isinstance(features, CSRMatrix) else []
    if isinstance(features, torch.Tensor):
        found.append(features)
    for channel in shard.channels:
        matrices += [channel.owned, channel.boundary]
        found += [channel.degree_owned, channel.degree_halo]
    for matrix in matrices:
        found += [matrix.rowptr, matrix.col]
        found += [] if matrix.value is None else [matrix.value]
    return sum(array.numel() * array.element_size() for array in found)


def budget(
    sizes: PartSizes,
    config: RunConfig,
    *,
    process: int = PROCESS_BYTES,
    evaluations: dict[str, int] | None = None,
    coded_halo: bool = False,
    shares_memory: bool = False,
) -> dict[str, int]:
    """Bytes of one rank by name at the largest moment of a run; their sum is the whole.

    Args:
        sizes: of the rank's part.
        config: the run.
        process: what the process holds before it has read its part.
        evaluations: of the map in the longest forward solve ("forward") and backward solve
            ("adjoint"); where they are not given, the history is taken to be full.
        coded_halo: whether the halo exchange keeps what it sent and received last.
        shares_memory: whether ranks exchange rows through memory that both of them map.
    """
    run = _Run(sizes, config)
    known = evaluations or {}
    moments = run.moments(known.get("forward"), known.get("adjoint"))
    largest = max(moments, key=lambda name: sum(moments[name].values()))
    exchange = (sizes.sent + sizes.halo) * run.row
    items = {
        "process": process + _WORKSPACE_BYTES,
        "shard file": sizes.file,
        "graph": run.graph(),
        "features": run.features(),
        "propagated features": run.constant_terms(),
        "embedding and its optimiser": run.embedding(),
        "halo buffers": exchange,  # a copy to send, and what arrives
        "halo codec state": 2 * exchange if coded_halo else 0,
        "shared halo rows": _ROOMS * exchange if shares_memory and not coded_halo else 0,
        **moments[largest],
    }
    return {name: value for name, value in items.items() if value}


class _Run:
    """The items of one rank."""

    def __init__(self, sizes: PartSizes, config: RunConfig) -> None:
        self._sizes, self._config = sizes, config
        self._item = 8 if config.train.dtype == "float64" else 4
        self._dtype = torch.float64 if self._item == 8 else torch.float32
        self._device = torch.device("cuda" if config.device == "cuda" else "cpu")
        self.row = config.model.hidden * self._item
        self._state = sizes.owned * self.row

    def graph(self) -> int:
        """Both directions of the blocks, beside the ids in the shard file, which are used in place.

        The transposed boundary block and the rows that come home have ids of their own, and so has
        a transposed owned block that differs. Kernels other than embedding sums store values, and
        so does every kernel where edges have weights.
        """
        sizes = self._sizes
        turned = sizes.boundary_entries + (0 if sizes.symmetric else sizes.owned_entries)
        turned += sizes.sent
        offsets = (2 if sizes.symmetric else 3) * sizes.owned + 2 * sizes.boundary + sizes.halo
        scales = (sizes.owned + sizes.halo) * self._item
        found = turned * _INDEX + sizes.channels * (offsets * _INDEX + scales)
        kernel = choose_kernel(self._config.train.kernel, self._dtype, self._device)
        if kernel != "bag" or sizes.weighted:
            found += (sizes.owned_entries + sizes.boundary_entries + turned) * self._item
        return found

    def features(self) -> int:
        """What is made of X beside the shard's own array."""
        sizes, entries = self._sizes, self._sizes.feature_entries
        if entries is None:
            dense = sizes.owned * sizes.features * self._item
            return dense if self._item == 8 or self._config.device == "cuda" else 0
        # both directions, the order of the transposed entries, their rows, nodes and columns
        return entries * (2 * (_INDEX + self._item) + 4 * 8)

    def _keeps_terms(self) -> bool:
        dense = self._sizes.features > 0 and self._sizes.feature_entries is None
        return dense and keeps_constant_terms(
            self._config.model, self._sizes.features, self._injected()
        )

    def _injected(self) -> int:
        """Channels that b(X) reads."""
        model, channels = self._config.model, self._sizes.channels
        if model.injection == "features":
            return 0
        return {"all": channels, "graph": 1, "knn": channels - 1}[model.injection_channels]

    def constant_terms(self) -> int:
        """A_hat_c X where it is computed once."""
        width = self._injected() * self._sizes.features * self._item
        return self._sizes.owned * width if self._keeps_terms() else 0

    def embedding(self) -> int:
        """Rows of a learned embedding: values, gradient, Adam's moments, the best so far."""
        return 0 if self._sizes.features else 5 * self._state

    def moments(self, forward: int | None, adjoint: int | None) -> dict[str, dict[str, int]]:
        """The candidates for the largest moment of an epoch."""
        config, state = self._config, self._state
        learns = config.forward.method == "neural"
        own_train = not config.model.fixed_injection or config.train.ema > 0.0
        warm = int(own_train and config.forward.warm_start)  # the other forward state
        # one that is learned starts from its own estimate, once the warm-up is over
        learned = config.learns_adjoint and config.schedule.warmup_epochs == 0
        backward = int(config.adjoint.warm_start and not learned)
        training = self._solve(config.forward, forward, self._sizes.channels)
        return {
            "forward": {
                "injection": state * (1 + int(self._varies())),
                "warm starts": state * (warm + backward),
                **training,
                "estimator": self._columns() if learns else 0,
            },
            "backward": {
                "equilibrium and products": self._saved(),
                "gradient": state + self._sizes.train * 3 * self.row,
                "warm starts": state * warm,
                **self._solve(config.adjoint, adjoint, 0),
                "estimator": self._columns() if config.learns_adjoint else 0,
            },
        }

    def _varies(self) -> bool:
        """Whether the backward pass of b(X) needs an array of the size of b."""
        model = self._config.model
        return model.injection_norm == "layer" or model.injection_layers == 2

    def _saved(self) -> int:
        """Kept for the backward pass: Z*, B_c Z* and the mask, of every dropout mask."""
        state, train = self._state, self._config.train
        linear = self._config.model.cell == "eignn"
        each = (1 + self._sizes.channels) * state + (0 if linear else state // self._item)
        each += state * int(self._varies())
        return each * (train.consistency_samples if train.consistency > 0.0 else 1)

    def _solve(
        self, config: SolveConfig | AdjointConfig, evaluations: int | None, products: int
    ) -> dict[str, int]:
        """A solve after its last evaluation."""
        picard = config.method == "picard"
        memory = self._config.solver.memory if self._is_learned(config) else config.memory
        steps = config.max_steps if evaluations is None else evaluations
        held = 0 if picard else min(max(steps - 1, 0), memory)
        rounded = config.history_dtype
        item = {"auto": self._item, "float32": 4, "bfloat16": 2}[rounded]
        points = (3 if picard else 5) if steps > 1 else 3
        return {
            "solve": self._state * (points + products),
            "history": 2 * held * self._state // self._item * item,
        }

    def _is_learned(self, config: SolveConfig | AdjointConfig) -> bool:
        if isinstance(config, SolveConfig):
            return config.method == "neural"
        return self._config.learns_adjoint

    def _columns(self) -> int:
        """Compressed columns of an estimate, and the transport of one hop."""
        solver = self._config.solver
        starts = 2 if self._config.partition.clusters > 0 else 1
        hops = solver.estimator_hops if solver.estimator == "graph" else 0
        blocks = starts * (1 + hops * self._sizes.channels)
        return self._sizes.owned * solver.compress * self._item * blocks
