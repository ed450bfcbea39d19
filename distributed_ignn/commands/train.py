"""Train an implicit graph neural network: under torchrun, as one process, or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Sequence

from distributed_ignn.cli import run_main
from distributed_ignn.config import parse_run
from distributed_ignn.launchers.entry import train

_USAGE = "ignn train --dataset NAME [--config FILE] [--output DIR] [--SECTION.KEY VALUE ...]"
_ABOUT = "Train an implicit graph neural network on one graph divided among all processes."
_EXAMPLES = """\
examples:
  ignn train --dataset chains --device cpu
  torchrun --standalone --nproc-per-node 2 -m distributed_ignn train --dataset chains --device cpu
  ignn train --dataset acm --workers 2 --model.hidden 64 --forward.tolerance 1e-5
  ray job submit -- ignn train --dataset ogbn-products --gpus 8 --output /shared/products
  ignn train --dataset acm --output s3://BUCKET/runs/acm --resume auto

Settings start from their defaults; a --config file overrides them and the command line overrides
the file. In a file each section is a block and keys are written with _ instead of -. The value
null unsets a setting that may be empty. In a checkout, launch/train.py is the same command.
"""


def main(argv: Sequence[str]) -> int:
    """Exit code of the command, see ``run_main``."""
    return run_main(lambda: _run(argv))


def _run(argv: Sequence[str]) -> None:
    train(parse_run(argv, name="ignn train", about=_ABOUT, more=_EXAMPLES, usage=_USAGE))
