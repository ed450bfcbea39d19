"""Explicit models (``model.kind``): their settings, and which of a run's settings they read.

An explicit model has no equilibrium, so settings of solves mean nothing to it. A setting without
effect is refused where a user gave it; of the files that come with a dataset only what an explicit
model reads is taken, with the defaults of the kind (``configs/baselines/KIND.yaml``) beneath.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field

from distributed_ignn.config import choices
from distributed_ignn.config.choices import Choice
from distributed_ignn.config.section import Section

IMPLICIT = "implicit"
KINDS = Choice(choices.KINDS, (IMPLICIT,))
"""What ``model.kind`` may be."""


class ExplicitConfig(Section):
    """The explicit models of model.kind; each reads some of these."""

    layers: int = Field(2, ge=1, le=10_000, description="layers, or steps of propagation")
    heads: int = Field(3, ge=1, le=1024, description="gat: attention heads of a layer")
    teleport: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="appnp, gcnii: share of its first state that a node keeps in every layer",
    )
    identity: float = Field(
        0.5,
        gt=0,
        description="gcnii: W counts log(1 + identity / l) in layer l, and the identity the rest",
    )
    jump: Literal["max", "cat"] = Field(
        "max", description="jknet: how the layers' states are put together"
    )
    hash_width: int = Field(
        256, ge=1, le=2**20, description="demonet: width that neighbours' means are hashed to"
    )
    similarity: float = Field(
        1e-3, ge=0, description="amgcn: weight of the two common embeddings' likeness"
    )
    disparity: float = Field(
        1e-3, ge=0, description="amgcn: weight of what own and common embeddings share"
    )


_SOLVES = ("forward", "adjoint", "solver", "schedule")
_MODEL = ("kind", "hidden", "dropout", "input_dropout", "node_dropout")
_TRAIN = (
    "local_steps",
    "local_lr",
    "jacobian_weight",
    "spectral_weight",
    "prior_bias",
    "loose_tolerance",
    "kernel",
    "offload",
    "rollback_kappa_factor",
)
TWO_GRAPHS = "amgcn"
"""The kind that reads the neighbour graph of the features beside the dataset's own."""


def is_explicit(kind: object) -> bool:
    """Whether a kind is one of the list of explicit models; not for what is no kind at all."""
    return isinstance(kind, str) and kind in KINDS.listed()


def unread(kind: str, run: BaseModel) -> Iterator[tuple[str, str, BaseModel]]:
    """Section, key and the section's values, of every setting that a kind does not read.

    Args:
        kind: of ``model.kind``.
        run: the settings of a run.
    """
    for section in ("explicit", *_SOLVES, "model", "train", "comm", "data", "partition"):
        values = getattr(run, section)
        for key in type(values).model_fields:
            if not reads(kind, section, key):
                yield section, key, values


def reads(kind: str, section: str, key: str) -> bool:
    """Whether a kind reads the setting of a section."""
    if kind == IMPLICIT:
        return section != "explicit"
    if section == "explicit":
        return key in KINDS.entry(kind).reads
    if section == "model":
        return key in _MODEL
    not_read = {
        **dict.fromkeys(_SOLVES, (key,)),
        "train": _TRAIN,
        "comm": ("halo", "stale"),
        "data": ("directions",) if kind == TWO_GRAPHS else ("directions", "knn"),
        "partition": ("clusters",),
    }
    return key not in not_read.get(section, ())


def of_dataset(kind: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """What a dataset's file, chosen for the implicit model, says that holds for a kind as well.

    The graph, its division and the width; how the implicit model is regularised and stepped does
    not.

    Args:
        kind: of an explicit model.
        values: of the file, by section.
    """
    kept: dict[str, Any] = {
        key: value for key, value in values.items() if not isinstance(value, Mapping)
    }
    for section in ("data", "partition", "model"):
        found = values.get(section, {})
        chosen = {
            key: value
            for key, value in found.items()
            if reads(kind, section, key) and (section != "model" or key == "hidden")
        }
        kept |= {section: chosen} if chosen else {}
    return kept
