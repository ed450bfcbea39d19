"""Forecasts as tables, JSON and a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from distributed_ignn.errors import UserError
from distributed_ignn.files import atomic_write_json
from distributed_ignn.lab.planning.forecast import Forecast
from distributed_ignn.lab.planning.hardware import Asked, Profile
from distributed_ignn.lab.planning.host_work import Counted
from distributed_ignn.lab.planning.validation import Comparison
from distributed_ignn.plots import (
    GREY,
    Picture,
    ideal_line,
    legend_below,
    log_ticks,
    point_style,
    rank_ticks,
    save_picture,
    set_title,
    style,
)

_GB = 1e9


def show_forecasts(console: Console, title: str, found: Sequence[Forecast]) -> None:
    """One row per number of ranks."""
    table = Table(title=title)
    for name in (
        "ranks",
        "halo/owned",
        "GB a rank",
        "fits",
        "s an epoch",
        "efficiency",
        "exposed",
        "GB sent",
    ):
        table.add_column(name, justify="right")
    for one in found:
        table.add_row(
            f"{one.part.parts:,}",
            f"{one.part.halo / one.part.owned:.2f}",
            f"{one.bytes / _GB:.1f}",
            "yes" if one.fits else "no",
            f"{one.seconds:.3g}",
            f"{one.efficiency:.0%}",
            f"{one.cost.exposed / one.seconds:.0%}",
            f"{one.cost.sent * one.part.parts / _GB:.3g}",
        )
    console.print(table)


def show_host_work(console: Console, profile: Profile, found: Sequence[Forecast]) -> None:
    """Launches and syncs of an evaluation and of an epoch, where ranks have a device."""
    counted = [one for one in found if one.evaluation is not None]
    if not counted:
        return
    table = Table(title="what the host does: launches, syncs and their seconds")
    for name in ("ranks", "an evaluation", "an epoch", "s an epoch", "counts are"):
        table.add_column(name, justify="right")
    for one in counted:
        asked, measured = one.evaluation or Counted(Asked(launches=0, syncs=0), False)
        table.add_row(
            f"{one.part.parts:,}",
            f"{asked.launches:.3g}, {asked.syncs:.2g}",
            f"{one.cost.launches:,.0f}, {one.cost.syncs:,.0f}",
            f"{one.cost.starting:.2g}",
            "measured" if measured else "estimated",
        )
    console.print(table)
    origin = "measured" if profile.origin == "measured" else "assumed"
    waits = "unknown" if profile.sync_seconds is None else f"{profile.sync_seconds * 1e6:.3g} us"
    console.print(
        f"a launch takes {profile.operation_seconds * 1e6:.3g} us and a sync {waits}, {origin}; "
        "none of it is taken to be hidden; the epoch beyond its evaluations is estimated",
        soft_wrap=True,
    )


def show_codecs(console: Console, found: Mapping[str, Sequence[Forecast]]) -> None:
    """Seconds of an epoch by codec, and which is the fastest."""
    table = Table(title="seconds an epoch by halo codec; int2 with 1.45 times the evaluations")
    table.add_column("ranks", justify="right")
    for codec in found:
        table.add_column(codec, justify="right")
    table.add_column("fastest", justify="right")
    for row in zip(*found.values(), strict=True):
        best = min(row, key=lambda one: one.seconds)
        cells = [f"{one.seconds:.3g}" for one in row]
        table.add_row(f"{row[0].part.parts:,}", *cells, best.codec)
    console.print(table)


def show_memory(console: Console, one: Forecast) -> None:
    """What takes the memory of a rank."""
    table = Table(title=f"memory of a rank of {one.part.parts:,}, GB")
    table.add_column("use")
    table.add_column("GB", justify="right")
    for item in one.memory:
        table.add_row(item.name, f"{item.bytes / _GB:.2f}")
    table.add_row("sum", f"{one.bytes / _GB:.2f}")
    table.add_row("of", f"{one.capacity / _GB:.2f}")
    console.print(table)


def show_comparisons(console: Console, found: Sequence[Comparison]) -> None:
    """Predicted, measured and their ratio for every quantity of every case."""
    table = Table(title="predicted / measured = ratio")
    table.add_column("case")
    for name in ("s an epoch", "MB an epoch", "peak GB"):
        table.add_column(name, justify="right")
    for one in found:
        p, m = one.predicted, one.measured
        table.add_row(
            one.case.name,
            _beside(p.seconds, m.seconds),
            _beside(p.bytes / 1e6, m.bytes / 1e6),
            _beside(p.memory / _GB, m.memory / _GB),
        )
    console.print(table)


def _beside(predicted: float, measured: float) -> str:
    if measured == 0:
        return f"{predicted:.3g} / 0"
    return f"{predicted:.3g} / {measured:.3g} = {predicted / measured:.2f}"


def forecasts_json(found: Sequence[Forecast]) -> list[dict[str, Any]]:
    """Plain numbers of every forecast."""
    return [
        asdict(one)
        | {
            "seconds": one.seconds,
            "bytes": one.bytes,
            "fits": one.fits,
            "ranks": one.part.parts,
            "evaluation": None if one.evaluation is None else _asked(one.evaluation),
        }
        for one in found
    ]


def _asked(counted: Counted) -> dict[str, Any]:
    """Launches and syncs of an evaluation, and where the counts come from."""
    return counted.asked.model_dump() | {"measured": counted.measured}


def comparisons_json(found: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Plain numbers of every case."""
    return [asdict(one) for one in found]


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file.

    Raises:
        UserError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_json(path, content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def write_plot(path: Path, title: str, found: Mapping[str, Sequence[Forecast]]) -> None:
    """Write ``draw`` as a picture.

    Raises:
        UserError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_picture(draw(title, found), path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


@style()
def draw(title: str, found: Mapping[str, Sequence[Forecast]]) -> Picture:
    """Seconds, efficiency and memory over ranks, one line per codec.

    The ideal is that of the first codec: one device that holds the whole graph, divided by P.
    """
    picture = Picture(10.0, 3.4)
    time, efficiency, memory = picture.subplots(1, 3)
    for place, (codec, line) in enumerate(found.items()):
        ranks = [one.part.parts for one in line]
        look = point_style(place)
        time.plot(ranks, [one.seconds for one in line], **look, label=codec)
        efficiency.plot(ranks, [one.efficiency for one in line], **look, label=codec)
        memory.plot(ranks, [one.bytes / _GB for one in line], **look, label=codec)
    first = next(iter(found.values()))
    ranks = [one.part.parts for one in first]
    ideal_line(time, ranks, [one.efficiency * one.seconds for one in first])
    ideal_line(efficiency, ranks, [1.0] * len(ranks))
    memory.axhline(first[0].capacity / _GB, color=GREY, linestyle="--", label="a device has")
    log_ticks(time.yaxis)
    log_ticks(memory.yaxis)
    efficiency.set_ylim(0, 1.05)
    for axes, name in (
        (time, "seconds per epoch"),
        (efficiency, "parallel efficiency"),
        (memory, "GB per rank"),
    ):
        axes.set_ylabel(name)
        rank_ticks(axes, ranks)
    legend_below(picture)
    set_title(picture, title)
    return picture
