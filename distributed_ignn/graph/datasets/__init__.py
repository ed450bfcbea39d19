"""Named datasets: one function, one validated GraphData, whatever the source.

Each source has its own module; this one only knows their names and what is common to all of
them (feature scaling, the neighbour channel, the final validation).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

from distributed_ignn.config import DataConfig
from distributed_ignn.config.dataset import FILE_KINDS, FILE_SUFFIXES, OWN_FILE
from distributed_ignn.errors import UserError
from distributed_ignn.graph.data import GraphData, Task
from distributed_ignn.graph.datasets.amazon import load_amazon
from distributed_ignn.graph.datasets.amgcn import RELEASE, load_amgcn
from distributed_ignn.graph.datasets.attributes import labelled_graph, no_labels, unlabelled_graph
from distributed_ignn.graph.datasets.chains import make_chains
from distributed_ignn.graph.datasets.checks import validate, validate_graph
from distributed_ignn.graph.datasets.feature_norm import apply_scaling, scale_features
from distributed_ignn.graph.datasets.heterophilous import make_heterophilous
from distributed_ignn.graph.datasets.in_memory import ORIGIN, fields_in_memory, is_in_memory
from distributed_ignn.graph.datasets.knn import add_knn_channel
from distributed_ignn.graph.datasets.pyg_ogb import OGB_NAMES, load_ogb, load_reddit
from distributed_ignn.graph.datasets.reddit2 import load_reddit2
from distributed_ignn.graph.datasets.synthetic import make_products
from distributed_ignn.graph.datasets.user_file import load_user_file, read_fields
from distributed_ignn.graph.feature_scaling import FeatureScaling
from distributed_ignn.long_steps import long_step
from distributed_ignn.urls.url import Url

__all__ = [
    "DATASETS",
    "READ_BY",
    "Loader",
    "graph_in_memory",
    "graph_to_predict",
    "load_dataset",
    "validate",
]


def _amgcn(name: str, data_root: Path, data: DataConfig) -> GraphData:
    return load_amgcn(name, data_root, label_rate=data.label_rate, knn=data.knn)


def _file(name: str, data_root: Path, data: DataConfig) -> GraphData:
    if data.path is None:
        raise UserError(f"data.path: dataset 'file' needs the path of a {FILE_KINDS} file")
    return load_user_file(Path(data.path), data)


def _amazon(name: str, data_root: Path, data: DataConfig) -> GraphData:
    return load_amazon(data_root, train_fraction=data.train_fraction, seed=data.split_seed)


Loader = Callable[[str, Path, DataConfig], GraphData]
"""From a dataset's name, the folder of all datasets' files and the data section to the graph."""

DATASETS: dict[str, Loader] = {
    **dict.fromkeys(RELEASE, _amgcn),
    "amazon-all": _amazon,
    "reddit": lambda name, root, data: load_reddit(root),
    "reddit2": lambda name, root, data: load_reddit2(root, data.split_seed),
    **dict.fromkeys(OGB_NAMES, lambda name, root, data: load_ogb(name, root)),
    "chains": lambda name, root, data: make_chains(data.chains),
    "synthetic-products": lambda name, root, data: make_products(data.synthetic),
    "heterophilous": lambda name, root, data: make_heterophilous(data.heterophilous),
    OWN_FILE: _file,
}
"""The datasets there are, by name; a new one is entered here, and has its settings in
``configs/NAME.yaml``."""

READ_BY: dict[str, tuple[str, ...]] = {
    "label_rate": tuple(RELEASE),
    "train_fraction": ("amazon-all",),
    "split_seed": ("amazon-all", "reddit2"),
}
"""Settings of ``data`` that a few datasets read, and which; elsewhere they are refused."""


def load_dataset(
    name: str, data_root: Path, data: DataConfig, scaling: FeatureScaling | None = None
) -> GraphData:
    """Load, scale and validate one dataset.

    Args:
        name: a key of ``DATASETS``, or the path of the user's own ``.pt`` or ``.npz`` file.
        data_root: folder of the datasets' files; missing files are downloaded into it.
        data: the ``data`` section of the configuration.
        scaling: of the features, where it is known from another graph.

    Returns:
        The graph with features normalised as ``data.feature_norm`` says and, where ``data.knn`` is
        not 0, a nearest-neighbour graph as channel 1.

    Raises:
        UserError: an unknown name, missing or malformed files, or a rule that the data breaks.
    """
    for key, path in (("path", data.path), ("nodes", data.nodes)):
        if isinstance(path, Url):
            raise UserError(
                f"data.{key} = {path} is a URL, which ignn train and ignn partition read; copy the "
                "file here and give its path"
            )
    loader = DATASETS.get(name)
    if data.edge_weights == "use" and loader not in (None, _file):
        raise UserError(
            f"data.edge_weights = use: the edges of {name} have no weights; drop the setting"
        )
    if data.directions == "both" and loader not in (None, _file):
        raise UserError(
            f"data.directions = both: {name} is read as an undirected graph; drop the setting"
        )
    if loader is None and not name.endswith(FILE_SUFFIXES):
        raise UserError(
            f"dataset {name!r} is not known; choose one of {', '.join(DATASETS)}, or give the "
            f"path of a {FILE_KINDS} file"
        )
    with long_step(f"reading {name}"):
        if loader is not None:
            loaded = loader(name, data_root, data)
        else:
            loaded = load_user_file(Path(name), data)
        return _prepared(validate(loaded, name), data, scaling, knn=name not in RELEASE)


def graph_in_memory(graph: object, data: DataConfig) -> GraphData:
    """As ``load_dataset``, for a graph that is already in memory.

    Args:
        graph: see ``fields_in_memory``.
        data: the ``data`` section of the configuration.

    Raises:
        UserError: an attribute is missing or breaks a rule.
    """
    loaded = labelled_graph(fields_in_memory(graph, data), data)
    return _prepared(validate(loaded, str(ORIGIN)), data)


def graph_to_predict(
    source: object,
    data: DataConfig,
    num_classes: int,
    task: Task,
    data_root: Path = Path("data"),
    scaling: FeatureScaling | None = None,
) -> GraphData:
    """A graph for a model that was trained on another, prepared as that one was.

    Args:
        source: a graph in memory, the path of a file, or a name of DATASETS. Labels and splits
            are not read.
        data: the ``data`` section of the run that trained the model; ``nodes`` is that of
            ``source``.
        num_classes, task: of the model.
        data_root: where the files of a named dataset are.
        scaling: of the features that the model was trained on, if ``data`` alone does not say it.

    Raises:
        UserError: something is missing or breaks a rule.
    """
    if isinstance(source, str) and source in DATASETS:
        found = load_dataset(source, data_root, data, scaling)
        return dataclasses.replace(found, **no_labels(found.num_nodes, num_classes, task))
    path = ORIGIN if is_in_memory(source) else Path(str(source))
    in_memory = is_in_memory(source)
    read = partial(fields_in_memory, source) if in_memory else partial(read_fields, path)
    fields = read(data, labelled=False)
    loaded = unlabelled_graph(fields, data, num_classes, task)
    return _prepared(validate_graph(loaded, str(path)), data, scaling)


def _prepared(
    loaded: GraphData,
    data: DataConfig,
    scaling: FeatureScaling | None = None,
    *,
    knn: bool = True,
) -> GraphData:
    """With scaled features and, if ``knn`` and the settings ask for it, the neighbour channel."""
    if data.knn and knn:
        loaded = add_knn_channel(loaded, data.knn)
    features = loaded.features
    if scaling is None:
        features, scaling = scale_features(features, data.feature_norm, loaded.name)
    else:
        features = apply_scaling(features, scaling, loaded.name)
    return dataclasses.replace(loaded, features=features, scaling=scaling)
