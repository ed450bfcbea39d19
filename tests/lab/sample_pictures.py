"""Every picture of the package, drawn from figures made up to be like those of real studies."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from distributed_ignn.api import convergence_plot
from distributed_ignn.config import RunConfig
from distributed_ignn.lab.benchmarks import accuracy_plot, codec_study, scaling_plot
from distributed_ignn.lab.benchmarks.courses import Course, Effort, Point
from distributed_ignn.lab.benchmarks.pareto import draw_pareto
from distributed_ignn.lab.benchmarks.scaling import Row, with_efficiency
from distributed_ignn.lab.benchmarks.sparsifier_plot import draw_quality
from distributed_ignn.lab.benchmarks.tracing import Method, Step
from distributed_ignn.lab.planning import report
from distributed_ignn.lab.planning.forecast import forecast
from distributed_ignn.lab.studies import convergence, cost, dynamics, long_range, rivals
from distributed_ignn.lab.studies.tables.inference_plot import draw_inference
from distributed_ignn.lab.studies.tables.table_models import MODELS
from distributed_ignn.plots import Picture
from tests.lab.planning.small import machine, part, with_codec

_CODECS = ("fp32", "bf16", "int8", "int4", "int3", "int2")


def _noise(scale: float) -> float:
    return random.gauss(1.0, scale)


def _solve(name: str, seed: int, factor: float, start: float = 1.0) -> Iterator[dict[str, Any]]:
    """A method on its way to a distance of 1e-6."""
    distance, k = start, 0
    while True:
        residual = 0.8 * distance * _noise(0.1)
        yield {
            **{"seed": seed, "method": name, "evaluations": k, "safeguard": None},
            **{"distance": distance, "residual": residual, "metric": 0.7},
        }
        if distance < 1e-6 or k == 300:
            return
        distance, k = distance * min(factor * abs(_noise(0.25)), 0.97), k + 1


def _solves(methods: int, seeds: int = 1) -> list[dict[str, Any]]:
    names = (
        *("picard, zero", "anderson, zero", "anderson, initialiser"),
        *("closed form, all terms, initialiser", "graph network, lambda3 = 0 (no mixed residuals)"),
        *(f"variant {place}, initialiser" for place in range(20)),
    )
    found: list[dict[str, Any]] = []
    for seed in range(seeds):
        for place, name in enumerate(names[:methods]):
            factor = 0.9 if place == 0 else 0.35 + 0.025 * place
            found += _solve(name, seed, factor, 1.0 if place < 2 else 0.25)
    return found


def _figure3() -> Picture:
    rows = [{"time_share": 0.023 + 0.004 * k, "parameter_share": 0.012} for k in range(3)]
    return cost._draw(rows, "citeseer")


def _figure4() -> Picture:
    horizons = {"learned": 1, "graph network": 6, "paper with its own": 6}
    return convergence.draw(_solves(6, 3), "convergence past the training horizon, acm", horizons)


def _figure5() -> Picture:
    horizons = {"closed form": 1, "graph network": 6, "paper": 6}
    return convergence.draw(_solves(13), "terms of the solver's loss, citeseer", horizons)


def _figure7() -> Picture:
    rows = _solves(21)
    panels = {"safeguard off": rows, "safeguard on": [dict(row) for row in rows]}
    horizons = {"closed form": 1, "graph network": 6, "paper": 6}
    title = "learned solvers, networks of 100 steps: citeseer"
    return convergence.draw_side_by_side(panels, "residual", title, horizons)


def _figure8() -> Picture:
    rows = [
        {
            **{"seed": seed, "method": method, "epoch": epoch},
            "loss": 1.8 * math.exp(-epoch / 20) * _noise(0.02) + 0.1,
            "val_metric": 0.7 * (1 - math.exp(-epoch / 8)) * _noise(0.01),
            "evaluations_forward": 3 + 4 * place,
            "evaluations_validation": 3 + 2 * place + (epoch + seed) % 2,
            "seconds": (0.08 + 0.03 * place) * _noise(0.05)
            + 0.2 * (place == 0 and epoch % 10 == 5),
        }
        for place, method in enumerate(dynamics.METHODS)
        for seed in range(3)
        for epoch in range(1, 81)
    ]
    return dynamics._draw(rows, "training with and without the learned solver, citeseer")


def _long_range() -> Picture:
    rows = [
        {
            **{"length": length, "seed": seed, "model": model, "chosen": True},
            "test": min(1.0, max(0.5, 1.3 - 0.1 * place * length / 25) * abs(_noise(0.04))),
        }
        for place, model in enumerate(("implicit", "GCN", "SGC", "APPNP", "GCNII"))
        for length in long_range.LENGTHS
        for seed in range(3)
    ]
    return long_range._draw(rows, RunConfig(dataset="chains"))


def _rivals() -> Picture:
    models = (*rivals.RIVALS, rivals.IMPLICIT)
    rows = [
        {"model": model, "seed": seed, "test": 0.66 + 0.015 * place * _noise(0.1)}
        for place, model in enumerate(models)
        for seed in range(3)
    ]
    return rivals._draw(rows, "citeseer", "accuracy")


def _inference() -> Picture:
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for dataset in ("citeseer", "acm", "corafull", "blogcatalog"):
        found = curves.setdefault(dataset, {})
        for place, (name, model) in enumerate(MODELS.items()):
            best = 60 + place
            found[name] = [(2.0 + 1.7 * place, best)]
            if not model.explicit:
                found[name] = [
                    (3 + (2 + 0.2 * place) * k, best * (1 - 0.6 * 0.5**k)) for k in range(12)
                ]
    title = "figure6: metric over inference time, mean over seeds 0, 1, 2, 3, 4"
    return draw_inference(curves, dict.fromkeys(curves, "accuracy"), title)


def _pareto() -> Picture:
    starts = ("zero", "f(0)", "initialiser")
    methods: dict[str, Method] = {}
    measured: dict[str, list[Step]] = {}
    for place, name in enumerate(("picard", "anderson", "torchdeq", "learned", "graph network")):
        for at, start in enumerate(starts):
            method = Method(name, start, torch.zeros_like, lambda *_: None)
            methods[method.label] = method
            measured[method.label] = [
                Step(k, 0.5**k, 0.5**k, 0.72 * (1 - 0.8 * (0.7 - 0.1 * at) ** (k + at)), seconds)
                for k in range(12)
                for seconds in [(1 + k * (1 + 0.3 * place)) * 1e-3]
            ]
    return draw_pareto(methods, measured, 0.72, "citeseer, 1 rank")


def _codecs() -> Picture:
    names = (*_CODECS, "fp32, stale", "int4, stale")
    curves = {
        (method, name): [
            ((k + 1) * 2**20 * 0.8**place, 0.6 * (0.35 + 0.1 * at) ** k) for k in range(10)
        ]
        for at, method in enumerate(("picard", "anderson", "learned"))
        for place, name in enumerate(names)
    }
    return codec_study._draw(curves, "acm, 2 ranks")


def _sparsifier() -> Picture:
    shares = (0.1, 0.2, 0.3, 0.5, 0.7)
    points = [(name, name, 1.0, [0.02 * _noise(0.1)]) for name in ("channels", "whole", "no graph")]
    for place, method in enumerate(("random", "degree", "pri", "resistance")):
        for share in shares:
            middle = 0.05 * (1.2 - share) * (1 + 0.2 * place)
            draws = [middle * abs(_noise(0.15)) for _ in range(3)]
            points.append((f"{method} {share}", method, share, draws))
    return draw_quality(points, 4, "citeseer")


def _scaling() -> Picture:
    rows = [
        _row(study, ranks, link, halo, (0.8 - 0.1 * place) * slow * (1 + 0.15 * ranks))
        for study in ("strong", "weak")
        for link, slow in (("none", 1.0), ("200mbit+1ms", 1.6))
        for place, halo in enumerate(("fp32", "int4"))
        for ranks in (1, 2, 4, 8)
        if ranks > 1 or (link, halo) == ("none", "fp32")
    ]
    return scaling_plot.draw(with_efficiency(rows), "synthetic-products, scaling")


def _row(study: str, ranks: int, link: str, halo: str, seconds: float) -> Row:
    sent = 0.0 if ranks == 1 else 4e6 * ranks / (1 if halo == "fp32" else 6)
    seconds /= ranks if study == "strong" else 1
    return Row(
        **{"study": study, "ranks": ranks, "link": link, "halo": halo},  # type: ignore[arg-type]
        nodes=49_000,
        entries=2_400_000,
        seconds_epoch=seconds,
        seconds_solve=seconds / 4,
        evaluations_solve=5,
        bytes_epoch=sent,
        bytes_solve=sent / 3,
        seconds_exposed=0.02 * (ranks > 1) * seconds,
        peak_memory_bytes=round((2e9 + sent) / ranks),
    )


def _plan() -> Picture:
    ranks = (1, 2, 4, 8, 16, 64)
    found = {codec: forecast(part, ranks, with_codec(codec), machine()) for codec in _CODECS}
    return report.draw("111,059,956 nodes, 3,231,371,744 entries, D 128, 8 x H200", found)


def _accuracy() -> Picture:
    courses = []
    for place, name in enumerate(("exact", "local", "sage", "gcn", "learned", "picard", "cluster")):
        course, spent = Course(name), Effort()
        for epoch in range(1, 60):
            spent += Effort(0.3 * (1 + place), 9.0, 2_000_000 if place % 2 else 0)
            value = 0.93 * (1 - math.exp(-epoch / (4 + place))) * _noise(0.004)
            course.points.append(Point(epoch, spent, value))
        courses.append(course)
    return accuracy_plot.draw(courses, 0.9, "synthetic-products, 48,981 nodes")


def _training(kind: str = "implicit") -> Picture:
    records = [
        {
            **{"epoch": epoch, "loss": 1.8 * math.exp(-epoch / 20)},
            "train_metric": 1 - math.exp(-epoch / 6),
            "val_metric": 0.72 - 0.5 * math.exp(-epoch / 8) if epoch % 2 else None,
            "evaluations_forward": 5,
            "evaluations_validation": 4 + epoch % 2,
            "evaluations_confirmation": 3 * (epoch % 7 == 0),
            "evaluations_adjoint": 6,
            "residual": 8e-4 * _noise(0.2),
            "residual_adjoint": 6e-4 * _noise(0.2),
        }
        for epoch in range(1, 81)
    ]
    config = RunConfig.model_validate({"dataset": "chains", "model": {"kind": kind}})
    return convergence_plot.draw(records, config)


PICTURES: Mapping[str, Callable[[], Picture]] = {
    "figure2": _inference,
    "figure3": _figure3,
    "figure4": _figure4,
    "figure5": _figure5,
    "figure7": _figure7,
    "figure8": _figure8,
    "long-range": _long_range,
    "rivals": _rivals,
    "pareto": _pareto,
    "codecs": _codecs,
    "sparsifier": _sparsifier,
    "scaling": _scaling,
    "plan": _plan,
    "accuracy": _accuracy,
    "training": _training,
    "explicit": lambda: _training("gcn"),
}
