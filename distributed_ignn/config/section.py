"""What all sections of the settings share."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

#: The generators of torch and numpy and METIS take all of these.
LARGEST_SEED = 2**31 - 1


class Section(BaseModel):
    """What all sections share: no unknown keys, no changes after creation, finite numbers."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True
    )
