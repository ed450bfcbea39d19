"""Tables of docs/planning.md, from ``ignn plan`` with the graphs and hardware that they name."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from distributed_ignn.commands.main import main as ignn

_PAPERS = ("--nodes", "111059956", "--edges", "1615685872")
_BILLION = ("--nodes", "1000000000", "--edges", "20000000000")
_PAPERS_RANKS = (8, 16, 32, 64)
_BILLION_RANKS = (64, 128, 256, 512, 1024, 2048)
_NETWORKS = ("infiniband", "ethernet100")
_PAYS = 0.95  # a codec is named where it saves at least a twentieth of an epoch


@cache
def _plan(graph: tuple[str, ...], ranks: tuple[int, ...], *flags: str) -> dict[str, Any]:
    """The figures that ``ignn plan`` writes, by codec."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        words = [*graph, "--features", "128", "--classes", "172", "--ranks", *map(str, ranks)]
        with contextlib.redirect_stdout(io.StringIO()):
            code = ignn(["plan", *words, *flags, "--json", str(path)])
        assert code == 0
        forecasts: dict[str, Any] = json.loads(path.read_text())["forecasts"]
        return forecasts


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join([_row(head), "|" + "---|" * len(head), *map(_row, rows)])


def _cell(forecasts: dict[str, Any], index: int) -> str:
    """Seconds and efficiency of plain rows, and of the best codec where that pays."""
    plain = forecasts["fp32"][index]
    codec, best = min(
        ((name, line[index]) for name, line in forecasts.items()), key=lambda two: two[1]["seconds"]
    )
    text = f"{plain['seconds']:.3g} ({plain['efficiency']:.0%})"
    if best["seconds"] < _PAYS * plain["seconds"]:
        text += f", {codec} {best['seconds']:.3g} ({best['efficiency']:.0%})"
    return text if plain["fits"] else text + " *"


def _papers_seconds() -> str:
    cases = [
        (hardware, network, halo)
        for hardware in ("h200", "h100", "a100")
        for network in _NETWORKS
        for halo in ("0.5", "0.15", "random")
        # a smaller halo and a worse network are told once, for the first
        if halo == "0.5" or (hardware, network) == ("h200", "infiniband")
    ]
    rows = []
    for hardware, network, halo in cases:
        law = halo if halo == "random" else f"{halo}@8"
        flags = ("--hardware", hardware, "--network", network, "--halo-growth", law)
        found = _plan(_PAPERS, _PAPERS_RANKS, *flags, "--codec", "all")
        cells = [_cell(found, index) for index in range(len(_PAPERS_RANKS))]
        rows.append([hardware, network, halo, *cells])
    return _table(["hardware", "network", "halo at 8", *map(str, _PAPERS_RANKS)], rows)


def _billion_seconds() -> str:
    rows = []
    for hardware in ("h200", "h100", "a100"):
        for network in _NETWORKS:
            flags = ("--hardware", hardware, "--network", network, "--halo-growth", "0.5@8")
            found = _plan(_BILLION, _BILLION_RANKS, *flags, "--codec", "all")
            cells = [_cell(found, index) for index in range(len(_BILLION_RANKS))]
            rows.append([hardware, network, *cells])
    return _table(["hardware", "network", *(f"{count:,}" for count in _BILLION_RANKS)], rows)


def _memory(graph: tuple[str, ...], ranks: tuple[int, ...]) -> str:
    """GB of a rank by number format of the history, and the devices that hold it."""
    rows = []
    for history in ("float32", "bfloat16"):
        fits: list[list[str]] = [[] for _ in ranks]
        for hardware in ("h200", "h100", "a100"):
            flags = ("--hardware", hardware, "--halo-growth", "0.5@8", "--history", history)
            (found,) = _plan(graph, ranks, *flags).values()
            for names, one in zip(fits, found, strict=True):
                if one["fits"]:
                    names.append(hardware)
        cells = [
            f"{one['bytes'] / 1e9:.0f} ({', '.join(names) or 'none'})"
            for one, names in zip(found, fits, strict=True)
        ]
        rows.append([history, *cells])
    return _table(["history", *(f"{count:,}" for count in ranks)], rows)


def _papers_items() -> str:
    """What takes the memory of a rank on the fewest ranks of the table."""
    flags = ("--hardware", "h200", "--halo-growth", "0.5@8")
    (found,) = _plan(_PAPERS, _PAPERS_RANKS, *flags).values()
    items = sorted(found[0]["memory"], key=lambda item: -item["bytes"])
    return _table(
        ["use", "GB"], [[item["name"], f"{item['bytes'] / 1e9:.1f}"] for item in items[:6]]
    )


TABLES: dict[str, Callable[[], str]] = {
    "papers100M, seconds": _papers_seconds,
    "papers100M, memory": lambda: _memory(_PAPERS, _PAPERS_RANKS),
    "papers100M, items": _papers_items,
    "a billion nodes, seconds": _billion_seconds,
    "a billion nodes, memory": lambda: _memory(_BILLION, _BILLION_RANKS),
}
"""By the name that stands in the page."""
