"""What a run will hold in memory, computed before it starts.

The largest moment of an epoch is the end of a solve, when its history is fullest: the sum of what
is always there and of that moment. ``budget`` returns it as named items in bytes, for the largest
rank; ``check_budget`` prints it and refuses a run that does not fit.

One state is O x D numbers. Near its end a solve holds the newest point and image, those of the step
before (which is the best so far while residuals fall), the newest residual, the product B_c Z of
every channel (forward), and for each older iterate two differences in the format of
``history_dtype``. Where residuals have risen, the best point lies further back and is held besides;
the bound counts with that.

An explicit model (``model.kind``) has no solve: it keeps its layers' states for the backward pass.

Letters: O owned nodes, H halo nodes, S rows sent, D hidden width, F features, C channels.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from distributed_ignn.config import RunConfig, decided
from distributed_ignn.config.deepspeed_settings import offloads, read_settings
from distributed_ignn.graph.part_sizes import PartSizes
from distributed_ignn.graph.shard import choose_normalisation
from distributed_ignn.models import encoder
from distributed_ignn.models.cells import CELLS
from distributed_ignn.models.implicit import ImplicitLayer
from distributed_ignn.models.kinds import KINDS
from distributed_ignn.models.maps import EquilibriumCell
from distributed_ignn.propagation.halo import HaloExchange
from distributed_ignn.propagation.kernels import choose_kernel
from distributed_ignn.propagation.propagate import Propagation
from distributed_ignn.solvers.base import SolveSizes
from distributed_ignn.solvers.captured import Captures
from distributed_ignn.solvers.solve import held_bytes as solve_bytes
from distributed_ignn.training.averaging import WeightAverage
from distributed_ignn.training.learned.solver_kinds import SOLVER_KINDS
from distributed_ignn.training.losses.local_loss import LocalLoss
from distributed_ignn.training.plans import chosen_method

PROCESS_BYTES = 300 * 2**20
"""Python with torch and this package, where it has not been measured."""

TYPICAL_EVALUATIONS = 5
"""Of the map in a longest solve, as far as it can be known before the run: 4 to 7 were measured on
graphs like ogbn-products. Each one more or less is two arrays of the history."""

_WORKSPACE_BYTES = 60 * 2**20  # of libraries once they are used: mappings, threads, buffers

# what importing them takes, torch's compiler with each
_DEEPSPEED_BYTES = 275 * 2**20
_PYG_BYTES = 190 * 2**20

# on a GPU, assumed and not measured: workspaces of cuBLAS for the thread that trains and autograd's
# (32 MiB each on sm_90), and what NCCL keeps for its channels once ranks have exchanged rows
_GPU_WORKSPACE_BYTES = 2 * 32 * 2**20
_NCCL_BYTES = 512 * 2**20


_OF_PROCESS = ("process", "DeepSpeed", "PyTorch Geometric", "shard file", "libraries")

KEPT = "freed, kept for the next array"

KEPT_SHARE = 1.5
"""Of what a run holds in arrays; .25 to 1.2 were measured, see docs/memory.md."""


def kept_bytes(items: dict[str, int]) -> int:
    """What a process holds besides, at most, where freed memory is kept.

    Args:
        items: what ``budget`` has found.
    """
    arrays = sum(value for name, value in items.items() if name not in _OF_PROCESS)
    return int(KEPT_SHARE * arrays)


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
        config: the run; ``device: auto`` counts as a CPU.
        process: what the process holds before it has read its part, on a GPU there.
        evaluations: of the map in the longest forward solve ("forward") and backward solve
            ("adjoint"); where they are not given, the history is taken to be full, and the best
            point not to be the last one.
        coded_halo: whether the halo exchange keeps what it sent and received last.
        shares_memory: whether ranks exchange rows through memory that both of them map.
    """
    config = decided(config, sizes.train_nodes, sizes.classes, sizes.features)
    run = _Run(sizes, config)
    always = run.of_process(process)
    if config.model.kind in KINDS:
        items = always | run.of_explicit(shares_memory)
        return {name: value for name, value in items.items() if value}
    known = evaluations or {}
    moments = run.moments(known.get("forward"), known.get("adjoint"))
    largest = max(moments, key=lambda name: sum(moments[name].values()))
    where = run.dtype, run.device
    normalised = choose_normalisation(config.model.normalisation, sizes.graph_channels)
    items = {
        **always,
        "graph": Propagation.held_bytes(sizes, config.train.kernel, *where, normalised),
        **run.moments_of_embedding(encoder.held_bytes(sizes, config.model, *where)),
        **HaloExchange.held_bytes(
            sizes, run.row, coded=coded_halo, shared=shares_memory, stale=config.comm.stale
        ),
        "frozen rows of local steps": run.local[0],
        "zeros that products are added to": run.addend,
        "recorded solves": run.recorded(),
        **moments[largest],
    }
    return {name: value for name, value in items.items() if value}


