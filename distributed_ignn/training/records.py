"""What a run writes for people and programs: metrics.jsonl, TensorBoard events, summary.json."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from distributed_ignn.files import atomic_write_json, atomic_write_text
from distributed_ignn.reading.strict_json import parse_json


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """One line of metrics.jsonl.

    Args:
        epoch: model steps done, counted from 1.
        loss: mean training loss before the step.
        train_metric, val_metric: after the step; None in epochs without validation.
        seconds: of this epoch, solver phase included.
        evaluations_forward, evaluations_adjoint: map evaluations of the training step.
        evaluations_validation: map evaluations of the validation solve.
        residual: relative residual of the last forward solve of the epoch.
        residual_adjoint: of the backward solve.
        bytes_sent: by all ranks, halo exchanges and reductions.
        exchanges: halo exchanges.
        solver_steps, solver_loss: solver training in this epoch.
        solver_seconds: spent on it.
    """

    epoch: int
    loss: float
    train_metric: float | None
    val_metric: float | None
    seconds: float
    evaluations_forward: int
    evaluations_adjoint: int
    evaluations_validation: int
    residual: float
    residual_adjoint: float
    bytes_sent: int
    exchanges: int
    solver_steps: int
    solver_loss: float | None
    solver_seconds: float


class RunRecorder:
    """Writes the record of one run; only rank 0 has one.

    Args:
        folder: output folder of the run.
        epochs_done: records after this epoch are dropped from an earlier metrics.jsonl, because a
            resumed run writes them again.
    """

    def __init__(self, folder: Path, epochs_done: int = 0) -> None:
        self._folder = folder
        self._path = folder / "metrics.jsonl"
        kept = [r for r in read_metrics(self._path) if r["epoch"] <= epochs_done]
        atomic_write_text(self._path, "".join(_line(record) for record in kept))
        self._file = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder), purge_step=epochs_done + 1)

    def epoch(self, record: EpochRecord) -> None:
        """Append one epoch."""
        values = asdict(record)
        self._write_line(values)
        for key, value in values.items():
            if key != "epoch" and value is not None:
                self._board.add_scalar(key, value, record.epoch)

    def summary(self, values: dict[str, Any]) -> None:
        """Write summary.json."""
        atomic_write_json(self._folder / "summary.json", {k: _finite(v) for k, v in values.items()})

    def _write_line(self, values: dict[str, Any]) -> None:
        self._file.write(_line(values))
        self._file.flush()

    def close(self) -> None:
        """Flush everything."""
        self._file.close()
        self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Records of a metrics.jsonl; a line cut short by a kill ends the list."""
    records: list[dict[str, Any]] = []
    if not path.is_file():
        return records
    for line in path.read_bytes().splitlines():
        try:
            record = parse_json(line)
        except ValueError:
            break
        if not isinstance(record, dict) or type(record.get("epoch")) is not int:
            break
        records.append(record)
    return records


def _line(values: dict[str, Any]) -> str:
    return json.dumps({k: _finite(v) for k, v in values.items()}) + "\n"


def _finite(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
