"""Settings of a run: the sections, and how command line and YAML files become them."""

from distributed_ignn.config.command import CommandParser
from distributed_ignn.config.dataset import (
    ChainsConfig,
    DataConfig,
    HeterophilousConfig,
    PartitionConfig,
    SyntheticConfig,
    dataset_names,
)
from distributed_ignn.config.explicit import ExplicitConfig
from distributed_ignn.config.keywords import run_from_settings
from distributed_ignn.config.left_open import decided, what_was_decided
from distributed_ignn.config.model import ModelConfig
from distributed_ignn.config.parse import (
    dump_yaml,
    load_yaml,
    parse_args,
    parse_options,
    parse_options_and_settings,
    parse_run,
    resolve_run,
    said_of_features,
)
from distributed_ignn.config.paths import absolute_paths
from distributed_ignn.config.sections import RunConfig
from distributed_ignn.config.shipped import CONFIG_FOLDER
from distributed_ignn.config.solvers import (
    AdjointConfig,
    NeuralSolverConfig,
    ScheduleConfig,
    SolveConfig,
)
from distributed_ignn.config.training import CommConfig, TrainConfig

__all__ = [
    "CONFIG_FOLDER",
    "AdjointConfig",
    "ChainsConfig",
    "CommConfig",
    "CommandParser",
    "DataConfig",
    "ExplicitConfig",
    "HeterophilousConfig",
    "ModelConfig",
    "NeuralSolverConfig",
    "PartitionConfig",
    "RunConfig",
    "ScheduleConfig",
    "SolveConfig",
    "SyntheticConfig",
    "TrainConfig",
    "absolute_paths",
    "dataset_names",
    "decided",
    "dump_yaml",
    "load_yaml",
    "parse_args",
    "parse_options",
    "parse_options_and_settings",
    "parse_run",
    "resolve_run",
    "run_from_settings",
    "said_of_features",
    "what_was_decided",
]
