"""The user's own graph in a folder of the form that OGB's downloads have: tables packed by gzip.

OGB itself is not needed, and nothing is written. Letters: n nodes, E edges, F features, C classes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distributed_ignn.errors import UserError
from distributed_ignn.graph.datasets.checks import brief
from distributed_ignn.long_steps import long_step
from distributed_ignn.reading.tables import read_table

_EDGES, _FEATURES, _LABELS = "edge.csv.gz", "node-feat.csv.gz", "node-label.csv.gz"
_SPLITS = {"train": "train", "val": "valid", "test": "test"}


def is_ogb_folder(path: Path) -> bool:
    """Whether a folder has edges where OGB puts them."""
    return (path / "raw" / _EDGES).is_file()


def ogb_folder(path: Path) -> dict[str, Tensor]:
    """Edges, features, labels and, if there is one, the split of a folder, by PyG's names.

    Args:
        path: the folder, with ``raw/`` and perhaps ``split/SCHEME/``.

    Raises:
        UserError: a table cannot be read, or there are several splits.
    """
    raw, schemes = path / "raw", _schemes(path)
    arrays = {"edge_index": _table(raw / _EDGES).T}
    if (raw / _LABELS).is_file():
        arrays["y"] = _table(raw / _LABELS)
    if (raw / _FEATURES).is_file():
        arrays["x"] = _table(raw / _FEATURES)
    if len(schemes) > 1:
        names = ", ".join(scheme.name for scheme in schemes)
        raise UserError(f"{path} has several splits ({names}); leave one of them in split/")
    for scheme in schemes:
        for split, name in _SPLITS.items():
            arrays[f"{split}_idx"] = _table(scheme / f"{name}.csv.gz").flatten()
    return arrays


def ogb_tables(path: Path) -> list[Path]:
    """The tables that ``ogb_folder`` reads, as far as they are there."""
    tables = [path / "raw" / name for name in (_EDGES, _FEATURES, _LABELS)]
    tables += [scheme / f"{name}.csv.gz" for scheme in _schemes(path) for name in _SPLITS.values()]
    return [table for table in tables if table.is_file()]


def _schemes(path: Path) -> list[Path]:
    return sorted(found.parent for found in path.glob("split/*/train.csv.gz"))


def _table(path: Path) -> Tensor:
    """The numbers of a table without names, [rows, columns]; empty cells are NaN."""
    try:
        with long_step(f"reading {path.name}"):
            table, named = read_table(path)
            if named:
                raise ValueError("its first row holds words")
            columns = [column.to_numpy() for column in table.columns]
        if any(column.dtype.kind not in "iuf" for column in columns):
            raise ValueError("it holds something else than numbers")
        whole = all(column.dtype.kind in "iu" for column in columns)
        kind = np.int64 if whole else np.float32 if path.name == _FEATURES else np.float64
        return torch.from_numpy(np.stack([c.astype(kind) for c in columns], axis=1))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a table of numbers as OGB writes it ({brief(error)}); fetch it again"
        ) from error
