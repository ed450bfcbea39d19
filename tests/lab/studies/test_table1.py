"""Table 1 from raw files as its four datasets are published, tiny ones."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.commands.reproduce import main
from distributed_ignn.graph.datasets.amazon import MIN_COMMUNITY
from distributed_ignn.lab.studies.tables.paper_figures import COLUMNS
from tests.graph.raw_files import write_amazon, write_arxiv, write_products, write_reddit2
from tests.ranks import run_ranks

# PyTorch Geometric compiles a class on import in a way that newer torch versions deprecate.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")

_MODELS = ("gcn", "amgcn", "ignn", "ignn-solver", "ours")
_SHORT = {
    "device": "cpu",
    "model.hidden": "4",
    "train.epochs": "2",
    "train.threads": "1",
    "forward.max-steps": "30",
    "adjoint.max-steps": "30",
    # a solver phase after each of the two epochs
    "schedule.warmup-epochs": "1",
    "schedule.warmup-solver-steps": "2",
    "schedule.model-steps": "1",
}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with all four; of amazon-all two communities are large enough for a class."""
    root = tmp_path_factory.mktemp("data")
    large = range(MIN_COMMUNITY), range(150, 150 + MIN_COMMUNITY)
    write_amazon(root, [*large, [3, 4]], products=MIN_COMMUNITY + 200)
    write_reddit2(root / "reddit2")
    write_arxiv(root / "ogbn_arxiv")
    write_products(root / "ogbn_products")
    return root


def _arguments(root: Path, out: Path, models: tuple[str, ...]) -> list[str]:
    flags = {"data-root": root, "out": out, "models": ",".join(models)} | _SHORT
    return [
        "table1",
        *(str(part) for name, value in flags.items() for part in (f"--{name}", value)),
    ]


def _rows(out: Path) -> dict[tuple[str, str], dict[str, str]]:
    with (out / "table1.csv").open(newline="", encoding="utf-8") as file:
        return {(row["dataset"], row["model"]): row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def alone(published: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """Exit code and folder of the table by one process."""
    out = tmp_path_factory.mktemp("alone")
    return main(_arguments(published, out, _MODELS)), out


@pytest.mark.slow
def test_every_cell_has_a_figure_but_am_gcn_without_features(alone: tuple[int, Path]) -> None:
    code, out = alone
    rows = _rows(out)
    assert list(rows) == [(dataset, model) for dataset in COLUMNS["large"] for model in _MODELS]
    without = rows.pop(("amazon-all", "amgcn"))
    assert without["missing"].startswith(
        "data.knn = 5 links nodes of like features, and amazon-all"
    )
    assert code == 3
    for (dataset, _), row in rows.items():
        assert row["missing"] == ""
        assert 0.0 <= float(row["test"]) <= 1.0
        assert row["metric"] == ("micro_f1" if dataset == "amazon-all" else "accuracy")
        assert row["epochs"] == "2"
    statement = json.loads((out / "table1.json").read_text())
    figures = {
        (dataset, model): cell["here"]
        for dataset, cells in statement["cells"].items()
        for model, cell in cells.items()
    }
    assert {place for place, figure in figures.items() if figure is None} == {
        ("amazon-all", "amgcn")
    }
    assert "(amgcn seed 0): data.knn = 5 links" in (out / "table1.md").read_text()


def _exit_code(comm: Communicator, arguments: list[str]) -> int:
    """Of the command on a rank of a job that has begun."""
    return main(arguments)


@pytest.mark.slow
@pytest.mark.long
def test_two_ranks_have_the_figures_of_one(
    published: Path, alone: tuple[int, Path], tmp_path: Path
) -> None:
    arguments = _arguments(published, tmp_path / "out", ("amgcn", "ignn-solver"))
    assert run_ranks(_exit_code, 2, arguments, timeout=100) == [3, 3]
    expected = _rows(alone[1])
    for place, row in _rows(tmp_path / "out").items():
        assert row["missing"] == expected[place]["missing"]
        if not row["missing"]:
            assert row["ranks"] == "2"
            for figure in ("val", "test"):
                assert float(row[figure]) == pytest.approx(float(expected[place][figure]), abs=0.01)
