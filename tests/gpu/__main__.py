"""``make gpu``: everything that only a GPU can tell, in one command of under ten minutes.

    make gpu PYTHON=python3                  # torch with CUDA is there: nothing is installed
    python -m tests.gpu --device cpu --sizes tiny    # tries the checks themselves, on a CPU

Any number of GPUs; a machine without one is told so in a line, with exit code 2. A table on
standard output, a JSON of the same, ``configs/hardware/here-gpu.yaml``, and exit code 1 where a
check has failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

NEEDED = {
    "torch": "torch",
    "numpy": "numpy",
    "scipy": "scipy",
    "pyarrow": "pyarrow",
    "pydantic": "pydantic",
    "pydantic-settings": "pydantic_settings",
    "pyyaml": "yaml",
    "rich": "rich",
    "safetensors": "safetensors",
}
"""Packages by the name that pip knows, and the module of each; Triton is used where it is."""


def main(argv: Sequence[str]) -> int:
    """Exit code: 0, 1 where a check has failed, 2 where none could be made."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--sizes", choices=("full", "tiny"), default="full")
    parser.add_argument("--sections", nargs="+", metavar="NAME", help="some of them; default: all")
    parser.add_argument("--json", type=Path, default=Path("runs/gpu/report.json"), metavar="FILE")
    options = parser.parse_args(argv)
    missing = [name for name, module in NEEDED.items() if not importlib.util.find_spec(module)]
    if missing:
        print(
            f"error: {sys.executable} lacks {', '.join(missing)}; pip install {' '.join(missing)}",
            file=sys.stderr,
        )
        return 2
    from distributed_ignn.cli import run_main
    from tests.gpu.acceptance import Options, run  # needs what is named above

    failed = 0

    def act() -> None:
        nonlocal failed
        chosen = tuple(options.sections or ())
        failed = run(Options(options.device, options.sizes, chosen, options.json))

    return run_main(act) or int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
