"""What all sections of the settings share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from distributed_ignn.urls.url import as_path, url_scheme

#: The generators of torch and numpy and METIS take all of these.
LARGEST_SEED = 2**31 - 1


@dataclass(frozen=True, slots=True)
class ByUrl:
    """Marks a path that may be a URL; its value is a ``Url`` then."""


class NoEffect(ValueError):  # noqa: N818 - what a validator finds
    """Says that a setting would change nothing.

    Args:
        setting: its name within the section that is being checked.
        value: its value, as the message is to show it.
        because: the setting that takes its effect away, and the way out.
    """

    def __init__(self, setting: str, value: object, because: str) -> None:
        super().__init__(f"{setting} = {value} has no effect with {because}")
        self.setting = setting


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
        kinds, marks = _told(cls.model_fields[info.field_name])
        if any(isinstance(mark, ByUrl) for mark in marks):
            return as_path(value)
        if Path in kinds or info.field_name == "dataset":
            raise ValueError(
                f"is a URL, and this is read and written by paths only: mount what {scheme}: "
                "names and give the path, or copy there before or after"
            )
        return value


def _told(field: FieldInfo) -> tuple[list[Any], list[Any]]:
    """The types that a field may have, and its marks, also those within a union."""
    kinds, marks = [field.annotation, *get_args(field.annotation)], [*field.metadata]
    for kind in kinds[1:]:
        if get_origin(kind) is Annotated:
            inner, *more = get_args(kind)
            kinds.append(inner)
            marks += more
    return kinds, marks
