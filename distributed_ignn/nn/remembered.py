"""What was made of the user's objects, for as long as they are the same objects, unchanged."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from torch import Tensor

_REMEMBERED = 4  # graphs, or features, of the last calls

Made = TypeVar("Made")


@dataclass(slots=True, eq=False)
class _Entry(Generic[Made]):
    """What was made, and of which objects in which version."""

    made: Made
    key: Any
    objects: tuple[tuple[weakref.ref[Any], int], ...]

    def fits(self, key: Any, objects: Sequence[Any]) -> bool:
        return (
            key == self.key
            and len(objects) == len(self.objects)
            and all(
                ref() is given and version_of(given) == version
                for (ref, version), given in zip(self.objects, objects, strict=True)
            )
        )

    @property
    def alive(self) -> bool:
        return all(ref() is not None for ref, _ in self.objects)


@dataclass(slots=True, eq=False)
class Remembered(Generic[Made]):
    """What was made of the user's objects in the last calls, while those live unchanged.

    It belongs to a module but not to its state: copies and pickles of it are empty.
    """

    _entries: list[_Entry[Made]] = field(default_factory=list)  # newest last

    def find(self, key: Any, objects: Sequence[Any]) -> Made | None:
        """What was made of these very objects under this key."""
        for entry in self._entries:
            if entry.fits(key, objects):
                return entry.made
        return None

    def keep(self, key: Any, objects: Sequence[Any], made: Made) -> Made:
        """Remember it, where it can be seen whether the objects change."""
        self._entries = [entry for entry in self._entries if entry.alive][1 - _REMEMBERED :]
        if all(version_of(given) is not None for given in objects):
            seen = tuple((weakref.ref(given), version_of(given) or 0) for given in objects)
            self._entries.append(_Entry(made, key, seen))
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> Remembered[Made]:
        return Remembered()

    def __reduce__(self) -> tuple[type[Remembered[Made]], tuple[()]]:
        return Remembered, ()


def version_of(given: Any) -> int | None:
    """How often a tensor was written into; None where torch does not count, 0 for other objects."""
    if not isinstance(given, Tensor):
        return 0
    return None if given.is_inference() else given._version
