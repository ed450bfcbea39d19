"""Write node id, prediction and probabilities of a finished run; alone or under torchrun."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from distributed_ignn.cli import run_main
from distributed_ignn.config import parse_options
from distributed_ignn.config.options import Bare, Count, Options, OutputFileOrUrl, check_outputs
from distributed_ignn.config.section import ByUrl
from distributed_ignn.launchers.this_rank import on_this_rank
from distributed_ignn.runs.predict import PredictOptions, predict
from distributed_ignn.runs.prediction_file import checked_ending

_EXAMPLE = "ignn predict runs/acm --out acm.parquet"
_EXAMPLES = f"""\
examples:
  {_EXAMPLE}
  ignn predict runs/acm --out acm.csv
  ignn predict s3://BUCKET/runs/acm --out s3://BUCKET/acm.parquet
  torchrun --standalone --nproc-per-node 2 -m distributed_ignn predict runs/acm --out acm.parquet

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
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: cuda where there is one"
    )
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
        return self


def main(argv: Sequence[str]) -> int:
    """Exit code of the command, see ``run_main``."""
    return run_main(lambda: _run(argv))


def _run(argv: Sequence[str]) -> None:
    found = parse_options(_Options, argv, name="ignn predict", about=__doc__, more=_EXAMPLES)
    check_outputs(found)
    checked_ending(found.out)
    options = PredictOptions(
        found.run, found.out, found.tolerance, found.steps, found.require_converged
    )
    on_this_rank(lambda comm: predict(options, comm), found.device)
