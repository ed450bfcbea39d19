"""Strong and weak scaling: what each point of a study is, what it measured, table and CSV.

Strong: the same graph on more ranks; efficiency is T_1 / (P T_P). Weak: a generated graph that
grows with the ranks; efficiency is T_1 / T_P. A solve is compared per evaluation of the map,
because a larger graph may need another number of them. Every point is a job of its own.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from distributed_ignn.config import RunConfig, dump_yaml
from distributed_ignn.errors import UserError
from distributed_ignn.graph.storage.request import data_settings, partition_request
from distributed_ignn.lab.benchmarks.epoch_stages import SENT, SOLVE
from distributed_ignn.lab.benchmarks.link import LinkSettings
from distributed_ignn.lab.benchmarks.waiting import WAITING
from distributed_ignn.reading.plain_files import in_one_line
from distributed_ignn.reading.strict_json import read_json

Study = Literal["strong", "weak"]
NO_LINK = "none"


@dataclass(frozen=True, slots=True)
class Point:
    """One job of a study.

    Args:
        study: which.
        ranks: P.
        config: of the training whose epochs are measured; its halo codec included.
        link: between the two halves of the ranks, or None.
    """

    study: Study
    ranks: int
    config: RunConfig
    link: LinkSettings | None = None

    @property
    def link_name(self) -> str:
        """Rate and delay, or "none"."""
        if self.link is None:
            return NO_LINK
        delay = f"+{self.link.delay_ms:g}ms" if self.link.delay_ms else ""
        return self.link.rate + delay

    @property
    def label(self) -> str:
        return f"{self.study}, {self.ranks} ranks, link {self.link_name}, {self.config.comm.halo}"

    def name(self, *more: object) -> str:
        """Of its files: the same for the same settings, ``more`` included."""
        words = (self.study, str(self.ranks), self.link_name, self.config.comm.halo)
        return "-".join((*words, _digest(dump_yaml(self.config), *more)))

    def shards(self) -> str:
        """Name of the folder of its graph's shards, whatever their number."""
        settings = data_settings(self.config.dataset, self.config.data)
        return _digest(settings, partition_request(self.config.partition))


def _digest(*values: object) -> str:
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


@dataclass(frozen=True, slots=True)
class Row:
    """What a point measured.

    Args:
        study, ranks, link, halo: see ``Point``.
        nodes, entries: of the graph.
        seconds_epoch: median.
        seconds_solve, evaluations_solve: of a forward solve that starts anew.
        bytes_epoch, bytes_solve: sent by all ranks.
        seconds_exposed: waiting for halo rows in an epoch, mean over ranks.
        peak_memory_bytes: of the largest rank.
        efficiency_epoch, efficiency_evaluation: against one rank; nan without that point.
    """

    study: str
    ranks: int
    link: str
    halo: str
    nodes: int
    entries: int
    seconds_epoch: float
    seconds_solve: float
    evaluations_solve: float
    bytes_epoch: float
    bytes_solve: float
    seconds_exposed: float
    peak_memory_bytes: int
    efficiency_epoch: float = math.nan
    efficiency_evaluation: float = math.nan

    @property
    def seconds_evaluation(self) -> float:
        return self.seconds_solve / self.evaluations_solve


def points(
    study: Study,
    config: RunConfig,
    ranks: Sequence[int],
    halos: Sequence[str],
    link: LinkSettings | None,
) -> Iterator[Point]:
    """Points of a study: every codec without a link and, if there is one, with it.

    One rank exchanges nothing, so there is one point of it.

    Raises:
        UserError: a weak study of a graph that cannot grow.
    """
    if study == "weak" and config.dataset != "synthetic-products":
        raise UserError(
            f"a weak study needs a graph that can grow, and {config.dataset} cannot; use --dataset "
            "synthetic-products or the strong study"
        )
    for number in ranks:
        grown = _grown(config, number) if study == "weak" else config
        links = (None,) if number == 1 or link is None else (None, link)
        for present in links:
            for halo in ("fp32",) if number == 1 else halos:
                comm = grown.comm.model_copy(update={"halo": halo})
                yield Point(study, number, grown.model_copy(update={"comm": comm}), present)


