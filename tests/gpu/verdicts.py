"""What ``make gpu`` finds: a row per check with its target and its verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich.markup import escape
from rich.table import Table

Verdict = Literal["ok", "failed", "measured", "left out"]
STYLES: dict[str, str] = {"ok": "green", "failed": "bold red", "left out": "yellow"}


@dataclass(frozen=True, slots=True)
class Check:
    """One row.

    Args:
        name: what was looked at.
        verdict: measured: there is no target, or not on this kind of machine; left out: it could
            not be looked at, and the note says why.
        value: in ``unit``; None where there is no number.
        unit: of value and target; "%" for a share that is stored as a fraction.
        target: what the value has to reach or to stay below, as text.
        note: what else has to be said.
    """

    name: str
    verdict: Verdict
    value: float | None = None
    unit: str = ""
    target: str = ""
    note: str = ""

    def shown(self) -> str:
        """The value as a table has it."""
        if self.value is None:
            return ""
        if self.unit == "%":
            return f"{100 * self.value:.0f} %"
        return f"{self.value:.4g} {self.unit}".rstrip()

    def line(self) -> str:
        """The row as a line of progress."""
        parts = [self.name, self.shown(), self.target and f"target {self.target}", self.note]
        return f"{self.verdict:<9} " + "  ".join(part for part in parts if part)

    def as_json(self) -> dict[str, Any]:
        """All of it; a value that is no number is null."""
        found = asdict(self)
        if self.value is not None and not math.isfinite(self.value):
            found["value"] = None
        return found


def measured(name: str, value: float, unit: str, note: str = "") -> Check:
    """A figure without a target."""
    return Check(name, "measured", value, unit, note=note)


def left_out(name: str, why: str) -> Check:
    """What could not be looked at."""
    return Check(name, "left out", note=why)


def holds(name: str, holds: bool, note: str = "") -> Check:
    """A yes or no, which counts on every machine."""
    return Check(name, "ok" if holds else "failed", note=note)


def at_most(name: str, value: float, limit: float, unit: str = "", note: str = "") -> Check:
    """A number that counts on every machine; one that is not a number fails."""
    return Check(name, "ok" if value <= limit else "failed", value, unit, f"<= {limit:g}", note)


def judge(
    name: str,
    value: float,
    unit: str,
    target: float,
    *,
    least: bool = True,
    counts: bool = True,
    note: str = "",
) -> Check:
    """A figure against its target.

    Args:
        least: whether it has to reach the target, not to stay at or below it.
        counts: whether the target is for this kind of machine; else the figure is only shown.
    """
    reached = value >= target if least else value <= target
    verdict: Verdict = ("ok" if reached else "failed") if counts else "measured"
    goal = f"{100 * target:g} %" if unit == "%" else f"{target:g}"
    return Check(name, verdict, value, unit, f"{'>=' if least else '<='} {goal}", note)


def tabulate(title: str, found: Sequence[tuple[str, Sequence[Check]]]) -> Table:
    """One table of all sections."""
    table = Table(title=title)
    for column in ("section", "check", "value", "target", "verdict", "note"):
        table.add_column(column, justify="right" if column == "value" else "left")
    for section, checks in found:
        for number, check in enumerate(checks):
            style = STYLES.get(check.verdict, "")
            verdict = f"[{style}]{check.verdict}[/]" if style else check.verdict
            first = section if number == 0 else ""
            cells = (first, check.name, check.shown(), check.target)
            table.add_row(*map(escape, cells), verdict, escape(check.note))
        table.add_section()
    return table