class _Run:
    """The items of one rank that are there for a while only."""

    def __init__(self, sizes: PartSizes, config: RunConfig) -> None:
        self._sizes, self._config = sizes, config
        self.dtype = torch.float64 if config.train.dtype == "float64" else torch.float32
        self.device = torch.device("cuda" if config.device == "cuda" else "cpu")
        self.row = config.model.hidden * self.dtype.itemsize
        self._state = sizes.owned * self.row
        self._offload = config.train.offload and self.device.type == "cuda"
        kind = SOLVER_KINDS[config.solver.kind]
        self._estimate = kind.solve_bytes(config, sizes, self.dtype.itemsize)
        rollout = kind.training_bytes(config, sizes, self.dtype.itemsize)
        self._rollout = rollout if config.learns_forward else 0
        self.local = LocalLoss.held_bytes(sizes, config, self.dtype.itemsize)

    def of_process(self, process: int) -> dict[str, int]:
        """The items that are there before anything is computed; files are not mapped on a GPU."""
        if self.device.type == "cpu":
            kind = KINDS.get(self._config.model.kind)
            return {
                "process": process + _WORKSPACE_BYTES,
                "DeepSpeed": _DEEPSPEED_BYTES if self._config.engine == "deepspeed" else 0,
                "PyTorch Geometric": _PYG_BYTES if kind is not None and kind.reads_edges else 0,
                "shard file": self._sizes.file,
            }
        sizes = self._sizes
        alone = sizes.sent == sizes.halo == 0 and sizes.owned >= sizes.nodes
        network = 0 if alone else _NCCL_BYTES
        return {"process": process, "libraries": _GPU_WORKSPACE_BYTES + network}

    @property
    def addend(self) -> int:
        """torch's CSR product on a GPU fills an array with zeros and adds to that."""
        kernel = choose_kernel(self._config.train.kernel, self.dtype, self.device)
        return self._state if (kernel, self.device.type) == ("csr", "cuda") else 0

    def moments_of_embedding(self, held: dict[str, int]) -> dict[str, int]:
        """The encoder's items; Adam's two moments wait in host memory while anything is solved."""
        name, config = "embedding and its optimiser", self._config
        waits = self._offload
        if config.engine == "deepspeed":
            waits = offloads(read_settings(config.deepspeed_config))
        away = 2 * self._state if waits else 0
        held = self._averaged(held)
        return held | {name: max(held[name] - away, 0)}

    def _averaged(self, held: dict[str, int]) -> dict[str, int]:
        """The items of a model, whose embedding, if it has one, ``train.ema`` averages."""
        name = "embedding and its optimiser"
        rows = self._state if held[name] else 0
        return held | {name: held[name] + WeightAverage.held_bytes(rows, self._config.train.ema)}

    def of_explicit(self, shares_memory: bool) -> dict[str, int]:
        """The items of an explicit model, with every dropout mask's states."""
        config, sizes = self._config, self._sizes
        kind, sections = KINDS[config.model.kind], (config.model, config.explicit)
        held = self._averaged(kind.held_bytes(sizes, *sections, self.dtype, self.device))
        for name in ("states of layers", "kept of messages"):
            held[name] *= self._masks
        row = kind.columns(*sections, sizes.classes).sent * self.dtype.itemsize
        halo = HaloExchange.held_bytes(sizes, row, coded=False, shared=shares_memory)
        return held | (halo if kind.reads_edges else {})

    def moments(self, forward: int | None, adjoint: int | None) -> dict[str, dict[str, int]]:
        """The candidates for the largest moment of an epoch."""
        config, state = self._config, self._state
        own_train = not config.model.fixed_injection or config.train.ema > 0.0
        stays = int(not self._offload)  # what is not used waits in host memory otherwise
        warm = stays * int(own_train and config.forward.warm_start)  # the other forward state
        # which training goes on from after a confirmation
        kept = stays * int(config.forward.warm_start)
        # one that is learned starts from its own estimate, once the warm-up is over
        learned = config.learns_adjoint and config.schedule.warmup_epochs == 0
        backward = stays * int(config.adjoint.warm_start and not learned)
        products = EquilibriumCell.held_bytes(state, self._sizes.channels)
        return {
            "forward": {
                "injection": state * (1 + int(encoder.keeps_rows(config.model))),
                "warm starts": state * (warm + backward),
                # the last mask's solve: those before it wait for the backward pass
                "equilibrium and products": self._saved(self._masks - 1),
                **self._solve(forward, products, adjoint=False),
                "estimator": self._estimate if config.learns_forward else 0,
            },
            "backward": {
                "equilibrium and products": self._saved(self._masks),
                "gradient": state + self._sizes.train * 3 * self.row,
                "warm starts": state * warm,
                **self._solve(adjoint, 0, adjoint=True),
                "estimator": self._estimate if config.learns_adjoint else 0,
            },
            "confirmation": {
                "injection": state * (1 + int(encoder.keeps_rows(config.model))),
                "warm starts": state * (warm + kept + backward),
                **self._solve(forward or config.forward.max_steps, 0, adjoint=False),
                "estimator": self._estimate if config.learns_forward else 0,
            },
            "local steps": {"warm starts": 2 * state * stays, "local step": self.local[1]},
            "training the solver": {
                "injection": state,
                "warm starts": state * (warm + backward),
                # the target and the start are held besides
                "solver's rollout": self._rollout + 2 * state if self._rollout else 0,
            },
        }

    def recorded(self) -> int:
        """Arrays of solves that are recorded, which stay between solves."""
        total, config = 0, self._config
        # training keeps products and validation does not, so each has a recording of its own
        ways = ((False, config.forward, (self._sizes.channels, 0)), (True, config.adjoint, (0,)))
        for adjoint, section, kept in ways:
            if section.capture:
                method, settings = chosen_method(config, adjoint=adjoint)
                sizes = SolveSizes(self._state, self.dtype.itemsize, section.max_steps)
                history = method.solver(settings).held_bytes(sizes)["history"]
                total += sum(Captures.held_bytes(sizes, channels) + history for channels in kept)
        return total

    @property
    def _masks(self) -> int:
        """Dropout masks of a step, each with a forward solve of its own."""
        train = self._config.train
        return train.consistency_samples if float(train.consistency) > 0.0 else 1

    def _saved(self, masks: int) -> int:
        """Kept of so many dropout masks for the backward pass."""
        model = self._config.model
        item, channels = self.dtype.itemsize, self._sizes.channels
        each = ImplicitLayer.saved_bytes(self._state, item, channels, CELLS[model.cell].activation)
        return masks * (each + self._state * int(encoder.keeps_rows(model)))

    def _solve(self, known: int | None, products: int, *, adjoint: bool) -> dict[str, int]:
        """A solve after its last evaluation; ``products`` are what the map keeps."""
        section = self._config.adjoint if adjoint else self._config.forward
        steps = known or section.max_steps
        older = self._state if known is None and steps > 2 else 0
        method, settings = chosen_method(self._config, adjoint=adjoint)
        if method.learned:
            settings = replace(settings, memory=self._config.solver.memory)
        sizes = SolveSizes(self._state, self.dtype.itemsize, steps)
        held = method.solver(settings).held_bytes(sizes)
        if section.capture:
            held = dict.fromkeys(held, 0)  # see ``recorded``
        return held | {"solve": held["solve"] + solve_bytes(sizes) + products + older}
