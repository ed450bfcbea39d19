"""Run a program on emulated GPUs, alone or under torchrun, and say what it asked of them.

python -m tests.pseudo_gpu launch/train.py --dataset chains --device cuda --output runs/emulated
torchrun --standalone --nproc-per-node 2 -m tests.pseudo_gpu launch/train.py --device cuda ...
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import sys
from pathlib import Path

from tests.pseudo_gpu import preload  # sorts before whatever imports torch, as it has to
from tests.pseudo_gpu.emulator import EmulatedGPU

_LINES = 12  # of each kind


def main() -> int:
    """Run the script; its exit code."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.pseudo_gpu")
    parser.add_argument("--devices", type=int, default=ranks, help="GPUs of this process")
    parser.add_argument("--first", type=int, default=0, help="number of the first of them")
    parser.add_argument("--report", type=Path, help="folder for a JSON file per rank")
    parser.add_argument("--keep-going", action="store_true", help="count faults, do not raise")
    parser.add_argument("script")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if preload.OBSTACLE is not None:
        print(f"error: {preload.OBSTACLE}", file=sys.stderr)
        return 2
    sys.argv = [options.script, *options.arguments]
    sys.path.insert(0, str(Path(options.script).resolve().parent))
    code = 0
    gpu = EmulatedGPU(options.devices, first=options.first, strict=not options.keep_going)
    with gpu:
        try:
            runpy.run_path(options.script, run_name="__main__")
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    rank = os.environ.get("RANK", "0")
    if options.report is not None:
        options.report.mkdir(parents=True, exist_ok=True)
        found = gpu.counts.as_json() | {
            "peak bytes": gpu.memory.peak,
            "most events": gpu.most_events,
        }
        (options.report / f"rank-{rank}.json").write_text(json.dumps(found, indent=1))
    if rank == "0":
        print_counts(gpu)
    return code


def print_counts(gpu: EmulatedGPU) -> None:
    """Every kind, its costliest lines first, on stderr."""
    for kind, total in sorted(gpu.counts.totals().items()):
        print(f"{kind}: {total:,.0f}", file=sys.stderr)
        for line, count in list(gpu.counts.lines(kind).items())[:_LINES]:
            names = ", ".join(list(gpu.counts.operations(kind, line))[:4])
            print(f"  {count:>10,.0f}  {line}  {names}", file=sys.stderr)
    print(
        f"peak bytes {gpu.memory.peak:,}, events alive at once {gpu.most_events:,}", file=sys.stderr
    )


if __name__ == "__main__":
    sys.exit(main())
