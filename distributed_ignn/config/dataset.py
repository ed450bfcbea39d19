"""What is read, and how the graph is divided."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from distributed_ignn.config import choices
from distributed_ignn.config.choices import Choice
from distributed_ignn.config.section import LARGEST_SEED, ByUrl, NoEffect, Section
from distributed_ignn.config.suggest import suggest

OWN_FILE = "file"  # a graph of the user's, with data.path
IN_MEMORY = "memory"
"""Dataset of a run whose graph a Python program had in memory; the run's own shards hold it."""

FILE_SUFFIXES = (".pt", ".npz", ".mat", ".mtx", ".csv", ".tsv", ".txt", ".parquet", ".gz")
"""Endings of files of one's own; others are named by ``data.path``."""
FILE_KINDS = f"{', '.join(FILE_SUFFIXES[:-1])} or {FILE_SUFFIXES[-1]}"
LARGEST_GRAPH = 2**31 - 2  # nodes that 32-bit ids can name
_SMALLEST_CLASS = 10
_TAKEN: tuple[Literal["train"], Literal["val"]] = ("train", "val")
#: Training and validation nodes of a split that is drawn.
_SPLIT_SIZES = {"random": (0.6, 0.2), "per-class": (20.0, 30.0)}


@dataclass(frozen=True, slots=True)
class _Dataset(Choice):
    """A name in the list of datasets, or the path of a file."""

    def explain(self, text: str) -> str:
        """The names, then the rest."""
        return f"{', '.join(self.names())}, {text}"

    def placeholder(self) -> None:
        """Not the names alone."""

    def check(self, value: Any) -> str:
        """The value, if it is a name or may be a file."""
        if not isinstance(value, str):
            raise PydanticCustomError("string_type", "Input should be a valid string")
        names = self.names()
        if value in (*names, IN_MEMORY) or value.endswith(FILE_SUFFIXES):
            return value
        raise ValueError(
            f"is not known{suggest(value, names)}; choose {', '.join(names)}, or the path of a "
            f"{FILE_KINDS} file"
        )


_DATASETS = _Dataset(choices.DATASETS)


def dataset_names() -> tuple[str, ...]:
    """Of all datasets, ``file`` among them."""
    return _DATASETS.names()


