"""What the commands that measure on a graph have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_SHORT = {
    "--scale": "--data.synthetic.scale",
    "--mean-degree": "--data.synthetic.mean-degree",
    "--width": "--model.hidden",
}
_SCALE = 0.01  # of the graph that is there unless another is named

SHORT_FLAGS = """\
The graph is generated, a hundredth of ogbn-products in size, unless --dataset or --config names
one; every setting of a run is a flag. --scale X, --mean-degree X and --width N are short for
--data.synthetic.scale, --data.synthetic.mean-degree and --model.hidden.
"""


def spelled_out(argv: Sequence[str]) -> list[str]:
    """Short flags as the settings that they stand for."""
    spelled = []
    for argument in argv:
        flag, equals, value = argument.partition("=")
        spelled.append(_SHORT.get(flag, flag) + equals + value)
    return spelled


def with_graph(flags: Mapping[str, Any], config_file: Path | None) -> dict[str, Any]:
    """Settings of a command line, with a generated graph where it names none."""
    if config_file is not None or "dataset" in flags:
        return dict(flags)
    data = flags.get("data", {})
    synthetic = {"scale": _SCALE, **data.get("synthetic", {})}
    return {**flags, "dataset": "synthetic-products", "data": {**data, "synthetic": synthetic}}
