"""One attempt of a run whose settings may name URLs: the settings with folders in their place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import DataConfig, RunConfig
from distributed_ignn.errors import Stopped, UserError
from distributed_ignn.runs.spool.places import Places, expect, opened
from distributed_ignn.runs.spool.run_place import RunPlace
from distributed_ignn.urls.url import Url


@dataclass(frozen=True, slots=True)
class Attempt:
    """What an attempt works with.

    Args:
        config: the settings, with folders of this machine in the place of URLs.
        places: what those stand for.
        output: the output, if that is a URL.
    """

    config: RunConfig
    places: Places
    output: RunPlace | None = None

    def begin(self) -> None:
        """From here on the output holds a run."""
        if self.output is not None:
            self.output.begun = True


@contextmanager
def attempted(config: RunConfig, comm: Communicator) -> Iterator[Attempt]:
    """Have folders for the URLs of a run inside, with what an attempt begins with in them.

    What the attempt has left in the folder of its output is sent at the end, however that comes.
    Every rank enters it; a run without URLs is as it is.

    Raises:
        UserError, JobError: a place refuses, or does not answer (on every rank).
    """
    data = config.data
    named = (config.output, config.resume, config.partition.dir, data.path, data.nodes)
    urls = comm.together(lambda: expect(*named))
    with opened(comm, urls) as places:
        output = None
        if isinstance(config.output, Url):
            output = RunPlace(places.mirror(config.output), comm)
            places.wait(output.read, works=output.first)
        over = _Ending()
        try:
            with over.noticed():
                yield Attempt(_with_paths(config, places.local) if urls else config, places, output)
        finally:
            if output is not None:
                output.end(places, crashed=over.crashed)


def fetched(data: DataConfig, places: Places) -> DataConfig:
    """The data section with files of this machine in the place of URLs, which are fetched.

    Args:
        data: the section.
        places: where they are had from.

    Raises:
        UserError: a place refuses, or does not answer.
    """
    files = {}
    for key, path in (("path", data.path), ("nodes", data.nodes)):
        if isinstance(path, Url):
            files[key] = places.local_file(path)
            places.fetch(files[key])
    return data.model_copy(update=files) if files else data


class _Ending:
    """Whether what was inside broke off for any reason but a mistake or a signal."""

    crashed = False

    @contextmanager
    def noticed(self) -> Iterator[None]:
        try:
            yield
        except (UserError, Stopped):
            raise
        except Exception:
            self.crashed = True
            raise


def stated(config: RunConfig, places: Places) -> RunConfig:
    """The settings of an attempt as they were given, with URLs."""
    return _with_paths(config, places.origin)


def _with_paths(config: RunConfig, change: Any) -> RunConfig:
    """The settings with every path that may be a URL changed."""
    folder = config.partition.dir
    changes: dict[str, Any] = {"output": change(config.output)}
    if isinstance(config.resume, Path):
        changes["resume"] = change(config.resume)
    if folder is not None:
        changes["partition"] = config.partition.model_copy(update={"dir": change(folder)})
    return config.model_copy(update=changes)