def digits_to_int(value: Any) -> Any:
    """A command line delivers text, and a Literal of numbers does not convert it by itself."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


EdgeWeights = Literal["auto", "use", "ignore"]
Directions = Literal["undirected", "both", "auto"]
DatasetName = Annotated[str, _DATASETS]
LabelRate = Annotated[Literal[20, 40, 60], BeforeValidator(digits_to_int)]


class ChainsConfig(Section):
    """The chains dataset: only the first node of a chain shows its class."""

    length: int = Field(20, ge=2, description="nodes in a chain")
    chains_per_class: int = Field(100, ge=1, description="chains of each class")
    classes: int = Field(2, ge=2, description="number of classes")
    noise: float = Field(0.0, ge=0, description="standard deviation of the feature noise")
    features: int = Field(100, ge=1, description="feature columns; at least one for each class")
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="seed of the noise and of the split")
    train_fraction: float = Field(0.05, gt=0, lt=1, description="share of training nodes")
    val_fraction: float = Field(0.1, gt=0, lt=1, description="share of validation nodes")

    @model_validator(mode="after")
    def _check(self) -> Self:
        nodes = self.length * self.chains_per_class * self.classes
        if nodes > LARGEST_GRAPH:
            raise ValueError(
                f"length = {self.length}, chains_per_class = {self.chains_per_class} and classes = "
                f"{self.classes} make {nodes:,} nodes; there may be {LARGEST_GRAPH:,} at most"
            )
        if self.features < self.classes:
            raise ValueError(
                f"features = {self.features} is below classes = {self.classes}; each class "
                "needs its own feature column"
            )
        if self.train_fraction + self.val_fraction >= 1:
            raise ValueError(
                f"train_fraction = {self.train_fraction} and val_fraction = {self.val_fraction} "
                "leave no test nodes; their sum must stay below 1"
            )
        return self


class SyntheticConfig(Section):
    """A heavy-tailed graph with the statistics of ogbn-products, at any scale."""

    scale: float = Field(
        0.001, gt=0, le=800, description="1 gives 2,449,029 nodes and 61,859,140 undirected edges"
    )
    seed: int = Field(
        0, ge=0, le=LARGEST_SEED, description="seed of edges, features, labels and split"
    )
    features: int = Field(100, ge=1, description="feature columns")
    classes: int = Field(47, ge=2, description="number of classes")
    communities: int = Field(
        0, ge=0, description="communities, each of one class (0: chosen from the node count)"
    )
    homophily: float = Field(
        0.65,
        ge=0,
        le=1,
        description="share of edges drawn inside a community; the others inside ever wider groups",
    )
    mean_degree: float = Field(0.0, ge=0, description="mean degree (0: 50.5, as ogbn-products)")
    exponent: float = Field(
        2.5, gt=2, description="power-law exponent of the degrees; above 2 for a finite mean"
    )
    feature_noise: float = Field(
        1.0, ge=0, description="standard deviation of the noise around a class centre"
    )


class HeterophilousConfig(Section):
    """A graph whose edges mostly join nodes of different classes, as a block model draws it."""

    nodes: int = Field(3000, ge=1, le=LARGEST_GRAPH, description="number of nodes")
    classes: int = Field(5, ge=2, description="number of classes, of equal size")
    mean_degree: float = Field(10.0, gt=0, description="mean number of neighbours")
    homophily: float = Field(
        0.1,
        ge=0,
        le=1,
        description="share of edges inside a class; the others join classes that lie next to each "
        "other on a ring",
    )
    features: int = Field(32, ge=1, description="feature columns, of Gaussian noise")
    signal: float = Field(
        1.0,
        ge=0,
        description="what a node's own features say: length of the class centres, in standard "
        "deviations of the noise",
    )
    seed: int = Field(
        0, ge=0, le=LARGEST_SEED, description="seed of edges, features, labels and split"
    )
    train_fraction: float = Field(0.2, gt=0, lt=1, description="share of training nodes")
    val_fraction: float = Field(0.2, gt=0, lt=1, description="share of validation nodes")

    @property
    def edges(self) -> tuple[int, int]:
        """Undirected edges inside classes, and between them."""
        total = round(self.nodes * self.mean_degree / 2)
        inside = round(total * self.homophily)
        return inside, total - inside

    @model_validator(mode="after")
    def _check(self) -> Self:
        size = self.nodes // self.classes  # of the smallest class
        if size < _SMALLEST_CLASS:
            raise ValueError(
                f"nodes = {self.nodes} are too few for classes = {self.classes}; use at least "
                f"{_SMALLEST_CLASS * self.classes}"
            )
        if self.train_fraction + self.val_fraction >= 1:
            raise ValueError(
                f"train_fraction = {self.train_fraction} and val_fraction = {self.val_fraction} "
                "leave no test nodes; their sum must stay below 1"
            )
        rings = 1 if self.classes == 2 else self.classes  # pairs of classes on the ring
        room = self.classes * (size * (size - 1) // 2), rings * size**2
        if any(2 * wanted > pairs for wanted, pairs in zip(self.edges, room, strict=True)):
            raise ValueError(
                f"mean_degree = {self.mean_degree} asks for more than half of all pairs of "
                f"nodes = {self.nodes} with homophily = {self.homophily}; lower it"
            )
        return self


class DataConfig(Section):
    """What is read and how it is prepared."""

    feature_norm: Literal["auto", "none", "row", "l2", "standard"] = Field(
        "none",
        description="row, l2: divide each node's features by their sum or their length; standard: "
        "subtract the mean of each column and divide by its standard deviation (sparse features "
        "are divided only); auto: by what the features are like",
    )
    knn: int = Field(
        0, ge=0, description="K of the feature nearest-neighbour graph as second channel (0: off)"
    )
    label_rate: LabelRate = Field(60, description="training labels a class (AM-GCN datasets)")
    train_fraction: float = Field(
        0.06,
        gt=0,
        lt=1,
        description="training nodes as a share of the labelled ones (amazon-all; the paper: .05 to "
        ".09)",
    )
    split_seed: int = Field(
        0,
        ge=0,
        le=LARGEST_SEED,
        description="seed of the random split (amazon-all, reddit2, and of your own graph with "
        "split random or per-class)",
    )
    split: Annotated[int, Field(ge=0)] | Literal["file", "random", "per-class"] = Field(
        "file",
        description="of your own graph; K: column K, from 0, of masks or lists of ids that hold "
        "several splits; random, per-class: drawn from all labelled nodes, or of each class",
    )
    split_train: float | None = Field(
        None,
        gt=0,
        description="training nodes of a drawn split: below 1 a share, from 1 on a number, of all "
        "or of each class (default: 0.6, per-class 20)",
    )
    split_val: float | None = Field(
        None, gt=0, description="the same of validation nodes (default: 0.2, per-class 30)"
    )
    path: Annotated[Path | None, ByUrl()] = Field(
        None, description="your own graph file, with --dataset file, or its URL"
    )
    nodes: Annotated[Path | None, ByUrl()] = Field(
        None,
        description="table of the nodes of your own graph (CSV or Parquet), or its URL, beside a "
        "file that holds edges alone: columns id, label, split, and features",
    )
    label: str | None = Field(
        None,
        description="name in the file of your own graph, or in its table of nodes, of what is to "
        "be predicted; of a Facebook100 file: status, gender, major, second_major, dorm, year or "
        "high_school (default: y, label and the like; gender)",
    )
    features: str | None = Field(
        None, description="the same of the features, in a file of named arrays (default: x, ...)"
    )
    adjacency: str | None = Field(
        None,
        description="the same of the edges: a matrix [n, n], or edge_index (default: edge_index, "
        "adj_t, in .mat files A, network, ...)",
    )
    edge_weights: EdgeWeights = Field(
        "auto",
        description="weights of the edges of your own graph (edge_weight, or edge_attr of one "
        "column); auto: used where there are some; use: there must be some; ignore: every edge "
        "counts 1",
    )
    directions: Directions = Field(
        "undirected",
        description="of the edges of your own graph; undirected: every edge counts both ways; "
        "both: in- and out-neighbours are two channels, each with weights of its own; auto: both "
        "where more than 5 % of the edges have no way back, unless all of them name the smaller id "
        "first, or all the larger",
    )
    chains: ChainsConfig = ChainsConfig()
    synthetic: SyntheticConfig = SyntheticConfig()
    heterophilous: HeterophilousConfig = HeterophilousConfig()

    @property
    def names(self) -> dict[str, str]:
        """The settings that name a part of a file, as far as they are set."""
        found = {key: getattr(self, key) for key in ("label", "features", "adjacency")}
        return {key: name for key, name in found.items() if name is not None}

    @property
    def draws_split(self) -> bool:
        """Whether the split of one's own graph is drawn."""
        return self.split in _SPLIT_SIZES

    def split_size(self, split: Literal["train", "val"]) -> float:
        """How many nodes a drawn split takes: a share below 1, a number from 1 on."""
        given = self.split_train if split == "train" else self.split_val
        usual = _SPLIT_SIZES[str(self.split)][0 if split == "train" else 1]
        return usual if given is None else given

    @model_validator(mode="after")
    def _check_split(self) -> Self:
        for key in ("split_train", "split_val"):
            size = getattr(self, key)
            if size is not None and not self.draws_split:
                raise NoEffect(
                    *(key, f"{size:g}"),
                    f"split = {self.split}; drop it, or add --data.split random",
                )
            if size is not None and size > 1 and size != round(size):
                raise ValueError(
                    f"{key} = {size:g} is neither a share below 1 nor a whole number; round it"
                )
        if self.draws_split:
            shares = [size for s in _TAKEN if (size := self.split_size(s)) < 1]
            if sum(shares) >= 1:
                raise ValueError(
                    f"split_train = {shares[0]:g} and split_val = {shares[1]:g} leave no test "
                    "nodes; their sum must stay below 1"
                )
        return self


