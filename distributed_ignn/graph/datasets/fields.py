"""Named arrays of a graph, called as PyG's ``Data`` calls them, whatever they were called before.

The user's own graph becomes such a collection first, whether it comes from a file or from memory,
so that all share every check. Letters: n nodes, E edges, F features, C classes, K splits.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distributed_ignn.config.dataset import DataConfig
from distributed_ignn.errors import UserError
from distributed_ignn.graph.datasets.checks import brief
from distributed_ignn.graph.datasets.label_words import numbered
from distributed_ignn.graph.node_ids import NodeIds
from distributed_ignn.reading.plain_files import in_one_line
from distributed_ignn.reading.torch_files import check_tensor

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
WEIGHTS = ("edge_weight", "edge_attr", "data")
"""Names of weights of edges, the first that is there counts; the last beside a CSR matrix only."""

_NAMES = (
    *("indptr", "indices", "edge_index", "adj_t"),
    *("x", "x_indptr", "x_indices", "x_data", "y", "num_classes"),
    *(f"{split}_{kind}" for split in SPLITS for kind in ("mask", "idx")),
)
#: Names that are not read where another is there, which says the same.
_SECOND = {
    "adj_t": ("edge_index",),
    "indptr": ("edge_index", "adj_t"),
    "indices": ("edge_index", "adj_t"),
    "x": ("x_indptr", "x_indices"),
    **{f"{split}_mask": (f"{split}_idx",) for split in SPLITS},
}
#: What OGB, the heterophilous graphs of Platonov et al. 2023 and those of Shchur et al. 2018 call
#: the same things.
_ALSO = {
    "edges": "edge_index",
    "node_feat": "x",
    "node_features": "x",
    "node_label": "y",
    "node_labels": "y",
    "labels": "y",
    "valid_mask": "val_mask",
    "valid_idx": "val_idx",
    **{f"{split}_masks": f"{split}_mask" for split in SPLITS},
    **{f"adj_{name}": name for name in ("indptr", "indices", "data")},
    **{f"attr_{name}": f"x_{name}" for name in ("indptr", "indices", "data")},
}
LABELS = ("y", *(other for other, name in _ALSO.items() if name == "y"))
"""Names of arrays that may hold words."""

#: What each setting names, by this module's words.
_SETTINGS = {"label": "y", "features": "x", "adjacency": "edge_index"}
#: What is not read where a setting names the same thing.
_SAME = {"x": ("x_indptr", "x_indices", "x_data"), "edge_index": ("adj_t", "indptr", "indices")}

_SHOWN = 12  # names in a message


@dataclass(frozen=True, slots=True, eq=False)
class Fields:
    """The arrays of one graph.

    Args:
        arrays: by name.
        origin: where they come from, the first word of any message.
        class_names: where the labels were words, those that the numbers of ``y`` stand for.
        present: all names that there are, read or not.
        node_ids: as in ``GraphData``.
    """

    arrays: dict[str, Tensor]
    origin: Path
    class_names: tuple[str, ...] = ()
    present: tuple[str, ...] = ()
    node_ids: NodeIds | None = None

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def __getitem__(self, name: str) -> Tensor:
        return self.arrays[name]

    def integers(self, name: str, *, dim: int = 1) -> Tensor:
        """An array of whole numbers, int64.

        Raises:
            UserError: it has another type, or not ``dim`` dimensions.
        """
        value = self[name]
        if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
            mask = value.dtype == torch.bool and name.endswith("_idx")
            way = f"call a mask {name[:-4]}_mask" if mask else "convert it to int64"
            raise UserError(
                f"{self.origin}: {name} has type {str(value.dtype).removeprefix('torch.')}; whole "
                f"numbers are needed, {way}"
            )
        if value.dim() != dim:
            raise UserError(
                f"{self.origin}: {name} has shape {tuple(value.shape)}; {dim} dimension(s) are "
                "needed"
            )
        return value.to(torch.int64).contiguous()

    def row_pointer(self, name: str, n: int, entries: int) -> Tensor:
        """Where each of n rows begins among so many entries, int64 [n + 1].

        Raises:
            UserError: it does not fit them.
        """
        pointer = self.integers(name)
        if pointer.numel() != n + 1:
            raise UserError(
                f"{self.origin}: {name} must have {n + 1} entries (one per node of y, and one) "
                f"from 0 to {entries}, it has {pointer.numel()}"
            )
        first, last = int(pointer[0]), int(pointer[-1])
        if (first, last) != (0, entries):
            raise UserError(
                f"{self.origin}: {name} must lead from 0 to {entries}, the number of entries, and "
                f"leads from {first} to {last}; correct it"
            )
        if bool((pointer[1:] < pointer[:-1]).any()):
            raise UserError(
                f"{self.origin}: {name} decreases; it counts the entries before each row"
            )
        return pointer


def chosen_fields(
    present: Collection[str],
    read: Callable[[str], Any],
    origin: Path,
    data: DataConfig,
    *,
    labelled: bool = True,
) -> Fields:
    """Read what has a meaning, and one for weights; the other names are told in one line.

    Args:
        present: the names that there are.
        read: the value of one: a tensor, an array of numpy's, a whole number, or a list of words.
        origin: as in ``Fields``.
        data: ``edge_weights`` and the settings that name what is what are read.
        labelled: False of a graph to predict on. Its labels and splits are not read, and what
            settings of another file name may have its usual name here.

    Raises:
        UserError: a value is nothing of that, or breaks a rule.
    """
    if not labelled:
        data = with_names_of(present, data)
    places = _places(present, origin, data)
    wanted, weights = _wanted(places)
    if not labelled:
        wanted = [name for name in wanted if not says_labels(name)]
    read_or_told = {places[name] for name in (*wanted, *weights)}
    unread = sorted(str(name) for name in present if name not in read_or_told)
    if weights and data.edge_weights == "ignore":
        logger.info("%s: %s is ignored, every edge weighs 1", origin, weights[0])
        weights = []
    if unread:
        logger.info("%s: not read: %s", origin, in_one_line(some(unread)))
    arrays: dict[str, Tensor] = {}
    names: tuple[str, ...] = ()
    for name in (*wanted, *weights):
        value = read(places[name])
        if name == "y":
            value, names = numbered(value, origin)
        arrays[name] = plain_tensor(value, places[name], origin)
    if places.get("edge_index") == "edges" and arrays["edge_index"].shape[1:] == (2,):
        arrays["edge_index"] = arrays["edge_index"].T
    if data.adjacency is not None and "edge_index" in arrays:
        name, matrix = as_edges(arrays.pop("edge_index"), places["edge_index"], origin)
        arrays[name] = matrix
        if name == "adj_t":
            _leave_out_weights(arrays, data, origin)
    _check_forms(arrays, origin)
    return Fields(arrays, origin, names, tuple(map(str, present)))


def with_names_of(present: Collection[str], data: DataConfig) -> DataConfig:
    """Settings without the names of parts that are not there."""
    absent = [key for key, name in data.names.items() if name not in present]
    return data.model_copy(update=dict.fromkeys(absent)) if absent else data


def says_labels(name: str) -> bool:
    """Whether a name of ``Fields`` is that of labels or of a split, which predicting needs not."""
    return name in ("y", "num_classes") or name.startswith(SPLITS)


def _leave_out_weights(arrays: dict[str, Tensor], data: DataConfig, origin: Path) -> None:
    """Beside a matrix, which has values of its own, there are no weights of edges.

    Raises:
        UserError: they are asked for, and nothing says which.
    """
    for name in [name for name in WEIGHTS if name in arrays]:
        if data.edge_weights == "use":
            raise UserError(
                f"{origin}: data.adjacency = {data.adjacency} is a matrix, whose values are the "
                f"weights of its edges, and {name} says others; leave one of them out"
            )
        logger.info("%s: not read: %s, since the matrix has values of its own", origin, name)
        del arrays[name]


def _places(present: Collection[str], origin: Path, data: DataConfig) -> dict[str, str]:
    """Under which name each thing is found: the settings', its own, or another word for it."""
    given = {_SETTINGS[key]: name for key, name in data.names.items()}
    for key, name in data.names.items():
        if name not in present and key != "label":  # of a graph to predict on labels are not read
            raise missing_name(key, name, present, origin)
    taken = {*given.values(), *(other for name in given for other in _SAME.get(name, ()))}
    places = {name: name for name in present if name not in _ALSO and name not in taken}
    for name in present:
        if name in _ALSO and _ALSO[name] not in places and name not in taken:
            places[_ALSO[name]] = name
    found = {meaning: name for meaning, name in given.items() if name in present}
    without = {meaning: name for meaning, name in places.items() if meaning not in given}
    return without | found


