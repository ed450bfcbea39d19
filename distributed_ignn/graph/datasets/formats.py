"""The forms that a graph of one's own may have in a file, each known by how the file begins.

A form of edges alone goes together with a table of nodes (``graph_tables.py``). A new one is a
function from a path to named arrays, entered in ``FORMATS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import scipy.sparse as sp
from torch import Tensor

from distributed_ignn.config.dataset import LARGEST_GRAPH, DataConfig
from distributed_ignn.errors import UserError
from distributed_ignn.graph.datasets.checks import brief
from distributed_ignn.graph.datasets.fields import LABELS, Fields, chosen_fields, missing_name
from distributed_ignn.graph.datasets.graph_tables import edge_table
from distributed_ignn.graph.datasets.mat_graph import mat_fields, matrix_arrays
from distributed_ignn.graph.datasets.node_table import NodeTable
from distributed_ignn.graph.datasets.torch_content import ADVICE, named_values, value_of
from distributed_ignn.reading.arrays import npz_names, read_npz
from distributed_ignn.reading.mat_files import HDF5, MAT5, MAT73
from distributed_ignn.reading.matrices import (
    MATRIX_MARKET,
    is_scipy_npz,
    read_matrix_market,
    read_scipy_npz,
)
from distributed_ignn.reading.tables import PARQUET, head_of
from distributed_ignn.reading.torch_files import open_torch

_ZIP = b"PK\x03\x04"
Reader = Callable[[Path, DataConfig, NodeTable | None, bool], Fields]


@dataclass(frozen=True, slots=True)
class Format:
    """One form.

    Args:
        begins: the first bytes of such a file, unpacked; None where they may be anything.
        endings: of the names of files that are taken to be of it if no beginning tells otherwise.
        read: the arrays of a file, by the settings, a table of nodes and ``labelled``.
        names_nodes: whether its edges name nodes by ids that a table of nodes may have.
    """

    begins: bytes | None
    endings: tuple[str, ...]
    read: Reader
    names_nodes: bool = False


def format_of(path: Path) -> Format:
    """The form of a file, by its beginning, else by its ending.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        head = head_of(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({brief(error)}); write it again") from error
    named = next((form for form in FORMATS if path.suffix in form.endings), _TABLE)
    if head.startswith(_ZIP) and named.begins == _ZIP:
        return named
    begun = [form for form in FORMATS if form.begins and head.startswith(form.begins)]
    return begun[0] if begun else named


def read_any(path: Path, data: DataConfig, *, labelled: bool = True) -> Fields:
    """The arrays of a file of any form, with those of the table of nodes ``data.nodes``.

    Args:
        path, data, labelled: see ``chosen_fields``.

    Raises:
        UserError: one of the files cannot be read, or they do not belong together.
    """
    form = format_of(path)
    if data.nodes is not None and not data.nodes.is_file():
        raise UserError(f"data.nodes = {data.nodes} is no file; name a table of nodes")
    nodes = None if data.nodes is None else NodeTable(data.nodes, data.label, labelled=labelled)
    if nodes is not None and nodes.ids is not None and not form.names_nodes:
        raise UserError(
            f"{path} counts nodes from 0 and {nodes.path} has ids of its own; sort its rows and "
            "leave the ids out"
        )
    found = form.read(path, data, nodes, labelled)
    if nodes is None:
        edges = {"edge_index", "adj_t", "indptr"} & set(found.arrays)
        if edges and not {"x", "x_indptr", "y"} & set(found.arrays):
            if data.label is not None and labelled:
                raise missing_name("label", data.label, found.present, path)
            raise UserError(
                f"{path} holds edges alone; a table of nodes is needed beside it, as in "
                "--data.nodes nodes.csv (of predict: --nodes), or everything in one .npz or .pt "
                "file"
            )
        return found
    both = sorted(set(found.arrays) & set(nodes.fields.arrays))
    if both:
        raise UserError(f"{path} and {nodes.path} both say {both[0]}; leave it out of one of them")
    return replace(
        found,
        arrays=found.arrays | nodes.fields.arrays,
        class_names=found.class_names or nodes.fields.class_names,
        present=(*found.present, *nodes.fields.present),
        node_ids=nodes.fields.node_ids,
    )


def _read_npz(path: Path, data: DataConfig, _: NodeTable | None, labelled: bool) -> Fields:
    try:
        names = npz_names(path)
        if is_scipy_npz(names):
            return _of_matrix(read_scipy_npz(path, LARGEST_GRAPH), path, data, labelled)
        labels = (*LABELS, data.label)
        return chosen_fields(
            names,
            lambda name: read_npz(path, [name], kinds="biufU" if name in labels else "biuf")[name],
            path,
            data,
            labelled=labelled,
        )
    except (OSError, ValueError, TypeError, MemoryError) as error:
        raise UserError(
            f"{path} is not a .npz file of plain number arrays ({brief(error)}); write it with "
            "numpy.savez and without object arrays, bytes or complex numbers (labels may be words, "
            "as of y.astype(str))"
        ) from error


def _read_pt(path: Path, data: DataConfig, _: NodeTable | None, labelled: bool) -> Fields:
    try:
        with open_torch(path) as file:
            values = named_values(file, path)

            def read(name: str) -> Any:
                try:
                    return value_of(file, values[name])
                except ValueError as error:
                    raise UserError(
                        f"{path}: {name} is {brief(error)}, a plain tensor is needed; save one in "
                        "its place"
                    ) from error

            return chosen_fields(values, read, path, data, labelled=labelled)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} holds something other than a PyG Data object ({brief(error)}); {ADVICE}"
        ) from error


