"""Settings by dotted name, and where two runs differ in them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from distributed_ignn.config.section import Section

_OF_A_START = ("resume", "output", "quiet", "workers", "gpus", "restarts", "train.epochs")


def dotted(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Name and value of every setting, of sections and keys."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def names_of(settings: Mapping[str, Any]) -> list[str]:
    """The dotted names of all settings."""
    return [name for name, _ in dotted(settings)]


def differences(run: Section, before: Section) -> list[str]:
    """``name = value (was value)`` of settings that differ, but for those of one start alone."""
    found = unlike(run, before, _OF_A_START)
    return [f"{name} = {value} (was {old})" for name, value, old in found]


def unlike(run: Section, other: Section, may_differ: Collection[str]) -> list[tuple[str, Any, Any]]:
    """Name and both values of the settings that differ, but for those that may."""
    there = dict(dotted(other.model_dump(mode="json")))
    return [
        (name, value, there.get(name))
        for name, value in dotted(run.model_dump(mode="json"))
        if value != there.get(name) and name not in may_differ
    ]
