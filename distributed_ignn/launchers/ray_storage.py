"""Where Ray keeps its books of a run: in the run's own output, be that a folder or a URL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distributed_ignn.urls.object_store import ObjectStore
from distributed_ignn.urls.url import Url


def storage_of(output: Path) -> dict[str, Any]:
    """Arguments of Ray's ``RunConfig`` by which its ``storage_path`` and ``name`` are an output.

    A URL is read and written by the same package as the run itself does, with the same credentials
    and the same address.

    Args:
        output: of the run.
    """
    above = output.parent
    if not isinstance(above, Url):
        return {"storage_path": str(above), "name": output.name}
    return {
        "storage_path": above.key,
        "name": output.name,
        "storage_filesystem": _arrow(above),
    }


def reference_to(checkpoint: Path) -> Any:
    """Ray's reference to a checkpoint of ours, neither copied nor removed by it; a worker asks.

    Args:
        checkpoint: in the output.
    """
    import ray.train

    if isinstance(checkpoint, Url):
        # fsspec's systems of two threads count as two; Ray asks for its own
        storage = ray.train.get_context().get_storage()
        return ray.train.Checkpoint(path=checkpoint.key, filesystem=storage.storage_filesystem)
    return ray.train.Checkpoint.from_directory(checkpoint)


def forget(output: Path, name: str) -> None:
    """Remove a file of Ray's own from an output, if it is there."""
    if isinstance(output, Url):
        ObjectStore(output).remove([name])
    else:
        (output / name).unlink(missing_ok=True)


def _arrow(url: Url) -> Any:
    """The file system of a URL as Arrow, and so Ray, has them."""
    import pyarrow.fs

    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(ObjectStore(url).file_system))
