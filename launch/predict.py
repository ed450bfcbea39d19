"""Write node id, prediction and probabilities of a finished run; alone or under torchrun."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from distributed_ignn.cli import check_output, run_main
from distributed_ignn.config import CommandParser
from distributed_ignn.errors import UserError
from distributed_ignn.launchers.this_rank import on_this_rank
from distributed_ignn.runs.predict import PredictOptions, predict

_EXAMPLES = """\
examples:
  python launch/predict.py --run runs/acm --out acm.parquet
  torchrun --standalone --nproc-per-node 2 -- launch/predict.py --run runs/acm --out acm.parquet
"""


def main(argv: Sequence[str]) -> int:
    """Exit code of the command: 0, or 2 after one line about a mistake."""
    return run_main(lambda: _run(argv))


def _run(argv: Sequence[str]) -> None:
    options, device = _parse(argv)
    check_output("--out", options.out)
    on_this_rank(lambda comm: predict(options, comm), device)


def _parse(argv: Sequence[str]) -> tuple[PredictOptions, str]:
    parser = CommandParser(prog="predict.py", description=__doc__, epilog=_EXAMPLES)
    parser.add_argument("--run", type=Path, required=True, help="output folder of a training run")
    parser.add_argument("--out", type=Path, required=True, help="parquet file to write")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--tolerance", type=float, help="relative residual (default: the run's)")
    parser.add_argument("--steps", type=int, help="exactly so many map evaluations instead")
    parser.add_argument(
        "--require-converged",
        action="store_true",
        help="write nothing unless the tolerance is reached, and exit with code 2",
    )
    found = parser.parse_args(argv)
    if found.tolerance is not None and found.steps is not None:
        raise UserError("--tolerance and --steps both say when to stop; give one of them")
    if found.tolerance is not None and not 0 < found.tolerance < 1:
        raise UserError(f"--tolerance {found.tolerance} must lie between 0 and 1, as in 1e-6")
    if found.steps is not None and found.steps < 1:
        raise UserError(f"--steps {found.steps} must be at least 1")
    options = PredictOptions(
        found.run, found.out, found.tolerance, found.steps, found.require_converged
    )
    return options, found.device


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
