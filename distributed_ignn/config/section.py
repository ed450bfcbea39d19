"""What all sections of the settings share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from distributed_ignn.urls.url import as_path, url_scheme

#: The generators of torch and numpy and METIS take all of these.
LARGEST_SEED = 2**31 - 1


@dataclass(frozen=True, slots=True)
class ByUrl:
    """Marks a path that may be a URL; its value is a ``Url`` then."""


class Section(BaseModel):
    """What all sections share.

    No unknown keys, no changes after creation, finite numbers, and paths that are no URLs where
    they are not marked ``ByUrl``: as a path, one would name a folder called ``s3:`` below the
    working folder.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _understand_urls(cls, value: Any, info: ValidationInfo) -> Any:
        scheme = url_scheme(value)
        if scheme is None or info.field_name is None:
            return value
        field = cls.model_fields[info.field_name]
        if any(isinstance(mark, ByUrl) for mark in field.metadata):
            return as_path(value)
        kind = field.annotation
        if kind is Path or Path in get_args(kind) or info.field_name == "dataset":
            raise ValueError(
                f"is a URL, and this is read and written by paths only: mount what {scheme}: "
                "names and give the path, or copy there before or after"
            )
        return value
