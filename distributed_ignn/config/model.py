"""The model."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from distributed_ignn.config import choices
from distributed_ignn.config.choices import Choice
from distributed_ignn.config.dataset import digits_to_int
from distributed_ignn.config.section import NoEffect, Section

OF_FEATURES = (
    *("input_dropout", "node_dropout"),
    *("injection", "injection_layers", "injection_norm", "bias"),
)
"""Settings that the implicit model reads where nodes have features: without, their embedding is b,
and nothing is mapped or dropped on the way to it."""

InjectionLayers = Annotated[Literal[1, 2], BeforeValidator(digits_to_int)]


class ModelConfig(Section):
    """The model: Z = relu(A_hat Z W + b(X)) and its readout, unless its kind is another."""

    kind: Annotated[str, Choice(choices.KINDS, ("implicit",))] = Field(
        "implicit",
        description="implicit: an equilibrium; the others are explicit networks, whose settings "
        "are explicit.*, and which read none of those of solves and maps",
    )
    hidden: int = Field(128, ge=1, le=2**20, description="width D of the equilibrium, or of layers")
    cell: Annotated[str, Choice(choices.CELLS)] = Field("ignn", description="how W is parametrised")
    kappa: float = Field(
        0.95,
        gt=0,
        lt=1,
        description="below 1: the equilibrium is unique; ignn: bound on the column sums of |W|, "
        "eignn: its gamma, mignn: 1 - m",
    )
    learn_kappa: bool = Field(
        False, description="learn kappa, with the value above as its upper bound"
    )
    skew: float = Field(
        0.1,
        ge=0,
        description="mignn: bound on the skew part of W; 0: symmetric W and the fastest solves",
    )
    residual: float = Field(
        0.0, ge=0, lt=1, description="share r of a node's own state: propagate (1 - r) A_hat + r I"
    )
    normalisation: Literal["auto", "symmetric", "row"] = Field(
        "auto",
        description="A_hat: symmetric, D~^-1/2 (A + I) D~^-1/2, or row, D~^-1 (A + I), a mean over "
        "neighbours, which leaves kappa whole however many channels there are; auto: row where "
        "data.directions makes two of a directed graph",
    )
    init: Literal["glorot", "identity", "signed"] = Field(
        "glorot",
        description="identity: W starts as a multiple of I in the channels of the injection, so "
        "signals travel at once; signed: the same with the opposite sign for every second column, "
        "which begins with what sets a node apart from its neighbours (cell ignn)",
    )
    constraint: Literal["projection", "none"] = Field(
        "projection", description="none drops the bound; training may diverge"
    )
    dropout: float = Field(
        0.5, ge=0, lt=1, description="dropout on the equilibrium Z*, or between layers"
    )
    input_dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the features X")
    node_dropout: float = Field(
        0.0, ge=0, lt=1, description="share of nodes whose features are dropped as a whole"
    )
    injection: Literal["features", "propagated", "both"] = Field(
        "both", description="b(X) from X, from A_hat X, or from their sum"
    )
    injection_channels: Literal["all", "graph", "knn"] = Field(
        "all",
        description="the A_hat of the injection, and where an identity starts: every channel, the "
        "dataset's own graph, or the neighbour graph of data.knn",
    )
    injection_layers: InjectionLayers = Field(
        1, description="2: relu(X Theta) takes the place of X in b(X)"
    )
    injection_norm: Literal["none", "layer"] = Field(
        "none", description="layer: normalise each node's row of b(X), then scale and shift it"
    )
    bias: bool = Field(True, description="add a learned bias to b(X)")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.init == "signed" and self.cell != "ignn":
            raise NoEffect(
                *("init", "signed"),
                f"cell = {self.cell}, whose W starts otherwise; use cell = ignn or init = identity",
            )
        return self

    @property
    def fixed_injection(self) -> bool:
        """Whether training and validation solve the same map: nothing in b(X) is dropped."""
        inner = self.dropout if self.injection_layers == 2 else 0.0
        return self.input_dropout == self.node_dropout == inner == 0.0

    @property
    def without_features(self) -> ModelConfig:
        """The section as an implicit model reads it on a graph whose nodes have no features."""
        fields = type(self).model_fields
        return self.model_copy(update={name: fields[name].default for name in OF_FEATURES})
