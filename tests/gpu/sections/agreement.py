"""Every rank count and every kernel gives the numbers of one process on the CPU."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from tests.gpu.setting import Budget, Setting
from tests.gpu.verdicts import Check, at_most, holds, left_out
from tests.parity.cases import CASES, report_all, sum_reports
from tests.pseudo_gpu.scenarios import course
from tests.training.small_trainers import small_config, small_trainer

FLOAT64, FLOAT32 = 1e-9, 1e-6
"""Largest relative differences; the kernels of Triton add in float32."""

OFFLOADED = "states in host memory"
WAYS: dict[str, dict[str, dict[str, Any]]] = {
    "recorded solves": {"forward": {"capture": 4}, "adjoint": {"capture": 4}},
    OFFLOADED: {},
    "old halo rows": {"comm": {"stale": True}},
}
"""What is trained otherwise than the parity cases, and the settings that ask for it."""

_SOLVES = {"method": "anderson", "tolerance": 1e-12, "max_steps": 300}
_TIGHT: dict[str, dict[str, Any]] = {
    "forward": _SOLVES,
    "adjoint": _SOLVES,
    "model": {"kappa": 0.5},
    "train": {"epochs": 3},
    "comm": {},
}

Reports = Mapping[str, Mapping[str, Tensor]]


def look(budget: Budget) -> Iterator[Check]:
    """Parity, other ways to train, then Triton."""
    yield from parity(budget)
    yield from other_ways(budget)
    yield from triton(budget)


def parity(budget: Budget) -> Iterator[Check]:
    """One rank and more over NCCL, or over gloo where ranks share a GPU, against the CPU."""
    (expected,) = budget.ranks(report, 1, device="cpu")
    for ranks in budget.setting.worlds():
        found = sum_reports(budget.ranks(report, ranks))
        case, name, error = worst(expected, found)
        how = f"{ranks} ranks, {budget.setting.backend(ranks)}" if ranks > 1 else "1 rank"
        yield at_most(f"parity with the CPU, {how}", error, FLOAT64, note=f"{case}: {name}")


def report(comm: Communicator, setting: Setting) -> dict[str, dict[str, Tensor]]:
    """Of the parity cases in float64."""
    return report_all(comm, "float64", setting.sizes.cases or CASES)


def worst(expected: Reports, found: Reports) -> tuple[str, str, float]:
    """Case, name and size of the largest relative difference.

    What trained parts of the learned solver end up with is left out: Adam divides by a gradient's
    own size, which makes the last digit of one that is nearly zero a visible one.
    """
    largest = ("", "", 0.0)
    for case, values in expected.items():
        for name, value in values.items():
            if name.startswith(("<", "solver", "trained")):
                continue
            scale = max(float(value.abs().max()), 1e-30) if value.numel() else 1.0
            gap = (value - found[case][name]).abs()
            error = float(gap.max()) / scale if gap.numel() else 0.0
            if not error <= largest[2]:  # so that one that is not a number counts
                largest = case, name, error
    return largest


def other_ways(budget: Budget) -> Iterator[Check]:
    """What the parity cases leave out, on as many ranks, against one process of the CPU."""
    setting = budget.setting
    (expected,) = budget.ranks(ways, 1, device="cpu")
    for ranks in setting.worlds():
        found = sum_reports(budget.ranks(ways, ranks))
        for name in WAYS:
            _, where, error = worst({name: expected[name]}, found)
            yield at_most(f"{name}, {ranks} ranks", error, FLOAT64, note=where)
        if setting.kind != "cpu" and setting.backend(ranks) != "gloo":
            graphs = float(found["recorded solves"]["<graphs>"])
            yield holds(f"solves are recorded, {ranks} ranks", graphs > 0.0)


def ways(comm: Communicator, setting: Setting) -> dict[str, dict[str, Tensor]]:
    """Losses and weights of three epochs each way, and how many graphs were recorded.

    Solves are so tight that old halo rows end at the same point.
    """
    found = {}
    for name, changes in WAYS.items():
        sections = {part: _TIGHT[part] | changes.get(part, {}) for part in {*_TIGHT, *changes}}
        sections["train"] |= {"offload": name == OFFLOADED and comm.device.type == "cuda"}
        trainer = small_trainer(comm, small_config(sections))
        found[name] = course(trainer, 3)
        loops = [x for group in trainer.planner._captures.values() for x in group._loops.values()]
        graphs = sum(len(loop._recorder._graphs) for loop in loops)
        found[name]["<graphs>"] = torch.tensor(float(graphs))
    return found


def triton(budget: Budget) -> Iterator[Check]:
    """The kernels against float64: compiled on a GPU, interpreted on a CPU."""
    setting = budget.setting
    if importlib.util.find_spec("triton") is None or setting.kind == "emulated":
        why = "not installed" if setting.kind != "emulated" else "an emulated GPU runs no kernels"
        yield left_out("Triton's kernels", why)
        return
    interpret = {"TRITON_INTERPRET": "1"} if setting.kind == "cpu" else {}
    with mock.patch.dict(os.environ, interpret):
        (errors,) = budget.ranks(kernel_errors, 1)
        for name, (error, limit) in errors.items():
            yield at_most(f"Triton, {name}", error, limit)
        (expected,) = budget.ranks(cells, 1, "reduce", device="cpu")
        for ranks in (1, 2):
            found = sum_reports(budget.ranks(cells, ranks, "triton"))
            fused = all(
                float(values["<known>"]) == (0 if case.endswith("mixed") else ranks)
                for case, values in found.items()
            )
            yield holds(f"Triton, cells in one kernel, {ranks} ranks", fused)
            gap = max(
                float((found[case][name] - value).norm() / value.norm())
                for case, values in expected.items()
                for name, value in values.items()
                if not name.startswith("<")
            )
            yield at_most(f"Triton, cells, {ranks} ranks", gap, FLOAT32)


def cells(comm: Communicator, setting: Setting, kernel: str) -> dict[str, dict[str, Tensor]]:
    """Images, products and fixed points of cells on awkward graphs."""
    from tests.propagation.triton_cases import cell_report  # needs Triton

    with untuned():
        return cell_report(comm, kernel)


@contextmanager
def untuned(place: int = 0) -> Iterator[None]:
    """Run the product in one of its configurations alone.

    They are compiled and timed for every kind of entries and width: for all that is tried here this
    would take minutes. They add in the same order.
    """
    from distributed_ignn.propagation.triton_kernels import product_kernel

    with mock.patch.object(product_kernel, "configs", [product_kernel.configs[place]]):
        yield


def kernel_errors(comm: Communicator, setting: Setting) -> dict[str, tuple[float, float]]:
    """Largest error of each kernel over all kinds of entries and widths, and its limit.

    The product is tried on all of them in its first configuration, in the others on one.
    """
    from distributed_ignn.propagation.triton_kernels import product_kernel
    from tests.propagation.triton_cases import usual_product_error

    with untuned():
        found = _errors_of_first(comm, setting)
    errors = [0.0]
    for place in range(1, len(product_kernel.configs)):
        with untuned(place):
            errors.append(usual_product_error(comm))
    return found | {"products in other configurations": (max(errors), FLOAT32)}


def _errors_of_first(comm: Communicator, setting: Setting) -> dict[str, tuple[float, float]]:
    from tests.propagation.triton_cases import evaluation_errors, not_a_number, product_errors

    found = {"products": (max(product_errors(comm).values()), FLOAT32)}
    for state in (torch.float32, torch.bfloat16):
        # of bfloat16; the interpreter cuts digits off where a GPU rounds
        digits = 2.0**-8 if setting.real else 2.0**-7
        rounding = FLOAT32 if state is torch.float32 else digits + FLOAT32
        reports = evaluation_errors(comm, state).values()
        name = str(state).removeprefix("torch.")
        found[f"images, {name}"] = max(one["image"] for one in reports), rounding
        found[f"squares, {name}"] = max(one["squares"] for one in reports), FLOAT32
    found["NaN is kept (1: it is not)"] = 0.0 if all(not_a_number(comm)) else 1.0, 0.0
    return found