def missing_name(key: str, name: str, present: Collection[str], origin: Path) -> UserError:
    """What to raise where a setting names something that a file does not hold."""
    held = in_one_line(some(sorted(map(str, present))))
    return UserError(
        f"data.{key} = {name} is not in {origin}, which holds {held}; name one of these"
    )


def as_edges(value: Tensor, name: str, origin: Path) -> tuple[str, Tensor]:
    """Edges in whatever form they are in: ``edge_index``, or a matrix under the name ``adj_t``.

    Raises:
        UserError: they are in none.
    """
    if value.layout is not torch.strided:
        return "adj_t", value
    if value.dim() == 2 and value.shape[0] == 2 and value.shape[1] != 2:
        return "edge_index", value
    if value.dim() != 2 or value.shape[0] != value.shape[1]:
        raise UserError(
            f"{origin}: {in_one_line(name)} has shape {tuple(value.shape)}; a square matrix is "
            "needed, or edge_index [2, E]"
        )
    return "adj_t", value.to_sparse_coo()


def _wanted(places: Collection[str]) -> tuple[list[str], list[str]]:
    """The names to read, of those that there are, and the one of weights, if any."""
    wanted = [
        name
        for name in _NAMES
        if name in places and not any(other in places for other in _SECOND.get(name, ()))
    ]
    by_name = () if "adj_t" in wanted else WEIGHTS if "indptr" in wanted else WEIGHTS[:2]
    return wanted, [name for name in by_name if name in places][:1]