class PartitionConfig(Section):
    """How the graph is divided among ranks."""

    dir: Annotated[Path | None, ByUrl()] = Field(
        None,
        description="folder of shards written by ignn partition, or its URL, reused as they are",
    )
    method: Annotated[str, Choice(choices.PARTITIONERS)] = Field(
        "metis", description="who decides; the others are baselines"
    )
    provider: Annotated[str, Choice(choices.METIS_PROVIDERS, ("auto",))] = Field(
        "auto",
        description="METIS library; auto: pyg-lib where it is installed, else pymetis; pyg-lib has "
        "the cut objective alone and neither seed nor imbalance, for which auto takes pymetis",
    )
    objective: Literal["volume", "cut"] = Field(
        "cut",
        description="cut: fewest edges between parts; volume: fewest halo rows, some per cent "
        "fewer on small graphs, but far slower on large ones",
    )
    balance: Literal["nodes", "edges", "both"] = Field(
        "both", description="what every part gets an equal share of"
    )
    order: Literal["locality", "id"] = Field(
        "locality",
        description="rows of a part: linked nodes near each other (faster products), or by id; "
        "interior before boundary nodes in both",
    )
    clusters: int = Field(
        0,
        ge=0,
        le=4096,
        description="clusters of the learned solver's coarse level, on which information jumps "
        "(0: none); pays on graphs of large diameter",
    )
    edge_weights: bool = Field(
        False,
        description="METIS cuts light edges rather than heavy ones, where edges have weights; "
        "needs objective cut",
    )
    imbalance: float = Field(1.05, ge=1, description="largest part over the mean part")
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="seed of the partitioner")

    @property
    def only_pymetis(self) -> str | None:
        """The first setting, as ``key = value``, that pyg-lib's METIS cannot follow; None: all."""
        for key in ("objective", "imbalance", "seed"):
            if getattr(self, key) != type(self).model_fields[key].default:
                return f"{key} = {getattr(self, key)}"
        return None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.method == "metis" and self.provider == "pyg-lib" and self.only_pymetis:
            raise ValueError(
                f"provider = pyg-lib cannot follow {self.only_pymetis}: it has the cut objective "
                "alone, and neither seed nor imbalance; add --partition.provider pymetis or drop it"
            )
        if not self.edge_weights:
            return self
        if self.method != "metis":
            raise NoEffect(
                *("edge_weights", "true"),
                f"method = {self.method}, only METIS reads weights; choose method = metis or drop "
                "it",
            )
        if self.objective != "cut":
            raise NoEffect(
                *("edge_weights", "true"),
                f"objective = {self.objective}, which counts rows and not edges; add "
                "--partition.objective cut or drop it",
            )
        return self