def _read_matrix_market(
    path: Path, data: DataConfig, _: NodeTable | None, labelled: bool
) -> Fields:
    try:
        return _of_matrix(read_matrix_market(path, LARGEST_GRAPH), path, data, labelled)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a sparse matrix in MatrixMarket form ({brief(error)}); write it with "
            "scipy.io.mmwrite"
        ) from error


def _of_matrix(matrix: sp.coo_array, path: Path, data: DataConfig, labelled: bool) -> Fields:
    return _of_arrays(matrix_arrays(matrix), path, data, labelled)


def _read_mat(path: Path, data: DataConfig, _: NodeTable | None, labelled: bool) -> Fields:
    try:
        return mat_fields(path, data, labelled=labelled)
    except (OSError, ValueError, MemoryError) as error:
        new = str(error).startswith("version 7.3")
        way_out = (
            "load it in MATLAB and save('graph.mat', '-v7'), or with h5py and scipy.io.savemat"
            if new
            else "write it with save(..., '-v7') of MATLAB or scipy.io.savemat"
        )
        raise UserError(
            f"{path} is not a .mat file of matrices, versions 4 to 7 ({brief(error)}); {way_out}"
        ) from error


def _read_table(path: Path, data: DataConfig, nodes: NodeTable | None, labelled: bool) -> Fields:
    return _of_arrays(edge_table(path, nodes), path, data, labelled)


def _of_arrays(
    arrays: Mapping[str, Tensor], path: Path, data: DataConfig, labelled: bool
) -> Fields:
    for key in ("features", "adjacency"):
        if key in data.names and labelled:
            raise UserError(
                f"data.{key} = {data.names[key]} has no effect on {path}, which holds edges alone; "
                "drop it"
            )
    return chosen_fields(arrays, arrays.__getitem__, path, data, labelled=labelled)


_TABLE = Format(PARQUET, (".csv", ".tsv", ".txt", ".parquet", ".gz"), _read_table, names_nodes=True)
FORMATS = (
    Format(_ZIP, (".pt",), _read_pt),
    Format(_ZIP, (".npz",), _read_npz),
    Format(MATRIX_MARKET, (".mtx",), _read_matrix_market),
    *(Format(begins, (".mat",), _read_mat) for begins in (MAT5, MAT73, HDF5)),
    _TABLE,
)
"""All forms there are."""
