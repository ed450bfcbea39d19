"""The training loop, and how ranks talk."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from distributed_ignn.config import choices
from distributed_ignn.config.choices import Choice, Choices
from distributed_ignn.config.section import Section

Metric = Literal["auto", "accuracy", "roc_auc", "macro_f1", "micro_f1"]


class TrainConfig(Section):
    """The training loop."""

    epochs: int = Field(100, ge=1, description="full-graph gradient steps")
    lr: float = Field(0.002, gt=0, description="learning rate of the model")
    local_steps: Annotated[int, Field(ge=0, le=4096)] | Literal["auto"] = Field(
        0,
        description="optimiser steps after each exact one, on the training rows with their "
        "neighbours' states frozen; they fade out before the last epochs (0: none; auto: none on "
        "small graphs, else 4 to 32, fewer where more nodes are for training)",
    )
    local_lr: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        0.0, description="learning rate of local steps (0: train.lr; auto: that, but at most 0.02)"
    )
    loose_tolerance: Annotated[float, Field(ge=0, lt=1)] | Literal["auto"] = Field(
        "auto",
        description="while the loss falls fast, solves of training and validation may stop at this "
        "relative residual; in the last fifth of the epochs, and where an epoch is chosen, they go "
        "to their own tolerance (0: always; auto: 0.01 from 20,000 nodes on, else 0)",
    )
    weight_decay: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        5e-4,
        description="Adam's weight decay (auto: by the labels there are, as for graphs of "
        "your own)",
    )
    clip_norm: float = Field(
        0.0,
        ge=0,
        description="largest norm of the gradient of all parameters and ranks; longer ones, those "
        "of local steps too, are scaled down to it (0: none); for maps that hardly contract, whose "
        "first gradients may be 100,000 times the later ones and stay in Adam's memory",
    )
    jacobian_weight: float = Field(
        0.0, ge=0, description="weight of the squared Jacobian of the map at Z*, per entry"
    )
    spectral_weight: float = Field(
        0.0, ge=0, description="weight of half the squared spectral norm of W"
    )
    loss: Literal["auto", "cross_entropy", "bce"] = Field(
        "auto", description="auto: cross_entropy for one label a node, bce for several"
    )
    prior_bias: bool = Field(
        False,
        description="start the readout's bias at the log-odds of each label among the training "
        "nodes (cross_entropy: its log-probability), so that the first steps need not drive all "
        "logits down; for bce and many classes",
    )
    metric: Metric = Field(
        "auto",
        description="what validation chooses by; auto: accuracy for one label a node, micro_f1 "
        "for several; roc_auc: for two classes, or the mean over the columns of several labels",
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] | Literal["auto"] = Field(
        0.0,
        description="share of the label's weight spread over all classes (auto: by the labels)",
    )
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay of the running mean of the weights that is validated and kept (0: off)",
    )
    consistency: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        0.0,
        description="weight of the distance between the predictions of several dropout masks and "
        "their sharpened mean, over all nodes (0: off; auto: where labels are few)",
    )
    consistency_samples: int = Field(2, ge=1, description="dropout masks a step, a solve for each")
    consistency_temperature: float = Field(
        0.5, ge=0.1, le=1, description="of the sharpening of the mean prediction"
    )
    consistency_warmup: int = Field(
        0, ge=0, description="epochs in which the weight of the consistency rises to its value"
    )
    eval_every: int = Field(1, ge=1, description="epochs between validations")
    checkpoint_every: int = Field(10, ge=1, description="epochs between checkpoints")
    keep_checkpoints: int = Field(
        2,
        ge=1,
        description="newest checkpoints kept, besides the one with the best validation and the "
        "newest whose solves converged; each holds the best weights so far too",
    )
    async_checkpoints: Literal["auto", "true", "false"] = Field(
        "auto",
        description="write checkpoints in a thread while training goes on, from a copy in main "
        "memory; auto: on GPUs, whose states are copied in any case",
    )
    grace_seconds: float = Field(
        120.0,
        gt=0,
        description="after SIGTERM, SIGINT or SIGHUP, seconds to finish the epoch and write a "
        "checkpoint; then the run ends without",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="lowest level that logs/rank-N.jsonl of each rank holds"
    )
    loggers: Annotated[str, Choices(choices.LOGGERS, ("none",))] = Field(
        "tensorboard", description="who is told the figures of every epoch, beside metrics.jsonl"
    )
    patience: int = Field(
        0, ge=0, description="stop after so many validations without a better one (0: off)"
    )
    dtype: Literal["float32", "float64"] = Field("float32", description="number format")
    threads: int = Field(
        0,
        ge=0,
        le=4096,
        description="CPU threads of each rank (0: OMP_NUM_THREADS, or cores divided by "
        "local ranks)",
    )
    offload: bool = Field(
        False,
        description="on a GPU: warm starts of solves that are not running, and the moments of a "
        "node embedding between steps, wait in host memory; the same numbers",
    )
    kernel: Annotated[str, Choice(choices.KERNELS, ("auto",))] = Field(
        "auto", description="sparse product; auto: what suits the device and the number format"
    )
    on_bad_numbers: Literal["stop", "rollback", "skip"] = Field(
        "stop",
        description="what to do about NaN or Inf, a diverging solve or an exploding loss, on "
        "whatever rank; stop: end the run, rollback: go back to the last checkpoint whose "
        "solves converged with a smaller learning rate, skip: leave the step out",
    )
    explode_factor: float = Field(
        100.0,
        ge=0,
        description="a training loss above so many times the lowest so far, or above so many "
        "nats if that was below 1, has exploded (0: off)",
    )
    rollback_lr_factor: float = Field(
        0.5, gt=0, le=1, description="the learning rate is multiplied by it at every rollback"
    )
    rollback_kappa_factor: float = Field(
        1.0, gt=0, le=1, description="so is the bound kappa (1: it stays)"
    )
    max_bad_steps: int = Field(
        5, ge=1, description="rollbacks in all, or skipped epochs in a row, before the run stops"
    )
    keep_freed: bool = Field(
        True,
        description="on CPUs: keep freed memory for the next array where the machine has twice "
        "what its ranks need with it, which makes epochs shorter; false: give it back at once",
    )
    memory_limit: float = Field(
        0.0,
        ge=0,
        description="GiB that the ranks of one machine, or of one GPU, may use together; a run "
        "that needs more is refused before it starts (0: what there is)",
    )


class CommConfig(Section):
    """How ranks talk to each other."""

    halo: Annotated[str, Choice(choices.CODECS, ("auto",))] = Field(
        "auto",
        description="how halo rows are written inside iterations; fp32: as they are, in "
        "train.dtype; the others: their change in so many bits, with the same fixed point; auto: "
        "int4 between machines without GPUs, else fp32",
    )
    shared_memory: bool = Field(
        True, description="exchange rows through shared memory where all ranks are on one machine"
    )
    stale: bool = Field(
        False,
        description="hide each exchange behind the next evaluation, which uses rows that are one "
        "evaluation old; the last evaluations of a solve use fresh ones",
    )

    backend: Literal["auto", "gloo", "nccl"] = Field(
        "auto", description="auto: nccl on GPUs, gloo on CPUs"
    )
    timeout_seconds: int = Field(
        1800,
        ge=1,
        le=10**7,
        description="a rank that waits longer than this for the others gives up",
    )
    hang_seconds: float = Field(
        120.0,
        ge=0,
        description="a rank that has given no sign of life for so long is named, and the job ends "
        "with code 75 (0: nobody watches)",
    )
