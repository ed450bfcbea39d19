"""Write node id, prediction and probabilities of a finished run; alone, or on several ranks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from distributed_ignn.cli import run_main
from distributed_ignn.config import parse_options
from distributed_ignn.config.options import (
    Bare,
    Count,
    Options,
    OutputFileOrUrl,
    Shown,
    check_outputs,
)
from distributed_ignn.config.section import ByUrl
from distributed_ignn.launchers.entry import predict_run
from distributed_ignn.runs.predict import PredictOptions
from distributed_ignn.runs.prediction_file import checked_ending

_EXAMPLE = "ignn predict runs/acm --out acm.parquet"
_EXAMPLES = f"""\
examples:
  {_EXAMPLE}
  ignn predict runs/acm --out acm.csv --embeddings acm-z.npz
  ignn predict runs/mine --data edges.csv --nodes nodes.csv --out new.csv
  ignn predict s3://BUCKET/runs/acm --out s3://BUCKET/acm.parquet
  torchrun --standalone --nproc-per-node 2 -m distributed_ignn predict runs/acm --out acm.parquet
  ignn predict runs/acm --workers 2 --out acm.parquet
  ray job submit -- ignn predict /shared/acm --gpus 8 --out /shared/acm.parquet

In a checkout, launch/predict.py is the same command.
"""


def _between_0_and_1(value: float) -> float:
    if not 0 < value < 1:
        raise ValueError("must lie between 0 and 1, as in 1e-6")
    return value


class _Options(Options):
    run: Annotated[Path, Bare("RUN", _EXAMPLE, flag=True), ByUrl()] = Field(
        description="output folder of a training run, or its URL"
    )
    out: OutputFileOrUrl = Field(description="file to write, a .parquet, .csv or .npz, or its URL")
    embeddings: OutputFileOrUrl | None = Field(
        None,
        description="file for the state of each node that its prediction is read from (Z*, or the "
        "last hidden layer), of the same kinds, or its URL",
    )
    data: Annotated[Path, Shown("FILE")] | None = Field(
        None,
        description="another graph with the same features, in any form that train reads; the "
        "run's own if not given",
    )
    nodes: Annotated[Path, Shown("FILE")] | None = Field(
        None, description="table of the nodes of --data, where that holds edges alone"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: cuda where there is one"
    )
    workers: Count | None = Field(
        None, description="processes to start with Ray when not under torchrun"
    )
    gpus: Count | None = Field(None, description="the same, one process for each of so many GPUs")
    tolerance: Annotated[float, AfterValidator(_between_0_and_1)] | None = Field(
        None, description="relative residual; the run's if not given"
    )
    steps: Count | None = Field(None, description="exactly so many map evaluations instead")
    require_converged: bool = Field(
        False,
        description="write nothing unless the tolerance is reached, and exit with code 2",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.tolerance is not None and self.steps is not None:
            raise ValueError("--tolerance and --steps both say when to stop; give one of them")
        if self.gpus is not None and self.workers is not None:
            raise ValueError(
                f"--gpus {self.gpus} and --workers {self.workers} both set the number of "
                "processes; give one of them"
            )
        if self.gpus is not None and self.device == "cpu":
            raise ValueError(
                f"--gpus {self.gpus} and --device cpu contradict each other; use --workers N for "
                "processes on CPUs"
            )
        if self.nodes is not None and self.data is None:
            raise ValueError("--nodes has no effect without --data; name the file of the edges")
        if self.embeddings is not None and self.embeddings.absolute() == self.out.absolute():
            raise ValueError("--embeddings and --out name one file; give each its own")
        return self


def main(argv: Sequence[str]) -> int:
    """Exit code of the command, see ``run_main``."""
    return run_main(lambda: _run(argv))


def _run(argv: Sequence[str]) -> None:
    found = parse_options(_Options, argv, name="ignn predict", about=__doc__, more=_EXAMPLES)
    check_outputs(found)
    for path in (found.out, found.embeddings):
        if path is not None:
            checked_ending(path)
    options = PredictOptions(
        found.run,
        found.out,
        found.tolerance,
        found.steps,
        found.require_converged,
        found.data,
        found.nodes,
        found.embeddings,
    )
    predict_run(options, found.device, workers=found.workers, gpus=found.gpus)
