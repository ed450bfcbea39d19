"""What the IGNN-Solver paper prints: accuracy in per cent, mean and deviation of five runs.

Tables 1 and 3, as printed. The deviations of Flickr have one digit: the second one lies beyond the
edge of the page.
"""

from __future__ import annotations

from typing import NamedTuple

_LARGE = ("amazon-all", "reddit", "ogbn-arxiv", "ogbn-products")
_SMALL = ("citeseer", "acm", "corafull", "blogcatalog", "flickr")

_TABLE_1 = """
gcn          79.12 1.11   89.65 0.14   71.56 0.25   71.91 0.27
gat          76.02 2.09   90.08 0.44   71.10 0.24   72.33 0.32
sgc          75.56 1.75   91.44 0.41   64.66 1.02   70.48 0.19
appnp        79.80 1.22   91.68 0.24   71.28 0.29   74.46 0.64
jknet        81.19 1.09   91.71 0.31   71.08 0.35   73.70 0.58
amgcn        81.85 1.46   90.20 0.34   68.83 0.67   73.19 0.49
demonet      84.08 1.29   89.53 0.29   68.40 0.24   73.88 0.62
gcnii        83.60 2.40   89.87 0.38   67.66 0.20   72.88 0.18
acmgcn       83.04 2.61   90.37 0.42   68.32 0.18   71.68 0.41
ignn         83.90 0.51   92.30 1.55   70.49 0.75   74.63 0.24
eignn        84.32 0.57   92.00 0.24   70.59 0.31   74.58 0.26
mignn        83.68 0.82   91.98 0.42   71.95 0.44   74.62 0.32
ignn-aa      83.44 0.19   92.37 0.35   71.73 0.41   74.61 0.28
ignn-nn      84.13 1.04   92.42 0.41   70.78 0.37   74.69 0.31
ignn-solver  84.50 0.70   93.91 0.31   72.53 0.41   74.90 0.20
"""

_TABLE_3 = """
gcn          64.80 4.15   83.78 3.95   35.98 9.44   71.30 1.12   76.98 1.8
gat          71.24 2.88   80.60 5.12   50.24 1.87   76.24 2.76   72.64 3.2
sgc          70.32 2.75   85.40 1.23   46.56 4.43   69.76 1.11   71.88 3.4
appnp        61.56 8.92   84.16 4.25   21.24 4.76   61.34 9.39   73.42 3.8
jknet        63.78 8.76   64.96 5.47   23.04 6.01   72.62 6.83   75.68 1.1
amgcn        73.10 1.62   89.56 0.30   53.40 1.59   73.86 1.10   76.86 2.0
demonet      68.34 2.94   84.38 2.19   61.74 3.65   74.26 2.70   75.60 3.9
gcnii        71.98 0.80   85.36 1.05   57.64 3.34   74.94 3.81   79.92 2.1
acmgcn       72.38 1.46   88.98 0.41   59.88 1.59   78.18 1.75   74.82 3.7
ignn         72.96 1.83   90.88 0.95   65.52 0.51   75.68 0.55   75.80 0.2
eignn        72.38 1.36   88.36 1.03   61.80 0.60   75.34 0.38   75.66 0.9
mignn        73.79 0.94   89.59 1.61   62.94 0.46   76.68 1.49   74.96 0.4
ignn-aa      75.28 0.38   91.34 0.46   65.88 0.34   76.82 0.34   75.84 0.2
ignn-nn      74.78 0.42   91.08 0.56   65.62 0.16   76.88 0.74   78.55 0.4
ignn-solver  75.60 0.22   91.20 1.15   66.08 1.23   77.64 0.54   80.14 0.2
"""


class Printed(NamedTuple):
    """A cell of the paper.

    Args:
        mean, deviation: in per cent.
        digits: as the paper has it.
    """

    mean: float
    deviation: float
    digits: str


def _read(text: str, datasets: tuple[str, ...]) -> dict[tuple[str, str], Printed]:
    found = {}
    for line in text.split("\n"):
        model, *words = line.split() or [""]
        for dataset, mean, deviation in zip(datasets, words[::2], words[1::2], strict=False):
            digits = f"{mean} ± {deviation}"
            found[dataset, model] = Printed(float(mean), float(deviation), digits)
    return found


PRINTED = _read(_TABLE_1, _LARGE) | _read(_TABLE_3, _SMALL)
"""By dataset of the paper and model."""

_SAME = {"reddit2": "reddit"}


def paper_name(dataset: str) -> str:
    """What the paper calls a dataset: both Reddits are its one, whose counts are Reddit2's."""
    return _SAME.get(dataset, dataset)


def printed(dataset: str, model: str) -> Printed | None:
    """What the paper prints for a dataset of ours and a model; None where it has no such cell."""
    return PRINTED.get((paper_name(dataset), model))


def size_of(dataset: str) -> str | None:
    """``large`` or ``small``, by the table that has the dataset; None where none has."""
    name = paper_name(dataset)
    return "large" if name in _LARGE else "small" if name in _SMALL else None


COLUMNS = {
    "large": ("amazon-all", "reddit2", "ogbn-arxiv", "ogbn-products"),
    "small": _SMALL,
}
"""The datasets of a table of ours, which takes the Reddit that the paper's counts belong to."""
