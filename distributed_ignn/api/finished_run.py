"""``Run``: what a training run has left, opened from its folder, and what its model says."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from distributed_ignn.api.convergence_plot import draw
from distributed_ignn.api.guest import as_guest
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig, load_yaml
from distributed_ignn.config.keywords import told_in_python
from distributed_ignn.errors import UserError
from distributed_ignn.launchers.precision import full_precision, refuse_override
from distributed_ignn.launchers.this_rank import choose_device, on_this_rank
from distributed_ignn.plots import Picture, checked_ending, save_picture
from distributed_ignn.reading.strict_json import read_json
from distributed_ignn.runs.layout import SETTINGS
from distributed_ignn.runs.output.progress import summary_rows
from distributed_ignn.runs.output.records import METRICS, SUMMARY, read_metrics
from distributed_ignn.runs.predict import load_run, load_run_config, load_run_for
from distributed_ignn.runs.prediction import Prediction, SolveRequest, solved
from distributed_ignn.urls.url import refuse_url


@told_in_python()
def load(path: str | Path) -> Run:
    """Open the run in an output folder, whoever trained it: ``fit`` or the training command.

    Raises:
        UserError: there is none, or the path is a URL.
    """
    refuse_url(
        path,
        "load opens a folder",
        "copy what is there to this machine and load the copy, or use ignn predict URL, which "
        "reads s3:// and gs://",
    )
    load_run_config(Path(path))
    return Run(Path(path).absolute())


@dataclass(frozen=True)
class Run:
    """A training run on disk. It holds no more than its path, so that it pickles and copies.

    Letters: n nodes, C classes, D hidden width. Rows are in the order of the data that was trained
    on, whatever the number of ranks. Under torchrun every rank calls what solves; each gets all
    rows.

    Args:
        path: the output folder.
    """

    path: Path

    @property
    def config(self) -> RunConfig:
        """All settings, by section, as in ``run.config.model.hidden``.

        Raises:
            UserError: the folder holds no run any more.
        """
        return load_yaml(self.path / SETTINGS)

    @property
    def summary(self) -> dict[str, Any]:
        """The figures at the end of training, as in summary.json.

        Raises:
            UserError: the run has not come to its end.
        """
        try:
            found: dict[str, Any] = read_json(self.path / SUMMARY)
        except FileNotFoundError as error:
            raise UserError(
                f"{self.path} has no {SUMMARY}, the run has not come to its end; go on with "
                'resume="auto"'
            ) from error
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path / SUMMARY} cannot be read; train again") from error
        return found

    @property
    def history(self) -> list[dict[str, Any]]:
        """One record per epoch, as in metrics.jsonl; ``pandas.DataFrame(run.history)`` takes it."""
        return read_metrics(self.path / METRICS)

    @told_in_python("nodes", "require_converged", "steps", "tolerance")
    def predict(
        self,
        data: Any = None,
        *,
        nodes: str | Path | None = None,
        tolerance: float | None = None,
        steps: int | None = None,
        require_converged: bool = False,
    ) -> Prediction:
        """Solve for the equilibrium with the weights that validation chose, and read out.

        An explicit kind of model has none to solve for: its layers are applied.

        Args:
            data: None for the graph of the run. Another graph with the same feature columns, in any
                of the forms that ``fit`` takes, is solved anew, in one process; it needs no labels
                and no splits. A run that has learned embeddings of nodes takes no other graph.
            nodes: table of the nodes of ``data``, where that is a file that holds edges alone.
            tolerance: relative residual to solve to; by default the run's own.
            steps: exactly so many evaluations of the map instead.
            require_converged: whether missing the tolerance is an error. Otherwise the library's
                log warns of it, and the prediction says so.

        Raises:
            UserError: something of the run is missing, the solve diverges or does not converge as
                it must, or the data do not fit; one line.
        """
        request = SolveRequest(tolerance, steps, require_converged)
        for path in (data, nodes):
            refuse_url(
                path,
                "predict reads a graph by its path",
                "copy the file to this machine and give the path of the copy",
            )
        if nodes is not None and not isinstance(data, str | Path):
            raise UserError(
                f"nodes = {nodes} has no effect unless data is a file of edges; drop it"
            )

        def found(comm: Communicator) -> Prediction:
            if data is None:
                trainer = load_run(self.path, comm)
            else:
                table = None if nodes is None else Path(nodes)
                trainer, _ = load_run_for(self.path, data, comm, table)
            return solved(trainer, self.path, request, embeddings=True)

        with as_guest():
            return self._computed(found, alone=data is not None)

    def embeddings(
        self,
        data: Any = None,
        *,
        nodes: str | Path | None = None,
        tolerance: float | None = None,
        steps: int | None = None,
        require_converged: bool = False,
    ) -> Tensor:
        """The states that predictions are read from, one row for each node, on the CPU.

        Of the implicit model the equilibrium Z* [n, D]; of an explicit kind the last hidden layer,
        or the logits [n, C] where there is none, as of ``sgc``. ``predict(...).embeddings`` is the
        same beside its residual; for arguments see there.

        Raises:
            UserError: see ``predict``.
        """
        found = self.predict(
            data,
            nodes=nodes,
            tolerance=tolerance,
            steps=steps,
            require_converged=require_converged,
        )
        if found.embeddings is None:
            raise RuntimeError("the embeddings were not kept")
        return found.embeddings

    def plot_convergence(self, path: str | Path | None = None) -> Picture:
        """Loss, metrics, map evaluations and residuals by epoch.

        Args:
            path: where to save the figure as well, a .png, .svg or .pdf by its ending.

        Raises:
            UserError: there is no epoch yet, the ending is another, or the file cannot be written.
        """
        if path is not None:
            checked_ending(Path(path))
        records = self.history
        if not records:
            raise UserError(f"{self.path} has no finished epoch to plot; train it first")
        figure = draw(records, self.config)
        if path is not None:
            try:
                save_picture(figure, Path(path))
            except OSError as error:
                reason = error.strerror or error
                raise UserError(f"cannot write the figure to {path}: {reason}") from error
        return figure

    def _computed(self, action: Callable[[Communicator], Prediction], alone: bool) -> Prediction:
        config = load_run_config(self.path)
        if alone:
            device = choose_device(config.device, 0)
            refuse_override(device)
            with full_precision(device):
                return action(Communicator(device=device))
        return on_this_rank(action, config.device, config.comm)

    def __repr__(self) -> str:
        rows = self._rows()
        width = max(len(label) for label, _ in rows)
        return "\n".join([f"Run({self.path})", *(f"  {a:<{width}}  {b}" for a, b in rows)])

    def _repr_html_(self) -> str:
        lines = "".join(
            f"<tr><td>{html.escape(label)}</td><td>{html.escape(text)}</td></tr>"
            for label, text in self._rows()
        )
        return f"<table><caption>{html.escape(str(self.path))}</caption>{lines}</table>"

    def _rows(self) -> list[tuple[str, str]]:
        """Label and text of what is worth showing; never an error."""
        try:
            return summary_rows(self.summary)
        except (UserError, KeyError):
            return [("state", f"not finished, {len(self.history)} epochs done")]
