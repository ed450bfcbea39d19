"""State: what a part of a training must know to go on, and what every such part can say.

The trainer, the optimiser, the learned solver and others each give their own state and take it
back. Whoever keeps states (``runs/checkpoints``) puts them side by side under the parts' names, and
knows nothing of what is in them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

TensorDict = dict[str, Tensor]

Count = Annotated[int, Field(ge=0, lt=2**53)]
"""A whole number that JSON holds exactly."""

Number = Annotated[float, Field(allow_inf_nan=False)]
"""A number that JSON can hold."""

Seconds = Annotated[Number, Field(ge=0)]
"""A length of time."""


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """Holds what one part of a training must know to go on.

    Args:
        values: JSON values.
        common: tensors that are the same on every rank.
        rows: tensors [O, ...] whose rows belong to this rank's nodes.
    """

    values: dict[str, Any] = field(default_factory=dict)
    common: TensorDict = field(default_factory=dict)
    rows: TensorDict = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        tensors: Mapping[str, Tensor],
        sharded: Collection[str],
        values: dict[str, Any] | None = None,
    ) -> State:
        """Make a state of ``tensors``; those named in ``sharded`` have this rank's rows."""
        return cls(
            values or {},
            {name: value for name, value in tensors.items() if name not in sharded},
            {name: value for name, value in tensors.items() if name in sharded},
        )

    @property
    def tensors(self) -> TensorDict:
        """All tensors, the common ones and the rows."""
        return self.common | self.rows

    def copy(self) -> State:
        """Return the same state in memory of its own, which later steps do not touch."""
        common, rows = (
            {name: value.detach().clone() for name, value in part.items()}
            for part in (self.common, self.rows)
        )
        return State(dict(self.values), common, rows)


class Stateful(Protocol):
    """Says what a part of a training that has state can do."""

    def state(self) -> State:
        """Return what the part must know to go on; its tensors may be the part's own."""
        ...

    def load_state(self, state: State) -> None:
        """Go on from ``state``, which ``state`` of another object of the same kind gave.

        Raises:
            UserError: the state belongs to other settings.
            KeyError, ValueError, TypeError, RuntimeError: the state lacks something, or holds
                something else.
        """
        ...


class Values(BaseModel):
    """Declares the values of a part's state: every one with its type and range, and no other."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @classmethod
    def read(cls, state: State) -> Self:
        """Read the values of ``state``.

        Raises:
            ValueError: one is missing, of another type, out of range or unknown; it is named.
        """
        try:
            return cls.model_validate(state.values)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise ValueError(f"{key}: {first['msg']}") from error


class RandomState:
    """Keeps the state of torch's own random numbers on the CPU, which no part has for itself."""

    def state(self) -> State:
        """See ``Stateful``."""
        return State(common={"torch": torch.get_rng_state()})

    def load_state(self, state: State) -> None:
        """See ``Stateful``."""
        torch.set_rng_state(state.common["torch"])
