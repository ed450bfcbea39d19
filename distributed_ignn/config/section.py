"""What all sections of the settings share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

#: The generators of torch and numpy and METIS take all of these.
LARGEST_SEED = 2**31 - 1
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")


class Section(BaseModel):
    """What all sections share.

    No unknown keys, no changes after creation, finite numbers, and paths that are no URLs: as a
    path, one would name a folder called ``s3:`` below the working folder.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_urls(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, str | Path) or info.field_name is None:
            return value
        found = _URL.match(str(value))
        kind = cls.model_fields[info.field_name].annotation
        if found and (kind is Path or Path in get_args(kind) or info.field_name == "dataset"):
            raise ValueError(
                f"is a URL, and files are read and written by paths only: mount what {found[1]}: "
                "names and give the path, or copy there before or after"
            )
        return value
