"""Every setting of a run, one frozen model per YAML section.

Each field states its type, default, limits and meaning once; the command line, its help and the
YAML files are derived from here (``parse.py``). Rules between sections live in
``RunConfig._check_sections`` alone. A component takes its own section, never the whole tree.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import CliToggleFlag

from distributed_ignn.config import choices
from distributed_ignn.config.choices import Choice
from distributed_ignn.config.dataset import (
    IN_MEMORY,
    OWN_FILE,
    DataConfig,
    DatasetName,
    PartitionConfig,
    dataset_names,
)
from distributed_ignn.config.explicit import TWO_GRAPHS, ExplicitConfig, unread
from distributed_ignn.config.model import ModelConfig
from distributed_ignn.config.section import LARGEST_SEED, ByUrl, NoEffect, Section
from distributed_ignn.config.solvers import (
    AdjointConfig,
    NeuralSolverConfig,
    ScheduleConfig,
    SolveConfig,
    SolveLimits,
)
from distributed_ignn.config.training import CommConfig, TrainConfig

_METHODS, _CELLS = Choice(choices.METHODS), Choice(choices.CELLS)
_READ_BY, _KINDS = Choice(choices.DATA_READ_BY), Choice(choices.SOLVER_KINDS)

_Rule = tuple[bool, str | NoEffect]
"""Whether settings contradict each other, and what to say if they do."""


def _learns(method: str) -> bool:
    """Whether a method is trained; not ``auto``, which is none."""
    entry = _METHODS.entry(method)
    return entry is not None and bool(entry.learned)


def _output_folder(fields: dict[str, Any]) -> Path:
    name = Path(str(fields.get("dataset"))).stem
    return Path("runs") / f"{name}-seed{fields.get('seed')}"


class RunConfig(Section):
    """A complete run."""

    dataset: DatasetName = Field(
        description="or your own graph: the path of a file (docs/own-graph.md)"
    )
    data_root: Path = Field(Path("data"), description="folder where datasets are or will be put")
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="seed of weights and dropout")
    output: Annotated[Path, ByUrl()] = Field(
        default_factory=_output_folder,
        description="folder for results, or a URL (s3://, gs://, file:///); if not given, "
        "runs/DATASET-seedN",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: cuda where there is one"
    )
    workers: int | None = Field(
        None, ge=1, description="processes to start with Ray Train when not under torchrun"
    )
    gpus: int | None = Field(
        None, ge=1, description="the same, one process for each of so many GPUs"
    )
    restarts: int = Field(
        10,
        ge=0,
        description="how often Ray starts the workers again after losing one; with torchrun, its "
        "--max-restarts decides",
    )
    restart_wait_seconds: float = Field(
        1800.0,
        gt=0,
        description="how long Ray may then wait for free machines before the run ends with code 75",
    )
    engine: Literal["torch", "deepspeed"] = Field(
        "torch", description="what holds and steps the optimiser"
    )
    deepspeed_config: Path | None = Field(
        None, description="DeepSpeed JSON; if not given, configs/deepspeed/zero1.json"
    )
    resume: Annotated[Literal["auto"] | Path | None, ByUrl()] = Field(
        None,
        description="auto: newest checkpoint in the output folder, if any; or a checkpoint, or its "
        "URL",
    )
    quiet: CliToggleFlag[bool] = Field(
        False, description="show warnings, errors and the table at the end alone"
    )
    data: DataConfig = Field(default_factory=DataConfig)
    partition: PartitionConfig = Field(default_factory=PartitionConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    explicit: ExplicitConfig = Field(default_factory=ExplicitConfig)
    forward: SolveConfig = Field(default_factory=SolveConfig)
    adjoint: AdjointConfig = Field(default_factory=AdjointConfig)
    solver: NeuralSolverConfig = Field(default_factory=NeuralSolverConfig)
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    comm: CommConfig = Field(default_factory=CommConfig)

    @property
    def estimator_steps(self) -> int:
        """Steps of the estimator with coefficients of their own.

        Without a coarse level one set serves every step as well as several.
        """
        return self.solver.estimator_steps or (3 if self.partition.clusters > 0 else 1)

    @property
    def learns_forward(self) -> bool:
        """Whether a solver is trained."""
        return _learns(self.forward.method)

    @property
    def adjoint_method(self) -> str:
        """The method of the backward solve, with ``auto`` resolved."""
        if self.adjoint.method != "auto":
            return self.adjoint.method
        return self.forward.method if self.learns_adjoint else "anderson"

    @property
    def learns_adjoint(self) -> bool:
        """Whether the backward solve has an error estimator of its own."""
        able = bool(_KINDS.entry(self.solver.kind).backward)
        forward = self.learns_forward and able and self.solver.estimator != "none"
        return forward and (self.adjoint.method == "auto" or _learns(self.adjoint.method))

    @model_validator(mode="after")
    def _check_sections(self) -> Self:
        """Rules between settings; the first one broken is reported."""
        for broken, reason in self._rules():
            if broken:
                raise reason if isinstance(reason, NoEffect) else ValueError(reason)
        return self

    def _rules(self) -> list[_Rule]:
        """What must not be, and what to say if it is."""
        own_file = self.dataset == OWN_FILE
        return [
            *self._kind_rules(),
            *self._engine_rules(),
            (
                own_file and self.data.path is None,
                "dataset = file needs your graph; name it with --data.path FILE",
            ),
            (
                not own_file and self.data.path is not None,
                f"data.path = {self.data.path} is read only with dataset = file, "
                f"not {self.dataset}",
            ),
            *self._data_rules(),
            *self._symmetry_rules(),
            (
                self.model.constraint == "none" and not _CELLS.entry(self.model.cell).projects,
                NoEffect(
                    *("model.constraint", "none"),
                    f"model.cell = {self.model.cell}, which is bounded by its parametrisation; "
                    "drop it",
                ),
            ),
            (
                self.model.constraint == "none" and self.model.learn_kappa,
                "model.learn_kappa learns a bound that model.constraint = none switches off; drop "
                "one of them",
            ),
            (
                0.0 < self.train.explode_factor <= 1.0,
                f"train.explode_factor = {self.train.explode_factor:g} must be above 1, or 0 to "
                "switch the check off",
            ),
            (
                self.train.local_lr not in (0.0, "auto") and self.train.local_steps == 0,
                NoEffect(
                    *("train.local_lr", self.train.local_lr),
                    "train.local_steps = 0; add --train.local-steps auto or drop it",
                ),
            ),
            *self._rollback_rules(),
            *self._paper_rules(),
            *self._capture_rules("forward", self.forward),
            *self._capture_rules("adjoint", self.adjoint),
            *self._unread("forward", self.forward, self.forward.method),
            *self._unread("adjoint", self.adjoint, self.adjoint_method),
            *self._solver_rules(),
        ]

    def _engine_rules(self) -> list[_Rule]:
        """As ``_rules``, about processes, devices and what steps the weights."""
        return [
            (
                self.gpus is not None and self.device == "cpu",
                f"gpus = {self.gpus} and device = cpu contradict each other; use --workers N for "
                "processes on CPUs",
            ),
            (
                self.gpus is not None and self.workers is not None,
                f"gpus = {self.gpus} and workers = {self.workers} both set the number of "
                "processes; give one of them",
            ),
            (
                self.train.offload and self.device == "cpu",
                "train.offload = true moves states out of a GPU's memory and device = cpu; drop it",
            ),
            (
                self.comm.backend == "nccl" and self.device == "cpu",
                "comm.backend = nccl needs GPUs but device = cpu; use gloo or auto",
            ),
            (
                self.deepspeed_config is not None and self.engine != "deepspeed",
                NoEffect(
                    *("deepspeed_config", self.deepspeed_config),
                    f"engine = {self.engine}; add --engine deepspeed or drop it",
                ),
            ),
            (
                self.engine == "deepspeed" and self.train.dtype != "float32",
                f"train.dtype = {self.train.dtype} but engine = deepspeed keeps its weights in "
                "float32; use --engine torch or --train.dtype float32",
            ),
        ]

    def _solver_rules(self) -> list[_Rule]:
        """As ``_rules``, about the learned solver."""
        return [
            (
                _learns(self.adjoint.method) and not self.learns_adjoint,
                f"adjoint.method = {self.adjoint.method} needs forward.method = neural, "
                "solver.kind = estimator and a solver.estimator",
            ),
            (
                self.learns_forward
                and self.solver.network != "none"
                and self.solver.steps > self.forward.max_steps,
                f"solver.steps = {self.solver.steps} exceeds forward.max_steps = "
                f"{self.forward.max_steps}; the network could never finish",
            ),
            (
                self.solver.network == "table" and self.solver.alpha == "node",
                "solver.network = table has one weight per step and none per node; use "
                "solver.alpha = global",
            ),
        ]

    def _kind_rules(self) -> list[_Rule]:
        """As ``_rules``, about settings that the kind of the model does not read."""
        kind = self.model.kind
        unused = [
            (
                getattr(values, key) != type(values).model_fields[key].default,
                NoEffect(
                    *(f"{section}.{key}", getattr(values, key)), f"model.kind = {kind}; drop it"
                ),
            )
            for section, key, values in unread(kind, self)
        ]
        return [
            *unused,
            (
                kind == TWO_GRAPHS and self.data.knn == 0,
                f"model.kind = {kind} needs the neighbour graph of the features; add --data.knn 5",
            ),
        ]

    def _data_rules(self) -> list[_Rule]:
        """As ``_rules``, about settings of data that a few datasets alone read."""
        named = self.dataset in dataset_names() and self.dataset != OWN_FILE
        return [
            (
                named and self.data.split != "file",
                f"data.split = {self.data.split} is for a graph of your own, {self.dataset} comes "
                "with its split; drop it",
            ),
            (
                self.data.nodes is not None and (named or self.dataset == IN_MEMORY),
                f"data.nodes = {self.data.nodes} is for a file of your own that holds edges alone; "
                "drop it",
            ),
            *(
                (
                    named or self.dataset == IN_MEMORY,
                    f"data.{key} = {name} is for a file of your own, {self.dataset} says itself "
                    "what is what; drop it",
                )
                for key, name in self.data.names.items()
            ),
            *self._reader_rules(drawn=self.data.draws_split and not named),
        ]

    def _reader_rules(self, *, drawn: bool) -> list[_Rule]:
        """As ``_data_rules``, about those of which a list says who reads them.

        Args:
            drawn: whether the split of a graph of one's own is drawn, so that its seed is read.
        """
        return [
            (
                self.dataset not in (readers := _READ_BY.entry(key))
                and not (drawn and key == "split_seed")
                and getattr(self.data, key) != DataConfig.model_fields[key].default,
                NoEffect(
                    *(f"data.{key}", getattr(self.data, key)),
                    f"dataset = {self.dataset}; it is read by {', '.join(readers)}; drop it",
                ),
            )
            for key in _READ_BY.listed()
        ]

    def _paper_rules(self) -> list[_Rule]:
        """As ``_rules``, about what the paper's own solver cannot do."""
        paper = self.learns_forward and self.solver.kind == "paper"
        return [
            (
                paper and self.solver.initialiser == "own",
                "solver.initialiser = own is of solver.kind = estimator; the paper's is an MLP of "
                "the features, so drop it, or take none",
            ),
            (
                paper and self.solver.graph_layer and self.model.normalisation == "row",
                "model.normalisation = row makes no symmetric A_s, and solver.kind = paper needs "
                "one; use --solver.kind estimator, or drop the setting",
            ),
        ]

    def _symmetry_rules(self) -> list[_Rule]:
        """As ``_rules``, about cells whose proof needs an A_hat that is its own transpose."""
        cells, cell = _CELLS.listed(), self.model.cell
        able = [name for name in cells if _CELLS.entry(name).directed_norm is not None]
        others, needs = " or ".join(able), cell not in able
        return [
            (
                needs and self.data.directions == "both",
                f"data.directions = both gives model.cell = {cell} directed channels, and it is "
                f"proved for undirected ones; use --model.cell {others}, or drop the setting",
            ),
            (
                needs and self.model.normalisation == "row",
                f"model.normalisation = row makes no symmetric A_hat, and model.cell = {cell} "
                f"needs one; use --model.cell {others}, or drop the setting",
            ),
        ]

    @staticmethod
    def _unread(section: str, limits: SolveLimits, method: str) -> list[_Rule]:
        """As ``_rules``, about settings that the method of a solve does not read."""
        read_by_some = {key for name in _METHODS.listed() for key in _METHODS.entry(name).reads}
        unread = read_by_some - _METHODS.entry(method).reads
        return [
            (
                getattr(limits, key) != field.default,
                NoEffect(
                    *(f"{section}.{key}", getattr(limits, key)),
                    f"{section}.method = {method}; drop it",
                ),
            )
            for key, field in SolveLimits.model_fields.items()
            if key in unread
        ]

    def _capture_rules(self, section: str, limits: SolveLimits) -> list[_Rule]:
        """As ``_rules``, about what cannot be recorded; what a run finds out, ``Trainer`` says."""
        setting = f"{section}.capture = {limits.capture}"
        cell, halo = self.model.cell, self.comm.halo
        reasons = [
            (self.device == "cpu", "device = cpu, which has no launches to record"),
            (
                self.comm.backend == "gloo",
                "comm.backend = gloo, whose exchanges wait on the host",
            ),
            (self.comm.stale, "comm.stale, whose exchanges outlast an evaluation"),
            (
                halo not in ("auto", "fp32"),
                f"comm.halo = {halo}, whose rounding enters the residual",
            ),
            (
                not _CELLS.entry(cell).fixed_form,
                f"model.cell = {cell}, whose step follows the weights",
            ),
        ]
        return [
            (limits.capture > 0 and holds, f"{setting} does not go with {reason}; drop one of them")
            for holds, reason in reasons
        ]

    def _rollback_rules(self) -> list[_Rule]:
        """As ``_rules``, about what happens when numbers go bad."""
        train = self.train
        factors = {
            name: getattr(train, name) for name in ("rollback_lr_factor", "rollback_kappa_factor")
        }
        rolls_back = train.on_bad_numbers == "rollback"
        unused = [
            (
                not rolls_back and value != TrainConfig.model_fields[name].default,
                NoEffect(
                    *(f"train.{name}", f"{value:g}"),
                    f"train.on_bad_numbers = {train.on_bad_numbers}; add --train.on-bad-numbers "
                    "rollback or drop it",
                ),
            )
            for name, value in factors.items()
        ]
        return [
            *unused,
            (
                rolls_back and set(factors.values()) == {1.0},
                "train.rollback_lr_factor = 1 and train.rollback_kappa_factor = 1 would repeat the "
                "same numbers after every rollback; lower one of them",
            ),
            (
                train.rollback_kappa_factor < 1.0 and self.model.constraint == "none",
                f"train.rollback_kappa_factor = {train.rollback_kappa_factor:g} tightens a bound "
                "that model.constraint = none switches off; drop one of them",
            ),
        ]
