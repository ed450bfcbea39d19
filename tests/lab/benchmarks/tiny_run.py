"""A tiny run on the generated chains, for benchmarks that need a trained one."""

from __future__ import annotations

from pathlib import Path

from distributed_ignn.config import RunConfig


def tiny_run(output: Path, method: str = "neural") -> RunConfig:
    """Two epochs, with a solver phase before the second one."""
    return RunConfig.model_validate(
        {
            "dataset": "chains",
            "output": output,
            "device": "cpu",
            "data": {"chains": {"length": 5, "chains_per_class": 4, "features": 6}},
            "model": {"hidden": 4},
            "forward": {"method": method},
            "solver": {"compress": 2, "hidden": 4, "steps": 4},
            "schedule": {"warmup_epochs": 1, "warmup_solver_steps": 2, "model_steps": 1},
            "train": {"epochs": 2},
        }
    )
