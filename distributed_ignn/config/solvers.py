"""How fixed points are found, and how the learned solver is shaped and trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from distributed_ignn.config import choices
from distributed_ignn.config.choices import Choice
from distributed_ignn.config.section import Section


class SolveLimits(Section):
    """What both solves have in common: when to stop, and the settings of methods."""

    tolerance: float = Field(1e-4, gt=0, description="relative residual at which to stop")
    max_steps: int = Field(50, ge=1, description="most steps of one solve")
    memory: int = Field(
        5,
        ge=1,
        description="past iterates or steps that the method uses (M), also in a warm-up; the "
        "learned solver has solver.memory",
    )
    beta: float = Field(1.0, gt=0, le=1, description="mixing factor of anderson and picard")
    regularization: float = Field(
        1e-8,
        ge=0,
        description="added to Anderson's Gram matrix, relative to each residual's square",
    )
    warm_start: bool = Field(True, description="start from the solution of the last epoch")
    capture: int = Field(
        0,
        ge=0,
        le=1000,
        description="evaluations that a GPU is handed at once, as a recorded graph, and whose "
        "residuals are read together, with anderson and picard; the same iterates, and up to so "
        "many evaluations after the last; 0: each by itself",
    )
    history_dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="number format of the past iterates, kept as differences; bfloat16 halves "
        "their memory; auto: that of train.dtype",
    )


class SolveConfig(SolveLimits):
    """How the forward fixed point is found."""

    method: Annotated[str, Choice(choices.METHODS)] = Field("anderson", description="the method")


class AdjointConfig(SolveLimits):
    """How the backward fixed point is found."""

    method: Annotated[str, Choice(choices.METHODS, ("auto",))] = Field(
        "auto",
        description="as of the forward solve; neural has an error estimator of its own here; auto: "
        "neural where the forward solve has one, else anderson",
    )


class NeuralSolverConfig(Section):
    """The learned solver: its shape and how it is trained."""

    kind: Annotated[str, Choice(choices.SOLVER_KINDS)] = Field(
        "estimator", description="what is learned"
    )
    initialiser: Literal["graph", "own", "none"] = Field(
        "graph",
        description="how the first point is guessed; own: without neighbours, none: f(0); kind "
        "paper has an MLP of the features, or none",
    )
    bottleneck: int = Field(32, ge=1, description="inner width d' of that MLP")
    initialiser_hops: int = Field(1, ge=1, description="hops of a graph initialiser")
    estimator: Literal["graph", "own", "none"] = Field(
        "graph",
        description="how a step estimates the error from the residual; own: without neighbours, "
        "none: beta is a number",
    )
    estimator_hops: int = Field(1, ge=1, description="hops of a graph estimator")
    estimator_steps: int = Field(
        0,
        ge=0,
        description="steps with coefficients of their own; later ones use the last (0: 1, or 3 "
        "with a coarse level)",
    )
    fit_nodes: int = Field(
        100_000, ge=1, description="most nodes that initialiser and estimator are fitted to"
    )
    network: Annotated[str, Choice(choices.NETWORKS, ("none",))] = Field(
        "none",
        description="a network that corrects the mixing weights; table: free weights per step",
    )
    alpha: Annotated[str, Choice(choices.SCOPES)] = Field(
        "global", description="mixing weights for the whole graph, or for each node"
    )
    memory: int = Field(5, ge=1, description="past residuals that it sees (M)")
    steps: int = Field(
        10, ge=1, description="steps that the network is trained for, and ours has a say in (K)"
    )
    compress: int = Field(16, ge=1, description="width p that a row is compressed to")
    hidden: int = Field(16, ge=1, description="inner width of the network")
    sparsifier: Annotated[str, Choice(choices.SPARSIFIERS, ("none",))] = Field(
        "none", description="how the graph of estimator and network is thinned"
    )
    keep: float = Field(0.3, gt=0, le=1, description="share of edges kept in its graph")
    graph_layer: bool = Field(
        True,
        description="kind paper: whether its network reads the neighbours' residuals; false: the "
        "plain network that the paper calls NN",
    )
    lambda1: float = Field(
        0.3,
        ge=0,
        description="weight of the distances to the fixed point (0: the estimator stays untrained)",
    )
    lambda1_steps: Literal["rising", "constant", "last"] = Field(
        "rising",
        description="how that weight is shared among the K steps (kind paper): growing to its full "
        "value, the same for all, or the last step's alone",
    )
    lambda2: float = Field(
        5.0,
        ge=0,
        description="weight of the initialiser's distance (0: it stays untrained)",
    )
    lambda3: float = Field(1e-4, ge=0, description="weight of the mixed residuals (network)")
    lr: float = Field(0.005, gt=0, description="learning rate of the network")
    training: Literal["unrolled", "one_step"] = Field(
        "unrolled",
        description="how kind paper is trained; unrolled: back through all K steps, as the paper "
        "does; one_step: each step for the point it leads to, for less time and memory",
    )
    safeguard: bool = Field(
        True, description="take back learned steps that do not reduce the residual"
    )
    target_tolerance: float = Field(
        1e-4, gt=0, description="relative residual of the fixed points it learns from"
    )
    target_max_steps: int = Field(200, ge=1, description="most steps to find such a point")


class ScheduleConfig(Section):
    """How model and solver training alternate (only with forward.method neural)."""

    warmup_epochs: int = Field(
        10, ge=0, description="model epochs with Anderson before the solver is trained"
    )
    warmup_solver_steps: int = Field(20, ge=0, description="network steps after the warm-up")
    model_steps: int = Field(40, ge=1, description="model epochs between solver phases (T1)")
    solver_steps: int = Field(2, ge=0, description="network steps in a later phase (T2)")
