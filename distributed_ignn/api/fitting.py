"""``fit``: from a graph and settings to a finished run, on one process or several.

The settings and files are those of ``ignn train``, so that a run that was started here goes
on, predicts and is tuned there, and the other way round.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import count
from numbers import Integral
from pathlib import Path
from typing import Any

import torch

from distributed_ignn.api.finished_run import Run
from distributed_ignn.api.guest import as_guest, signals_delivered
from distributed_ignn.cli import shown_log
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import (
    DataConfig,
    RunConfig,
    absolute_paths,
    dataset_names,
    run_from_settings,
)
from distributed_ignn.config.dataset import FILE_SUFFIXES, IN_MEMORY
from distributed_ignn.config.idle import refuse_without_ray
from distributed_ignn.config.keywords import spelled_out, told_in_python
from distributed_ignn.config.suggest import suggest
from distributed_ignn.errors import UserError
from distributed_ignn.graph.data import GraphData
from distributed_ignn.graph.datasets import graph_in_memory
from distributed_ignn.graph.datasets.in_memory import is_in_memory
from distributed_ignn.launchers.local import run_local
from distributed_ignn.launchers.this_rank import on_this_rank, started_ranks
from distributed_ignn.runs.layout import SETTINGS
from distributed_ignn.runs.output.folder import is_earlier_attempt, make_output
from distributed_ignn.runs.run import Conduct, run_training
from distributed_ignn.runs.shards import store_graph
from distributed_ignn.urls.url import Url, refuse_url

_Graph = Callable[[], GraphData] | None
_given: set[Path] = set()  # folders that runs of this process have been given, besides named ones


@told_in_python()
def fit(
    data: Any,
    settings: Mapping[str, Any] | None = None,
    *,
    ranks: int = 1,
    output: str | Path | None = None,
    config: str | Path | None = None,
    verbose: bool = False,
    **keywords: Any,
) -> Run:
    """Train on a graph; validation chooses the epoch, and test nodes are read once, at the end.

    Where torchrun, Ray Train or a process group of torch's has started ranks, each of them calls it
    and takes part. Ctrl-C ends a run of one rank after its epoch
    and a checkpoint, and one of several at once; ``resume="auto"`` with the same ``output`` goes on
    from the newest checkpoint.

    Args:
        data: a ``torch_geometric.data.Data`` with ``edge_index`` [2, E], ``y`` [n] (or [n, C] of 0
            and 1), ``train_mask``, ``val_mask``, ``test_mask`` [n] (or ``train_idx``, ...),
            ``x`` [n, F] (without it, embeddings of nodes are learned) and optionally
            ``edge_weight`` [E]; a dictionary of the same; the name of a dataset; or the path of a
            file of one's own, whatever its ending, or of a folder of OGB's form.
        settings: those of ``ignn train --help``, as in ``{"model.hidden": 64}`` or
            ``{"model": {"hidden": 64}}``. A named dataset starts from the settings that come with
            it, any other graph from those of ``configs/own-graph.yaml``.
        ranks: processes on this machine that share the graph; 1 trains in this process.
        output: folder for results; a fresh one under runs/ by default. It must not hold a run,
            unless that is to go on: ``resume="auto"``.
        config: YAML file with settings, which take the place of those of a dataset.
        verbose: whether to show what ``ignn train`` shows.
        keywords: more settings, by short names where these are clear, as in ``hidden=64``; they win
            over ``settings``.

    Returns:
        The run, the same one on every rank.

    Raises:
        UserError: a setting or the data are wrong, or the numbers went bad; one line.
        JobError: a rank was lost, as when memory runs out.
        KeyboardInterrupt: Ctrl-C.
    """
    name, make = _source(data)
    run, fresh = _settings(name, settings or {}, keywords, output, config)
    graph = None if make is None else partial(make, run.data)
    started = started_ranks()
    _check_ranks(ranks, started)
    with as_guest(verbose=verbose):
        if ranks > 1 and started is None:
            return Run(_fit_on_ranks(run, fresh, graph, ranks, verbose))
        with signals_delivered():
            path = on_this_rank(
                lambda comm: _fit_here(run, fresh, graph, comm, verbose), run.device, run.comm
            )
        return Run(path)


def _source(data: Any) -> tuple[str, Callable[[DataConfig], GraphData] | None]:
    """The name of the dataset, and what makes the graph where it is in memory."""
    if is_in_memory(data):
        return IN_MEMORY, partial(graph_in_memory, data)
    refuse_url(
        data,
        "fit reads a graph by its path",
        "copy the file to this machine and give the path of the copy, or train with ignn train",
    )
    name = os.fspath(data)
    names = [known for known in dataset_names() if known != "file"]
    if name not in names and not name.endswith(FILE_SUFFIXES) and not Path(name).exists():
        raise UserError(
            f"data = {name!r} is no dataset{suggest(name, names)} and no path that exists; give a "
            "torch_geometric.data.Data, the path of a file or of a folder of OGB's form, or one of "
            f"{', '.join(names)}"
        )
    return name, None


def _settings(
    name: str,
    settings: Mapping[str, Any],
    keywords: Mapping[str, Any],
    output: str | Path | None,
    config: str | Path | None,
) -> tuple[RunConfig, bool]:
    """The run, and whether its output folder is to be a fresh one."""
    given = {**spelled_out(settings), **spelled_out(keywords)}
    if output is not None:
        given["output"] = output
    run = run_from_settings(name, given, None if config is None else Path(config))
    for key in ("workers", "gpus"):
        asked = getattr(run, key)
        if asked is not None:
            raise UserError(
                f"{key} = {asked} is for ignn train, where Ray starts processes; give "
                f"ranks={asked} instead"
            )
    refuse_without_ray(run, given)
    if isinstance(run.output, Url):
        raise UserError(
            f"output = {run.output} is a URL, and what fit returns reads a folder; give one, or "
            "train with ignn train"
        )
    fresh = "output" not in run.model_fields_set and run.resume is None
    return absolute_paths(run), fresh


def _check_ranks(ranks: int, started: int | None) -> None:
    asked: object = ranks
    if not isinstance(asked, Integral) or ranks < 1:
        raise UserError(f"ranks = {ranks!r} must be a whole number, at least 1")
    if started is not None and ranks not in (1, started):
        raise UserError(
            f"ranks = {ranks} but this process is one of {started} that are started already; leave "
            f"it out, or start {ranks}, as with torchrun --nproc-per-node {ranks}"
        )


def _fit_here(
    run: RunConfig, fresh: bool, graph: _Graph, comm: Communicator, verbose: bool
) -> Path:
    """Train as one rank, which all ranks do; the output folder."""
    chosen = comm.together(
        lambda: fresh_folder(run.output) if fresh and comm.is_main else run.output,
        doing=f"write to {run.output.parent}",
    )
    folder = Path(comm.gather_json(str(chosen))[0])
    config = run.model_copy(update={"output": folder})
    conduct = Conduct(shows=verbose, owns_process=False)
    with _tidied(folder, fresh and comm.is_main):
        run_training(config, comm, graph=graph, conduct=conduct)
    return folder


def _fit_on_ranks(run: RunConfig, fresh: bool, graph: _Graph, ranks: int, verbose: bool) -> Path:
    """Train on new processes of this machine; the output folder."""
    try:
        folder = fresh_folder(run.output) if fresh else run.output
        config = run.model_copy(update={"output": folder})
        make_output(config)
    except OSError as error:
        raise UserError(f"cannot write to output = {run.output}: {error.strerror}") from error
    threads = config.train.threads or max(1, torch.get_num_threads() // ranks)
    with _tidied(folder, fresh):
        if graph is not None:
            store_graph(config, ranks, graph)
        run_local(
            _train_rank,
            ranks,
            config,
            verbose,
            sys.stdout.isatty(),
            device=config.device,
            comm=config.comm,
            threads=threads,
            show=verbose,
        )
    return folder


def _train_rank(comm: Communicator, config: RunConfig, verbose: bool, terminal: bool) -> None:
    """One of the processes that ``_fit_on_ranks`` starts; their threads are set by then."""
    if not terminal:  # as in a notebook, which sets it for others
        os.environ.pop("FORCE_COLOR", None)
    with shown_log() if verbose else nullcontext():
        run_training(config, comm, conduct=Conduct(shows=verbose, owns_process=False))


def fresh_folder(base: Path) -> Path:
    """A new folder: ``base``, or one with a number behind it where that is taken.

    Where torchrun has started the program again, it is the folder of the attempt before.

    Raises:
        OSError: it cannot be created.
    """
    for number in count(1):
        folder = base if number == 1 else base.with_name(f"{base.name}-{number}")
        if folder not in _given and (is_earlier_attempt(folder) or _created(folder)):
            _given.add(folder)
            return folder
    raise RuntimeError("there are no more numbers")


def _created(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


@contextmanager
def _tidied(folder: Path, fresh: bool) -> Iterator[None]:
    """Leave no folder behind that holds no run, if it was made for this one."""
    try:
        yield
    except BaseException:
        if fresh and not (folder / SETTINGS).exists():
            _given.discard(folder)
            shutil.rmtree(folder, ignore_errors=True)
        raise
