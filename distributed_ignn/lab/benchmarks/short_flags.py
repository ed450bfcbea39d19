"""What the commands that measure on a graph have in common."""

from __future__ import annotations

from collections.abc import Sequence

_SHORT = {
    "--scale": "--data.synthetic.scale",
    "--mean-degree": "--data.synthetic.mean-degree",
    "--width": "--model.hidden",
}
_GENERATED = ("--dataset", "synthetic-products", "--data.synthetic.scale", "0.01")

SHORT_FLAGS = """\
The graph is generated, a hundredth of ogbn-products in size, unless --dataset or --config names
one; every setting of a run is a flag. --scale X, --mean-degree X and --width N are short for
--data.synthetic.scale, --data.synthetic.mean-degree and --model.hidden.
"""


def spelled_out(argv: Sequence[str]) -> list[str]:
    """Short flags as the settings that they stand for, after a graph if none is named."""
    spelled = []
    for argument in argv:
        flag, equals, value = argument.partition("=")
        spelled.append(_SHORT.get(flag, flag) + equals + value)
    named = {argument.partition("=")[0] for argument in spelled}
    return spelled if named & {"--dataset", "--config"} else [*_GENERATED, *spelled]
