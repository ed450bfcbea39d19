"""Settings whose values are listed where they are made.

The methods, codecs, kernels, cells and datasets there are stand in one list each, beside what they
list, and those rooms lie above the settings. So a list is looked up by its name when a value is
checked or a help is written: nothing here imports upwards, no name stands twice, and what is
entered into a list while a program runs can be chosen at once.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema


@dataclass(frozen=True, slots=True)
class Choice:
    """Marks a text that must be a name in a list: ``Annotated[str, Choice("module:LIST")]``.

    Args:
        home: module and name of the list: names, or a mapping by name. An entry may have a
            ``summary``, which the help then shows.
        also: words that the setting knows besides, such as ``auto``.
    """

    home: str
    also: tuple[str, ...] = ()

    def listed(self) -> Collection[str]:
        """The list itself."""
        module, _, name = self.home.partition(":")
        found: Collection[str] = getattr(importlib.import_module(module), name)
        return found

    def entry(self, name: str) -> Any:
        """What stands behind a name; None for a word of the setting's own."""
        entries = self.listed()
        return entries.get(name) if isinstance(entries, Mapping) else None

    def names(self) -> tuple[str, ...]:
        """All values that there are."""
        return (*self.also, *self.listed())

    def summaries(self) -> list[str]:
        """``name: summary`` of every entry that has one."""
        texts = {name: getattr(self.entry(name), "summary", "") for name in self.listed()}
        return [f"{name}: {text}" for name, text in texts.items() if text]

    def explain(self, text: str) -> str:
        """The help of a setting whose own text is ``text``."""
        return "; ".join([text, *self.summaries()])

    def placeholder(self) -> str | None:
        """What stands for the value in a help; None for the word that its type has."""
        return "{" + ",".join(self.names()) + "}"

    def check(self, value: Any) -> str:
        """The value, if it is one of them; else pydantic's error for a literal."""
        names = self.names()
        if isinstance(value, str) and value in names:
            return value
        quoted = [repr(name) for name in names]
        expected = " or ".join([", ".join(quoted[:-1]), quoted[-1]] if quoted[1:] else quoted)
        raise PydanticCustomError(
            "literal_error", "Input should be {expected}", {"expected": expected}
        )

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """``check``."""
        return core_schema.no_info_plain_validator_function(self.check)


class Choices(Choice):
    """As ``Choice``, of several names with commas between them, or one of the words besides."""

    __slots__ = ()

    def placeholder(self) -> str | None:
        """One name after another."""
        return "NAME,NAME,..."

    def explain(self, text: str) -> str:
        """As ``Choice``, with all the names."""
        return "; ".join([f"{text}: {', '.join(self.names())}", *self.summaries()])

    def check(self, value: Any) -> str:
        """The value, if each of its names is one; none of them twice."""
        if value in self.also:
            return str(value)
        names = value.split(",") if isinstance(value, str) else [value]
        single, listed = Choice(self.home), self.listed()
        # a list may look further for a name that it does not have yet
        checked = [name if name in listed else single.check(name) for name in names]
        if len(set(checked)) < len(checked):
            raise PydanticCustomError("twice", "names one twice; leave one out")
        return ",".join(checked)


def choice_at(section: type[BaseModel], key: str) -> Choice | None:
    """The choice that a setting is marked with; None for one that is not, or that is a section.

    Args:
        section: where the key begins.
        key: dotted, such as ``forward.method``.
    """
    name, _, rest = key.partition(".")
    field = section.model_fields.get(name)
    inner = None if field is None else field.annotation
    if field is not None and not rest:
        return next((mark for mark in field.metadata if isinstance(mark, Choice)), None)
    if isinstance(inner, type) and issubclass(inner, BaseModel):
        return choice_at(inner, rest)
    return None


# where each list stands
METHODS = "distributed_ignn.solvers.methods:METHODS"
SOLVER_KINDS = "distributed_ignn.training.learned.solver_kinds:SOLVER_KINDS"
NETWORKS = "distributed_ignn.solvers.predictors:NETWORKS"
SCOPES = "distributed_ignn.solvers.predictors:SCOPES"
CODECS = "distributed_ignn.comm.codecs:CODECS"
KERNELS = "distributed_ignn.propagation.kernels:KERNELS"
SPARSIFIERS = "distributed_ignn.propagation.sparsify:SPARSIFIERS"
PARTITIONERS = "distributed_ignn.graph.partitioning.partition:PARTITIONERS"
METIS_PROVIDERS = "distributed_ignn.graph.partitioning.metis:PROVIDERS"
CELLS = "distributed_ignn.models.cells:CELLS"
KINDS = "distributed_ignn.models.kinds:KINDS"
DATASETS = "distributed_ignn.graph.datasets:DATASETS"
LOGGERS = "distributed_ignn.runs.output.loggers:LOGGERS"
DATA_READ_BY = "distributed_ignn.graph.datasets:READ_BY"
