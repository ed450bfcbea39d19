"""Paths of a run that mean the same wherever they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from distributed_ignn.config.dataset import FILE_SUFFIXES
from distributed_ignn.config.section import Section
from distributed_ignn.urls.url import Url

_SectionT = TypeVar("_SectionT", bound=Section)


def absolute_paths(section: _SectionT) -> _SectionT:
    """A copy whose paths no longer depend on the working folder, and whose spelling is one.

    Workers on a cluster run in other folders, and shards are recognised by the path of the file
    that they were cut from.
    """
    changes: dict[str, Any] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Path):
            changes[name] = absolute(value)
        elif isinstance(value, Section):
            changes[name] = absolute_paths(value)
        elif name == "dataset" and value.endswith(FILE_SUFFIXES):
            changes[name] = str(absolute(Path(value)))
    return section.model_copy(update=changes)


def absolute(path: Path) -> Path:
    """Links stay as they are, unless the path climbs: then only they tell where to. So do URLs."""
    if isinstance(path, Url):
        return path
    return path.resolve() if ".." in path.parts else path.absolute()