def _grown(config: RunConfig, ranks: int) -> RunConfig:
    scale = config.data.synthetic.scale * ranks
    synthetic = config.data.synthetic.model_copy(update={"scale": scale})
    data = config.data.model_copy(update={"synthetic": synthetic})
    return config.model_copy(update={"data": data})


def read_row(point: Point, path: Path) -> Row:
    """What the epoch benchmark of a point has written.

    Raises:
        UserError: the file is something else.
    """
    try:
        return _row(point, read_json(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read ({in_one_line(error)}); remove it to measure again"
        ) from error


def _row(point: Point, content: Any) -> Row:
    found = {(f["section"], f["unit"]): float(f["value"]) for f in content["figures"]}
    settings: Mapping[str, Any] = content["settings"]
    return Row(
        study=point.study,
        ranks=point.ranks,
        link=point.link_name,
        halo=point.config.comm.halo,
        nodes=settings["nodes"],
        entries=settings["entries"],
        seconds_epoch=found["", "seconds"],
        seconds_solve=found[SOLVE, "seconds"],
        evaluations_solve=found[SOLVE, "evaluations"],
        bytes_epoch=found[SENT, "bytes"],
        bytes_solve=found[SOLVE, "bytes"],
        seconds_exposed=found.get((WAITING, "exposed"), 0.0),
        peak_memory_bytes=settings["peak_memory_bytes"],
    )


def with_efficiency(rows: Sequence[Row]) -> list[Row]:
    """The rows, each beside the one rank of its study."""
    alone = {row.study: row for row in rows if row.ranks == 1}
    return [_compared(row, alone[row.study]) if row.study in alone else row for row in rows]


def _compared(row: Row, alone: Row) -> Row:
    work = row.ranks if row.study == "strong" else 1
    values = asdict(row)
    values["efficiency_epoch"] = alone.seconds_epoch / (work * row.seconds_epoch)
    values["efficiency_evaluation"] = alone.seconds_evaluation / (work * row.seconds_evaluation)
    return Row(**values)


def to_csv(rows: Sequence[Row]) -> str:
    """One line per row; what is not known (nan) is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [field.name for field in fields(Row)]
    writer.writerow(names)
    for row in rows:
        values = [getattr(row, name) for name in names]
        writer.writerow(["" if isinstance(v, float) and math.isnan(v) else v for v in values])
    return text.getvalue()


def tabulate(rows: Sequence[Row]) -> list[Table]:
    """Two tables a study: time with efficiency, and what it costs in bytes, waiting and memory."""
    tables = []
    for study in dict.fromkeys(row.study for row in rows):
        chosen = [row for row in rows if row.study == study]
        base = "T_1 / (P T_P)" if study == "strong" else "T_1 / T_P"
        times = _table(
            f"{study} scaling; eff. = {base}",
            ("epoch s", "eff.", "solve s", "steps", "eff. a step"),
        )
        costs = _table(f"{study} scaling: an epoch", ("MB sent", "exposed s", "share", "peak MB"))
        for row in chosen:
            first = (str(row.ranks), row.link, row.halo)
            times.add_row(
                *first,
                f"{row.seconds_epoch:.4g}",
                _share(row.efficiency_epoch),
                f"{row.seconds_solve:.4g}",
                f"{row.evaluations_solve:g}",
                _share(row.efficiency_evaluation),
            )
            costs.add_row(
                *first,
                f"{row.bytes_epoch / 1e6:.4g}",
                f"{row.seconds_exposed:.3g}",
                _share(row.seconds_exposed / row.seconds_epoch),
                f"{row.peak_memory_bytes / 1e6:.0f}",
            )
        tables += [times, costs]
    return tables


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title)
    for name in ("ranks", "link", "halo"):
        table.add_column(name)
    for name in columns:
        table.add_column(name, justify="right")
    return table


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"