def some(names: Sequence[str]) -> str:
    """Names with commas between them, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def plain_tensor(value: Any, name: str, origin: Path) -> Tensor:
    """A tensor of numbers in a form that every later step can read, sharing memory where it can.

    Args:
        value: a tensor, an array of numpy's, a list of numbers, or a whole number.
        name: of the value, for messages.
        origin: as in ``Fields``.

    Raises:
        UserError: it is something else, or a tensor that is not plain.
    """
    if isinstance(value, np.integer):
        value = int(value)
    if type(value) is int and abs(value) < 2**63:
        return torch.tensor(value)
    if type(value) is list and value and all(type(v) in (int, bool, float) for v in value):
        value = np.array(value)  # of objects where a number is too large
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return _from_numpy(value)
    if not isinstance(value, Tensor):
        kind = f"a {type(value).__name__}"
        if isinstance(value, np.ndarray):
            kind = f"an array of {value.dtype}"
        needed = "a tensor is needed"
        if name == "y":
            needed += " of numbers, or words alone, with None where a label is not known"
        raise UserError(f"{origin}: {name} is {in_one_line(kind)}, {needed}")
    try:
        check_tensor(value)
    except ValueError as error:
        raise UserError(f"{origin}: {name} is {brief(error)}; a plain tensor is needed") from error
    value = value.detach()
    wide = value.dtype in (torch.uint16, torch.uint32, torch.uint64)
    return value.to(torch.int64) if wide else value


def _from_numpy(array: np.ndarray) -> Tensor:
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)  # torch computes little with the wider unsigned types
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    with warnings.catch_warnings():
        # of arrays that may not be written to, and nobody does
        warnings.filterwarnings("ignore", "The given NumPy array is not writ", UserWarning)
        return torch.from_numpy(np.ascontiguousarray(array) if _turned(array) else array)


def _turned(array: np.ndarray) -> bool:
    """Whether some axis runs backwards, which torch does not know."""
    return any(step < 0 for step in array.strides)


def _check_forms(arrays: Mapping[str, Tensor], origin: Path) -> None:
    """Only x and adj_t may be sparse, nothing may be complex; a number of classes is one number."""
    for name, value in arrays.items():
        if value.is_complex():
            raise UserError(f"{origin}: {name} has type {value.dtype}; real numbers are needed")
        if value.layout is not torch.strided and name not in ("x", "adj_t"):
            raise UserError(f"{origin}: {name} is sparse; only x may be, save {name}.to_dense()")
    classes = arrays.get("num_classes")
    if classes is not None and (classes.numel() != 1 or classes.is_floating_point()):
        raise UserError(
            f"{origin}: num_classes has shape {tuple(classes.shape)} and type {classes.dtype}; one "
            "whole number is needed"
        )
